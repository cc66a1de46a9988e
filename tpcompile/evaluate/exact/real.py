"""Real numbers of many digits, that mix with integers, rationals and floats (taken as they stand)."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import mpmath

DIGITS = 60
"""Decimal digits of a :class:`Real`, within :func:`precisely`."""


def precisely() -> Any:
    """The context to compute in."""
    return mpmath.workdps(DIGITS)


@dataclass(frozen=True, slots=True)
class Real:
    """A number of many digits, with ordinary arithmetic; whatever it meets becomes one."""

    value: Any  # mpmath.mpf

    @staticmethod
    def of(x: Any) -> Real:
        """Any number, exact ones included."""
        if isinstance(x, Real):
            return x
        if isinstance(x, int | float):
            return Real(mpmath.mpf(x))
        if isinstance(x, Fraction):
            return Real(mpmath.mpf(x.numerator) / x.denominator)
        terms = (mpmath.sqrt(d) * c.numerator / c.denominator for d, c in x.parts)  # of square roots
        return Real(mpmath.fsum(terms))

    def fraction(self) -> Fraction:
        """Exactly, as a rational."""
        sign, mantissa, exponent, _ = self.value._mpf_
        return (-1) ** sign * Fraction(int(mantissa)) * Fraction(2) ** exponent

    def __float__(self) -> float:
        return float(self.value)

    def __eq__(self, other: object) -> bool:
        return self.value == Real.of(other).value

    def __hash__(self) -> int:
        return hash(self.value)

    def __neg__(self) -> Real:
        return Real(-self.value)

    def __add__(self, other: Any) -> Real:
        return Real(self.value + Real.of(other).value)

    def __sub__(self, other: Any) -> Real:
        return Real(self.value - Real.of(other).value)

    def __rsub__(self, other: Any) -> Real:
        return Real(Real.of(other).value - self.value)

    def __mul__(self, other: Any) -> Real:
        return Real(self.value * Real.of(other).value)

    def __truediv__(self, other: Any) -> Real:
        return Real(self.value / Real.of(other).value)

    def __rtruediv__(self, other: Any) -> Real:
        return Real(Real.of(other).value / self.value)

    __radd__ = __add__
    __rmul__ = __mul__
