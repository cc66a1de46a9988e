"""Fractions that floats stand for."""

from __future__ import annotations

import math
from fractions import Fraction

_LARGE = 2.0**26  # above, fractions are too close to each other to be told apart
_EXACT = 2.0**44  # up to it, few floats are integers by chance


def simple_fraction(value: float, eps: float, denominator: int) -> Fraction | None:
    """The fraction of small denominator, times a power of two, that a float is to a relative ``eps``, if there is one.

    Small denominators come first: a float next to an integer is that integer, and not the fraction that it is.
    """
    if value == 0 or not math.isfinite(value):
        return Fraction(0) if value == 0 else None
    for shift in (math.frexp(value)[1], 0):
        exact, bound = Fraction(value) / Fraction(2) ** shift, 1
        while bound <= denominator and (shift or abs(value) < _LARGE):
            found = exact.limit_denominator(bound)
            if found != 0 and abs(found - exact) <= eps * abs(exact):
                return found * Fraction(2) ** shift
            bound *= 4
    return Fraction(value) if value.is_integer() and abs(value) < _EXACT else None
