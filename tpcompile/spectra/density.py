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
    recurrence coefficients are left out: an estimate, not a bound, of the error of the continuation. ``recurrence`` is
    that of the measure, or where ``mean`` is given that of ``x mu(dx) / mean``.
    """

    grid: Array
    density: Array
    edges: tuple[float, float] | None
    atoms: tuple[tuple[float, float], ...]
    moments: Moments
    recurrence: Recurrence
    error: float
    operator: Operator = field(repr=False)
    mean: float | None = None

    def at(self, x: Any) -> Array:
        """The density at any points, zero outside of the edges."""
        return _density(self.recurrence, self.edges, self.mean, np.asarray(x, dtype=float))

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
    if recurrence(moments).finite:
        known = recurrence(moments)
        nothing = np.zeros(0)
        return Spectrum(nothing, nothing, None, tuple(atoms(known)), moments, known, 0.0, operator)
    null = operator.null_share() if moments[1] > 0 else None
    found: list[Spectrum] = []
    failures: list[EvaluationError] = []
    for mean in (None,) if null is None else (None, float(moments[1])):
        try:
            found.append(_spectrum(operator, moments, points, mean, bool(null)))
        except EvaluationError as error:
            failures.append(error)
    if not found:
        raise failures[0]
    own, positive = found[0], found[-1]
    seen = any(abs(x) < 1e-9 * (own.edges or (0.0, 1.0))[1] for x, _ in own.atoms)
    return positive if (null and not seen) or positive.error < 0.1 * own.error else own


def _spectrum(operator: Operator, moments: Moments, points: int, mean: float | None, null: bool) -> Spectrum:
    """The spectrum from the coefficients of the measure itself, or of ``x mu(dx) / mean`` of a positive operator.

    The second has no atom at zero, and a density that is smoother there.
    """
    known = recurrence(moments if mean is None else [m / moments[1] for m in moments[1:]])
    full, predicted = continued(known, hard=mean is not None)
    edges = full.edges
    middle, half = (edges[0] + edges[1]) / 2, (edges[1] - edges[0]) / 2
    grid = middle - half * np.cos(np.pi * (np.arange(points) + 0.5) / points)
    density = _density(full, edges, mean, grid)
    if (largest := float(density.max())) > 0 and predicted / half > largest:
        raise EvaluationError("the recurrence coefficients of the spectrum do not settle")
    error = _error(known, full, mean, grid[np.abs(grid - middle) < (1 - 2 * INTERIOR) * half], predicted / half)
    if mean is None:
        found = atoms(full)
    else:
        found = [(x, w * mean / x) for x, w in atoms(full) if x > edges[1]]
        if null:
            found = [(0.0, 1 + mean * full.at_zero()), *found]
    return Spectrum(grid, density, edges, tuple(found), moments, full, error, operator, mean)


def _density(r: Recurrence, edges: tuple[float, float] | None, mean: float | None, x: Array) -> Array:
    if edges is None:
        return np.zeros_like(x)
    inside = (x > edges[0]) & (x < edges[1])
    at = np.where(inside, x, sum(edges) / 2)
    return np.where(inside, -r.resolvent(at).imag / np.pi * (1.0 if mean is None else mean / at), 0.0)


def _error(known: Recurrence, full: Recurrence, mean: float | None, grid: Array, otherwise: float) -> float:
    try:
        fewer, _ = continued(known.shorter(len(known.a) - 2), hard=mean is not None)
    except EvaluationError:
        return otherwise
    both = (_density(r, r.edges, mean, grid) for r in (fewer, full))
    return float(np.abs(np.subtract(*both)).max())
