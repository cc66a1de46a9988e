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
from tpcompile.evaluate.exact.real import precisely
from tpcompile.spectra.algebraic import Equation, equation
from tpcompile.spectra.moments import Moments, operator_moments
from tpcompile.spectra.operator import Operator, Shapes, Variances
from tpcompile.spectra.recurrence import Array, Recurrence, atoms, continued, recurrence

INTERIOR = 0.05
"""Share of the interval at each edge that :attr:`Spectrum.error` leaves out."""

ORDERS = (24, 32)
"""Moments that are tried where the user does not say how many."""

_WRONG = 1e-3  # error of a moment from which on the branch of an equation was lost
_ROUNDING = 1e-10  # error of a continuation that an equation does not improve


@dataclass(frozen=True)
class Spectrum:
    """A limiting spectrum: a density on intervals, and atoms. Made by :func:`spectrum`.

    ``grid`` and ``density`` have shape (points,), closer together towards the ends of the ``intervals``; ``edges`` are
    the outermost of these; ``atoms`` are pairs (location, mass). Where an algebraic ``equation`` of the spectrum was
    found, ``error`` is the largest deviation of the moments 1 to 4 of density and atoms (the radius as unit) from the
    exact ones, by quadrature. Else it is the largest change of the density between the edges (the outer 5 % left out)
    when the last two recurrence coefficients are left out: an estimate, not a bound, of the error of the continuation.
    ``recurrence`` is that of the measure, or where ``mean`` is given that of ``x mu(dx) / mean``.
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
    equation: Equation | None = None
    intervals: tuple[tuple[float, float], ...] = ()

    def at(self, x: Any) -> Array:
        """The density at any points, zero outside of the edges."""
        x = np.asarray(x, dtype=float)
        if self.equation is None:
            return _density(self.recurrence, self.edges, self.mean, x)
        inside = np.any([(x > low) & (x < high) for low, high in self.intervals], 0)
        return np.where(inside, self.equation.density(x), 0.0)

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
            "intervals": [list(ends) for ends in self.intervals],
            "atoms": [{"location": x, "mass": w} for x, w in self.atoms],
            "grid": self.grid.tolist(),
            "density": self.density.tolist(),
            "error": self.error,
        }


def spectrum(
    fn: Callable[..., Tensor],
    order: int | None = None,
    *,
    points: int = 512,
    shapes: Shapes | None = None,
    variances: Variances | None = None,
) -> Spectrum:
    """The limiting spectral density of the self-adjoint operator ``x -> fn(W, .., x)``; arguments as in ``tp.moments``.

    ``order`` moments (24, or 32 where these are too few) give order/2 recurrence coefficients of the orthogonal
    polynomials of the spectrum. These are continued to infinity, which fixes the edges, and the density is the
    imaginary part of the continued fraction. Where the coefficients do not settle to rounding and the moments are
    exact, an algebraic equation of the resolvent is looked for that all of them satisfy, and solved instead.
    Raises UsageError for an operator that is not self-adjoint, EvaluationError where the coefficients do not settle (a
    support of several intervals, or too few moments) and there is no equation.
    """
    if isinstance(points, bool) or not isinstance(points, int) or points < 2:
        raise UsageError(f"points must be an integer of at least 2, found {points!r}")
    if order is not None and (isinstance(order, bool) or not isinstance(order, int) or order < 2):
        raise UsageError(f"order must be an integer of at least 2, found {order!r}")
    operator = Operator.of(fn, shapes, variances)
    orders = ORDERS if order is None else (order,)
    operator.check_linear(orders[0])
    operator.check_self_adjoint()
    for count in orders:
        try:
            return _from_moments(operator, operator_moments(operator, count), points)
        except EvaluationError:
            if count == orders[-1]:
                raise
    raise AssertionError("no orders")


def _from_moments(operator: Operator, moments: Moments, points: int) -> Spectrum:
    if recurrence(moments.precise).finite:
        known = recurrence(moments.precise)
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
    if not found or min(s.error for s in found) > _ROUNDING:
        solved = _by_equation(operator, moments, points)
        if solved is not None:
            return solved
    if not found:
        raise failures[0]
    own, positive = found[0], found[-1]
    seen = any(abs(x) < 1e-9 * (own.edges or (0.0, 1.0))[1] for x, _ in own.atoms)
    return positive if (null and not seen) or positive.error < 0.1 * own.error else own


def _spectrum(operator: Operator, moments: Moments, points: int, mean: float | None, null: bool) -> Spectrum:
    """The spectrum from the coefficients of the measure itself, or of ``x mu(dx) / mean`` of a positive operator.

    The second has no atom at zero, and a density that is smoother there.
    """
    own = moments.precise
    with precisely():
        known = recurrence(own if mean is None else [m / own[1] for m in own[1:]])
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
    return Spectrum(
        grid, density, edges, tuple(found), moments, full, error, operator, mean, intervals=(edges,) if edges else ()
    )


def _by_equation(operator: Operator, moments: Moments, points: int) -> Spectrum | None:
    """The spectrum by an algebraic equation; None where there is none, or it does not give the moments."""
    found = equation(list(moments))
    if found is None:
        return None
    pieces = found.pieces()
    intervals: list[tuple[float, float]] = []
    for low, high in pieces:
        if intervals and intervals[-1][1] == low:
            low = intervals.pop()[0]
        intervals.append((low, high))
    masses = found.atoms()
    radius = found.radius
    error = max(
        abs(found.moment(k, pieces) + sum(w * x**k for x, w in masses) - float(moments[k])) / radius**k
        for k in range(1, min(4, moments.order) + 1)
    )
    if error > _WRONG:
        return None
    each = [max(2, round(points * (b - a) / sum(d - c for c, d in intervals))) for a, b in intervals]
    cosines = [np.cos(np.pi * (np.arange(n) + 0.5) / n) for n in each]
    grid = np.concatenate([(a + b) / 2 - (b - a) / 2 * c for (a, b), c in zip(intervals, cosines, strict=True)])
    edges = (intervals[0][0], intervals[-1][1]) if intervals else None
    known = recurrence(moments.precise)
    density = found.density(grid)
    return Spectrum(grid, density, edges, tuple(masses), moments, known, error, operator, None, found, tuple(intervals))


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
