"""The algebraic equation of a spectrum, found from exact moments, and the density that it has.

The moment generating function ``M(z) = sum_k m_k z^k`` of a polynomial of independent Gaussian matrices and of diagonal
matrices of rational law is an algebraic function (Anderson, Ann. Probab. 41, 2013). Its equation is guessed: a
combination of ``z^i M^j`` that vanishes to the order of all known moments, with more conditions than coefficients
(Bostan & Kauers, AofA 2009). The density follows from the branch ``G(x) = M(1/x)/x`` that is ``1/x`` at infinity,
continued down to the real line. It may have any edges, singularities, and several intervals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import Any

import numpy as np
import sympy as sp
from sympy.polys.matrices import DomainMatrix

from tpcompile.spectra.recurrence import Array

SURPLUS = 3
"""Conditions beyond the number of coefficients that an equation must satisfy: each is one chance in any number."""

_PRIME = 2**61 - 1
_FAR = 20.0  # where the series at infinity starts the branch, in spectral radii
_STEP, _NEAREST = 0.85, 1e-15  # of the way down to the real line, in spectral radii
_NOTHING = 1e-7  # a density, in units of one over the radius
_DEGREE = 8  # in M


@dataclass(frozen=True)
class Equation:
    """``sum_{jk} table[j, k] x^k G^j = 0``: exact integers, as floats; the branch starts from ``moments``."""

    exact: tuple[tuple[int, ...], ...]
    moments: tuple[float, ...]
    radius: float

    @property
    def table(self) -> Array:
        """The coefficients scaled to order one, by powers of G (rows) and of x in radii."""
        with np.errstate(all="ignore"):
            rows = [
                [float(Fraction(c)) * self.radius ** (k - j) for k, c in enumerate(row)]
                for j, row in enumerate(self.exact)
            ]
        table = np.array(rows)
        return table / np.abs(table).max()

    def resolvent(self, x: Array, height: float = 0.0) -> Array:
        """``G(x + i height)``, at height zero the limit from above; x and height in radii, and G over the radius."""
        table = self.table
        shape, x = np.shape(x), np.ravel(np.asarray(x, dtype=float))
        y = _FAR
        w = x + 1j * y
        g = sum((m / w ** (k + 1) for k, m in enumerate(self.moments)), np.zeros_like(w))
        while y > max(height, _NEAREST):
            y = max(y * _STEP, height)
            before, w = w, x + 1j * y
            slope = _slope(table, before, g)
            step = slope * (w - before)
            guess = g + np.where(np.abs(step) < 0.5 * np.abs(g), step, 0)
            g = _nearest(table, w, guess)
        return (g if height else _polished(table, x, g)).reshape(shape)

    def density(self, x: Array) -> Array:
        """The density at real points."""
        return np.maximum(-self.resolvent(np.asarray(x) / self.radius).imag, 0) / (math.pi * self.radius)

    def critical(self) -> list[float]:
        """Real points at which the density may be singular: zeros of discriminant and leading coefficient."""
        x, g = sp.symbols("x g")
        p = sp.Poly({(k, j): c for j, row in enumerate(self.exact) for k, c in enumerate(row) if c}, x, g)
        lead = sp.Poly(list(self.exact[-1])[::-1], x)
        found: list[float] = []
        for q in (sp.Poly(sp.discriminant(p, g), x), lead):
            for factor, _ in q.factor_list()[1]:
                found += [float(sp.re(r)) for r in factor.nroots(n=30, maxsteps=200) if abs(sp.im(r)) < 1e-20]
        merged: list[float] = []
        for r in sorted(found):
            if not merged or r - merged[-1] > 1e-9 * self.radius:
                merged.append(r)
        return merged

    def pieces(self) -> list[tuple[float, float]]:
        """Intervals between neighbouring critical points where there is a density."""
        at = self.critical()
        found = []
        for low, high in pairwise(at):
            inside = low + (high - low) * np.array([0.2, 0.5, 0.8])
            if float(self.density(inside).max()) * self.radius > _NOTHING:
                found.append((low, high))
        return found

    def moment(self, order: int, pieces: Sequence[tuple[float, float]]) -> float:
        """``∫ x^order density(x) dx``, by double-exponential quadrature between singularities."""
        t = np.linspace(-3.2, 3.2, 161)
        inner = math.pi / 2 * np.sinh(t)
        share = 1 / (1 + np.exp(2 * np.abs(inner)))  # of the length, from the nearer end
        weight = (t[1] - t[0]) * math.pi / 4 * np.cosh(t) / np.cosh(inner) ** 2
        total = 0.0
        for low, high in pieces:
            x = np.where(t < 0, low + (high - low) * share, high - (high - low) * share)
            total += float((weight * (high - low) * x**order * self.density(x)).sum())
        return total

    def atoms(self) -> list[tuple[float, float]]:
        """Point masses, location and mass: poles of G that stay when the real line is approached."""
        x = sp.Symbol("x")
        lead = sp.Poly(list(self.exact[-1])[::-1], x)
        out = []
        for factor, _ in lead.factor_list()[1]:
            for r in factor.nroots(n=30, maxsteps=200):
                if abs(sp.im(r)) > 1e-20:
                    continue
                at = -factor.nth(0) / factor.nth(1) if factor.degree() == 1 else sp.re(r)
                height = 1e-9
                mass = -float(self.resolvent(np.array([float(at) / self.radius]), height).imag[0]) * height
                candidates = [c for c in self._residues(at) if abs(c - mass) < 0.1 * c + 1e-9]
                if candidates:
                    out.append((float(at), min(candidates, key=lambda c: abs(c - mass))))
        return sorted(out)

    def _residues(self, at: Any) -> list[float]:
        """Residues that a simple pole of a branch can have there: ``G = c / (x - at)`` in the lowest order."""
        x = sp.Symbol("x")
        orders: dict[int, dict[int, Any]] = {}
        for j, row in enumerate(self.exact):
            shifted = sp.Poly(list(row)[::-1] or [0], x).compose(sp.Poly(x + at, x))
            size = max((abs(c) for c in shifted.all_coeffs()), default=0)
            for (k,), c in shifted.terms():
                if abs(c) > 1e-15 * size:
                    orders.setdefault(k - j, {})[j] = c
        lowest = orders[min(orders)]
        residues = sp.Poly({(j,): c for j, c in lowest.items()}, x)
        roots = [r for factor, _ in residues.factor_list()[1] for r in factor.nroots(n=30, maxsteps=200)]
        return [float(sp.re(r)) for r in roots if abs(sp.im(r)) < 1e-9 and 1e-9 < sp.re(r) < 1 + 1e-9]


def equation(moments: Sequence[Any]) -> Equation | None:
    """The equation of the smallest number of coefficients that all moments satisfy; None if there is none."""
    if not all(isinstance(m, int | Fraction) for m in moments):
        return None
    m = [Fraction(c) for c in moments]
    step = 2 if not any(m[1::2]) else 1
    series = m[::step]
    found = _guess(series)
    if found is None:
        return None
    degree, length, c = found  # sum c[j][i] z^i M^j, z = x^-step, M = x G
    top = step * length
    rows = [[0] * (top + degree + 1) for _ in range(degree + 1)]
    for j in range(degree + 1):
        for i in range(length + 1):
            rows[j][top + j - step * i] = c[j][i]
    common = min(k for row in rows for k, v in enumerate(row) if v)
    radius = math.sqrt(float(m[-1 - (len(m) - 1) % 2] / m[-3 - (len(m) - 1) % 2]))
    scaled = tuple(float(v / Fraction(radius) ** k) for k, v in enumerate(m))
    return Equation(tuple(tuple(row[common:]) for row in rows), scaled, radius)


def _guess(m: Sequence[Fraction]) -> tuple[int, int, list[list[int]]] | None:
    count = len(m)
    residues = [v.numerator * pow(v.denominator, -1, _PRIME) % _PRIME for v in m]
    sizes = sorted(((d + 1) * (e + 1), d, e) for d in range(1, _DEGREE + 1) for e in range(1, count))
    for unknown, d, e in sizes:
        if unknown + SURPLUS > count:
            return None
        if _dependent(_conditions(residues, d, e, _PRIME)):
            exact = DomainMatrix(
                [[sp.QQ(v.numerator, v.denominator) for v in row] for row in _conditions(list(m), d, e, None)],
                (count, unknown),
                sp.QQ,
            ).nullspace()
            if exact.shape[0] == 0:
                continue
            values = [Fraction(int(v.numerator), int(v.denominator)) for v in exact.to_list()[0]]
            common = math.lcm(*(v.denominator for v in values))
            whole = [int(v * common) for v in values]
            return d, e, [whole[j * (e + 1) : (j + 1) * (e + 1)] for j in range(d + 1)]
    return None


def _conditions(m: Sequence[Any], degree: int, length: int, prime: int | None) -> list[list[Any]]:
    """Coefficients of ``z^i M^j`` (columns, j major) by powers of z (rows)."""
    count = len(m)
    power: list[Any] = [m[0], *([m[0] * 0] * (count - 1))]
    columns = []
    for _ in range(degree + 1):
        columns += [[m[0] * 0] * i + power[: count - i] for i in range(length + 1)]
        power = [sum((power[i] * m[k - i] for i in range(k + 1)), m[0] * 0) for k in range(count)]
        if prime is not None:
            power = [v % prime for v in power]
    return [list(row) for row in zip(*columns, strict=True)]


def _dependent(rows: list[list[int]]) -> bool:
    """True if the columns are dependent modulo the prime."""
    free = list(rows)
    for c in range(len(rows[0])):
        pivot = next((row for row in free if row[c]), None)
        if pivot is None:
            return True
        free.remove(pivot)
        inverse = pow(pivot[c], -1, _PRIME)
        for row in free:
            if row[c]:
                f = row[c] * inverse % _PRIME
                for k in range(c, len(row)):
                    row[k] = (row[k] - f * pivot[k]) % _PRIME
    return False


def _by_power(table: Array, w: Array) -> Array:
    """Coefficients by powers of G at points, shape (points, degree + 1)."""
    return np.polynomial.polynomial.polyval(w, table.T).T.reshape(*w.shape, -1)


def _nearest(table: Array, w: Array, guess: Array) -> Array:
    """The root of the equation nearest to a guess, at every point.

    By Newton's method where it moves little and converges, else among all roots, eigenvalues of companion matrices.
    """
    c = _by_power(table, w)
    g, step = guess, guess
    for _ in range(4):
        value, by_g = _value(c, g)
        step = value / np.where(by_g == 0, np.inf, by_g)
        g = g - step
    with np.errstate(invalid="ignore"):
        done = (np.abs(step) < 1e-9 * np.abs(g)) & (np.abs(g - guess) < 0.1 * np.abs(guess))
    if not done.all():
        g[~done] = _among_all(c[~done], guess[~done])
    return g


def _among_all(c: Array, guess: Array) -> Array:
    d = c.shape[-1] - 1
    companion = np.zeros((len(c), d, d), dtype=complex)
    companion[:, np.arange(1, d), np.arange(d - 1)] = 1
    companion[:, :, -1] = -c[:, :-1] / np.where(np.abs(c[:, -1:]) < 1e-300, 1e-300, c[:, -1:])
    roots = np.linalg.eigvals(companion)
    best = np.argmin(np.abs(roots - guess[:, None]), -1)
    return np.take_along_axis(roots, best[:, None], -1)[:, 0]


def _value(c: Array, g: Array) -> tuple[Array, Array]:
    """A polynomial in G, of coefficients by power at every point, and its derivative."""
    value, slope = c[..., -1], np.zeros_like(g)
    for k in range(c.shape[-1] - 2, -1, -1):
        slope = slope * g + value
        value = value * g + c[..., k]
    return value, slope


def _slope(table: Array, w: Array, g: Array) -> Array:
    """``dG/dw`` along the branch."""
    by_w, _ = _value(_by_power(table[:, 1:] * np.arange(1, table.shape[1]), w), g)
    _, by_g = _value(_by_power(table, w), g)
    return -by_w / np.where(by_g == 0, np.inf, by_g)


def _polished(table: Array, x: Array, g: Array) -> Array:
    """Newton's method on the real line, where it moves little."""
    c = _by_power(table, x.astype(complex))
    for _ in range(3):
        value, by_g = _value(c, g)
        step = value / np.where(by_g == 0, np.inf, by_g)
        g = np.where(np.abs(step) < 1e-3 * np.abs(g), g - step, g)
    return g
