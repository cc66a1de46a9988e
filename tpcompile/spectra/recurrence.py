"""Recurrence coefficients of a measure from its moments, and their continuation to infinity.

Orthonormal polynomials of a measure satisfy ``x p_k = b_{k+1} p_{k+1} + a_k p_k + b_k p_{k-1}``. Where the support is
one interval, ``a_k`` and ``b_k`` tend to its middle and a quarter of its length: constant from some k on (semicircle,
Marchenko-Pastur), exponentially, or in powers of 1/k where the density has other than square-root edges
(Gautschi, Orthogonal Polynomials, 2004; Kuijlaars et al., Adv. Math. 188, 2004).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import sympy as sp

from tpcompile.errors import EvaluationError
from tpcompile.evaluate.exact.real import Real

Array = np.ndarray[Any, Any]

CONTINUED = 4000
"""Coefficients up to which a continuation in powers of 1/k is used; constant behind."""

_BITS = 155  # of moments that are integrals
_TRUNCATED = 600  # size of the Jacobi matrix in which atoms are seen
_MODELS: tuple[tuple[int, ...], ...] = ((0,), (0, 2), (0, 2, 3), (0, 2, 3, 4))  # powers of 1/k
_HARD = 1e-3  # distance from zero, over the half length, below which a continued edge is taken for zero
_SETTLED = 0.02  # error of the predicted coefficients, over the half length of the support, above which there is none


@dataclass(frozen=True)
class Recurrence:
    """``a_0, ..`` and ``b_1, ..`` with their limits; ``finite`` where the measure is atoms alone."""

    a: Array
    b: Array
    finite: bool = False

    @property
    def edges(self) -> tuple[float, float]:
        """The interval of the continuous part."""
        middle, quarter = float(self.a[-1]), float(self.b[-1])
        return middle - 2 * quarter, middle + 2 * quarter

    def resolvent(self, x: Array) -> Array:
        """``G(x + i0) = ∫ mu(dt) / (x - t)``, by its continued fraction from the constant tail."""
        middle, b = self.a[-1], self.b[-1]
        z = np.asarray(x, dtype=complex) - middle
        inside = np.abs(z.real) < 2 * b
        outer = np.sqrt(np.abs(z.real**2 - 4 * b * b))
        g = np.where(inside, z - 1j * outer, z - np.sign(z.real) * outer) / (2 * b * b)
        for a, b in zip(self.a[-2::-1], self.b[::-1], strict=True):
            g = 1 / (x - a - b * b * g)
        return g

    def at_zero(self) -> float:
        """``G(0)`` of a measure on positive numbers.

        At an edge it converges in a power of the number of coefficients, that Aitken's method takes out.
        """
        point = np.array(0.0)
        counts = (CONTINUED // 4, CONTINUED // 2, CONTINUED)
        if len(self.a) < CONTINUED:
            return float(self.resolvent(point).real)
        cut = (
            Recurrence(np.append(self.a[: n - 1], self.a[-1]), np.append(self.b[: n - 2], self.b[-1])) for n in counts
        )
        x, y, z = (float(r.resolvent(point).real) for r in cut)
        return z - (z - y) ** 2 / ((z - y) - (y - x)) if abs(z - y) > 1e-13 * abs(z) else z

    def shorter(self, count: int) -> Recurrence:
        """The first ``count`` coefficients."""
        return Recurrence(self.a[:count], self.b[: count - 1])


def recurrence(moments: Sequence[Any]) -> Recurrence:
    """The coefficients that moments ``m_0 = 1, m_1, ..`` determine, by Chebyshev's algorithm in rationals.

    Of moments that are rounded only those coefficients are kept that this does not change by more than 1e-7.
    """
    exact = [_rational(m) for m in moments]
    found = _chebyshev(exact)
    bits = 51 if any(isinstance(m, float) for m in moments) else _BITS
    if any(isinstance(m, float | Real) for m in moments):
        signs = [m * (1 + Fraction((-1) ** (k * (k + 1) // 2), 2**bits)) for k, m in enumerate(exact)]
        other = _chebyshev([Fraction(1), *signs[1:]])
        count = min(len(found.a), len(other.a))
        moved = np.abs(found.a[:count] - other.a[:count])
        moved[1:] += np.abs(found.b[: count - 1] - other.b[: count - 1])
        kept = int(np.argmax(np.append(moved > 1e-7 * np.abs(found.b[:1]).max(initial=1e-30), True)))
        return found.shorter(max(kept, 1))
    return found


def _rational(m: Any) -> Fraction:
    if isinstance(m, Real):
        return m.fraction()
    if isinstance(m, sp.Expr):
        return Fraction(str(sp.N(m, 200)))
    return Fraction(m)


def _chebyshev(m: Sequence[Fraction]) -> Recurrence:
    a, squares = [m[1]], []
    before, row = [Fraction(0)] * len(m), list(m)
    ratio, square = m[1], Fraction(0)
    for k in range(1, len(m) // 2):
        new = [Fraction(0)] * len(m)
        for j in range(k, len(m) - k):
            new[j] = row[j + 1] - a[-1] * row[j] - square * before[j]
        if abs(new[k]) <= Fraction(1, 10**60) * m[2] * row[k - 1]:  # zero, to the digits of square roots
            return Recurrence(_floats(a), np.sqrt(_floats(squares)), finite=True)
        if new[k] < 0:
            break  # rounding of float moments
        square = new[k] / row[k - 1]
        a.append(new[k + 1] / new[k] - ratio)
        ratio = new[k + 1] / new[k]
        squares.append(square)
        before, row = row, new
    return Recurrence(_floats(a), np.sqrt(_floats(squares)))


def _floats(x: Sequence[Fraction]) -> Array:
    return np.array([float(v) for v in x])


def continued(r: Recurrence, hard: bool = False) -> tuple[Recurrence, float]:
    """The coefficients with their continuation, and the error with which it predicts the last known ones.

    ``hard``: the support is known to be positive, so that an edge near zero, or below it, is zero.
    Raises EvaluationError where they do not settle: several intervals, or too few moments.
    """
    if len(r.b) < 4:
        raise EvaluationError(
            f"{len(r.b)} recurrence coefficients are too few to see the edges of the spectrum",
            advice="ask for more moments (order=..)",
        )
    scale = float(np.mean(r.b[-3:]))
    fits = [(m, error) for m in _MODELS if (error := _prediction_error(r, m)) is not None]
    model, error = min(fits, key=lambda fit: max(fit[1], 1e-13 * scale))
    if error > _SETTLED * scale:
        raise EvaluationError(
            "the recurrence coefficients of the spectrum do not settle: its support is not one interval, or there are "
            f"too few moments (the last coefficients are predicted to {error / scale:.1%} only)",
            advice="ask for more moments (order=..), or use the moments alone",
        )
    if model == (0,):
        return r, error
    k = np.append(np.arange(CONTINUED - 1.0), np.inf)  # the last is the limit, which fixes the edges
    a = np.concatenate([r.a, _fit(r.a[1:], model)(k[len(r.a) :])])
    b = np.concatenate([r.b, _fit(r.b, model)(k[len(r.b) + 1 :])])
    low = a[-1] - 2 * b[-1]
    if hard and low < _HARD * b[-1]:
        a[len(r.a) :] -= low
    return Recurrence(a, b), error


def _prediction_error(r: Recurrence, model: tuple[int, ...]) -> float | None:
    """Largest error of the last two coefficients, fitted by the ones before; None where these are too few."""
    errors = []
    for values in (r.a[1:], r.b):
        known = values[:-2]
        if len(known) < 2 * len(model):
            return None
        k = np.arange(1, len(values) + 1)
        errors.append(np.abs(_fit(known, model)(k[-2:]) - values[-2:]).max())
    return float(max(errors))


def _fit(values: Array, model: tuple[int, ...]) -> Any:
    """A combination of powers of 1/k through the last of ``values`` (those of k = 1, 2, ..)."""
    count = len(model)
    k = np.arange(len(values) - count + 1, len(values) + 1, dtype=float)
    powers = np.array(model)
    c = np.linalg.solve(k[:, None] ** -powers, values[-count:])
    return lambda at: (np.asarray(at, dtype=float)[:, None] ** -powers) @ c


def atoms(r: Recurrence) -> list[tuple[float, float]]:
    """Point masses outside of the interval, location and mass: eigenvalues of a long Jacobi matrix there."""
    from scipy.linalg import eigh_tridiagonal

    a, b = r.a[:_TRUNCATED], r.b[: _TRUNCATED - 1]
    low, high = math.inf, -math.inf
    if not r.finite:
        a = np.append(a, np.full(_TRUNCATED - len(a), r.a[-1]))
        b = np.append(b, np.full(_TRUNCATED - 1 - len(b), r.b[-1]))
        margin = 1e-3 * (r.edges[1] - r.edges[0])
        low, high = r.edges[0] - margin, r.edges[1] + margin
    values, vectors = eigh_tridiagonal(a, b)
    pairs = zip(values, vectors[0] ** 2, strict=True)
    return [(float(x), float(w)) for x, w in pairs if w > 1e-9 and not low <= x <= high]
