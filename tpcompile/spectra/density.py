"""``tp.spectrum``: the limiting spectral density of random matrices, from their exact moments."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpcompile.errors import EvaluationError, UsageError
from tpcompile.spectra.moments import Moments, operator_moments
from tpcompile.spectra.operator import Operator, Shapes, Variances
from tpcompile.spectra.recurrence import Array, Recurrence, atoms, continued, recurrence

INTERIOR = 0.05
"""Share of the interval at each edge that :attr:`Spectrum.error` leaves out."""


@dataclass(frozen=True)
class Spectrum:
    """A limiting spectrum: a density on one interval, and atoms outside of it. Made by :func:`spectrum`.

    ``grid`` and ``density`` have shape (points,), closer together towards the ``edges``; ``atoms`` are pairs (location,
    mass). ``error`` is the largest change of the density between the edges (the outer 5 % left out) when the last two
    recurrence coefficients are left out: an estimate, not a bound, of the error of the continuation.
    """

    grid: Array
    density: Array
    edges: tuple[float, float] | None
    atoms: tuple[tuple[float, float], ...]
    moments: Moments
    recurrence: Recurrence
    error: float
    operator: Operator = field(repr=False)

    def at(self, x: Any) -> Array:
        """The density at any points, zero outside of the edges."""
        return _density(self.recurrence, self.edges, np.asarray(x, dtype=float))

    def eigenvalues(self, width: int, seed: int = 0) -> Tensor:
        """Eigenvalues of one random operator of that width, shape (width,), ascending."""
        return torch.linalg.eigvalsh(self.operator.matrix(width, seed))

    def plot(self, path: str | Path, width: int = 512, seed: int = 0) -> None:
        """A figure: the density over the histogram of the eigenvalues at that width."""
        from tpcompile.report.plot_spectrum import plot_spectrum

        plot_spectrum(self, path, width, seed)

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON; exact moments as text."""
        return {
            "moments": [m if isinstance(m, float) else str(m) for m in self.moments],
            "response_terms": [m if isinstance(m, float) else str(m) for m in self.moments.dot],
            "edges": None if self.edges is None else list(self.edges),
            "atoms": [{"location": x, "mass": w} for x, w in self.atoms],
            "grid": self.grid.tolist(),
            "density": self.density.tolist(),
            "error": self.error,
        }


def spectrum(
    fn: Callable[..., Tensor],
    order: int = 24,
    *,
    points: int = 512,
    shapes: Shapes | None = None,
    variances: Variances | None = None,
) -> Spectrum:
    """The limiting spectral density of the self-adjoint operator ``x -> fn(W, .., x)``; arguments as in ``tp.moments``.

    ``order`` moments give order/2 recurrence coefficients of the orthogonal polynomials of the spectrum. These are
    continued to infinity, which fixes the edges, and the density is the imaginary part of the continued fraction.
    Raises UsageError for an operator that is not self-adjoint, EvaluationError where the coefficients do not settle (a
    support of several intervals, or too few moments).
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise UsageError(f"points must be an integer of at least 2, found {points!r}")
    if isinstance(order, bool) or not isinstance(order, int) or order < 2:
        raise UsageError(f"order must be an integer of at least 2, found {order!r}")
    operator = Operator.of(fn, shapes, variances)
    operator.check_linear(order)
    operator.check_self_adjoint()
    moments = operator_moments(operator, order)
    known = recurrence(moments)
    if known.finite:
        nothing = np.zeros(0)
        return Spectrum(nothing, nothing, None, tuple(atoms(known)), moments, known, 0.0, operator)
    full, predicted = continued(known)
    edges = full.edges
    middle, half = (edges[0] + edges[1]) / 2, (edges[1] - edges[0]) / 2
    grid = middle - half * np.cos(np.pi * (np.arange(points) + 0.5) / points)
    density = _density(full, edges, grid)
    error = _error(known, full, grid[np.abs(grid - middle) < (1 - 2 * INTERIOR) * half], predicted / half)
    found = tuple(atoms(full))
    return Spectrum(grid, density, edges, found, moments, full, error, operator)


def _density(r: Recurrence, edges: tuple[float, float] | None, x: Array) -> Array:
    if edges is None:
        return np.zeros_like(x)
    inside = (x > edges[0]) & (x < edges[1])
    return np.where(inside, -r.resolvent(np.where(inside, x, sum(edges) / 2)).imag / np.pi, 0.0)


def _error(known: Recurrence, full: Recurrence, grid: Array, otherwise: float) -> float:
    try:
        fewer, _ = continued(known.shorter(len(known.a) - 2))
    except EvaluationError:
        return otherwise
    return float(np.abs(_density(fewer, fewer.edges, grid) - _density(full, full.edges, grid)).max())
