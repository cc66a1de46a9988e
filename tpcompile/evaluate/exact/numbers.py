"""Exact numbers behind floats: rationals, and sums of rational multiples of square roots.

A traced program holds floats; ``1 / 3`` or ``2 ** -0.5`` in the user's code stand for a rational and for a root, and an
exact evaluation computes with these. What is neither stays a float, and so does everything that depends on it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import sympy as sp

from tpcompile.evaluate.exact.real import Real
from tpcompile.rationals import simple_fraction

DENOMINATOR = 4096
"""Largest denominator that a float is taken to stand for: chance agreement to rounding is below one in 10^8."""

Number = Any  # int, Fraction, Surd, float, Real, or an element of a sympy ring


@dataclass(frozen=True)
class Surd:
    """``sum_d c_d sqrt(d)`` over square-free d, at least one of them above 1; ``parts`` are pairs (d, c_d) by d."""

    parts: tuple[tuple[int, Fraction], ...]

    def __float__(self) -> float:
        return math.fsum(float(c) * math.sqrt(d) for d, c in self.parts)

    def __neg__(self) -> Number:
        return self * -1

    def __add__(self, other: Number) -> Number:
        if isinstance(other, Real):
            return NotImplemented
        if isinstance(other, float):
            return float(self) + other
        if not isinstance(other, int | Fraction | Surd):
            return NotImplemented
        total = dict(self.parts)
        for d, c in _parts(other):
            total[d] = total.get(d, Fraction(0)) + c
        return _number(total)

    def __mul__(self, other: Number) -> Number:
        if isinstance(other, Real):
            return NotImplemented
        if isinstance(other, float):
            return float(self) * other
        if not isinstance(other, int | Fraction | Surd):
            return NotImplemented
        total: dict[int, Fraction] = {}
        for d, c in self.parts:
            for e, b in _parts(other):
                common = math.gcd(d, e)
                rest = d * e // common**2
                total[rest] = total.get(rest, Fraction(0)) + b * c * common
        return _number(total)

    __radd__ = __add__
    __rmul__ = __mul__

    def __sub__(self, other: Number) -> Number:
        return self + -other

    def __rsub__(self, other: Number) -> Number:
        return -self + other

    def __truediv__(self, other: Number) -> Number:
        if isinstance(other, Real):
            return NotImplemented
        if isinstance(other, int | Fraction):
            return self * Fraction(1, other)
        return float(self) / float(other)

    def __rtruediv__(self, other: Number) -> Number:
        return float(other) / float(self)


def _parts(x: Number) -> tuple[tuple[int, Fraction], ...]:
    return x.parts if isinstance(x, Surd) else ((1, Fraction(x)),)


def _number(parts: dict[int, Fraction]) -> Number:
    kept = tuple(sorted((d, c) for d, c in parts.items() if c))
    if not kept:
        return 0
    return kept[0][1] if [d for d, _ in kept] == [1] else Surd(kept)


@cache
def recognised(value: float | Fraction, eps: float = 2.0**-52) -> Number:
    """The rational or root of a rational that a float is, to rounding in units of ``eps``; else the float itself."""
    if isinstance(value, Fraction) or not math.isfinite(value):
        return value
    found = simple_fraction(value, 4 * eps, DENOMINATOR)
    if found is not None:
        return found
    square = simple_fraction(value * value, 8 * eps, DENOMINATOR) if 2**-26 < abs(value) < 2**26 else None
    return root(square) * (1 if value > 0 else -1) if square else value


def root(x: Fraction) -> Number:
    """The square root of a positive rational."""
    inside, outside = x.numerator * x.denominator, 1
    for prime, power in sp.factorint(inside).items():
        outside *= int(prime) ** (power // 2)
    return _number({inside // outside**2: Fraction(outside, x.denominator)})
