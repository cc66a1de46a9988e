"""Sizes of values as powers of n: what a lowering decides of them, and what it leaves open."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction

from tpcompile.lowering.functions import UNKNOWN
from tpcompile.lowering.value import HALF, AnyValue, MatrixValue, largest

Exponent = Fraction | float  # -inf for exactly zero


@dataclass(frozen=True)
class Size:
    """Root-mean-square entries of a value, ``Θ(n**exponent)``; zero has the exponent -inf.

    Where the series does not decide it, ``exponent`` is None and the value is at most ``O(n**bound)``
    (``bound`` inf: nothing is known), for ``reason``. ``either`` are its exponents in the two cases of a mean
    that may be zero by its number: if it is not, and if it is.
    """

    exponent: Exponent | None
    bound: Exponent
    reason: str = ""
    either: tuple[Exponent, Exponent] | None = None

    @property
    def exact(self) -> bool:
        """True if the exponent is decided."""
        return self.exponent is not None

    def at_most(self, e: Fraction | int) -> bool:
        """True if the value is certainly ``O(n**e)``."""
        return self.bound <= e

    def __str__(self) -> str:
        if self.either is not None:
            return " or ".join("0 (exactly)" if e == -math.inf else str(e) for e in self.either)
        if self.exponent is None:
            return "?" if self.bound == math.inf else f"<= {self.bound}"
        return "0 (exactly)" if self.exponent == -math.inf else str(self.exponent)


ZERO = Size(-math.inf, -math.inf)


def size_of(value: AnyValue, reason: str = "") -> Size:
    """The size of the entries of a value."""
    if isinstance(value, MatrixValue):
        known = [t.exponent - HALF for t in value.inits] + [t.exponent for t in value.outers]
        lead = largest(*known, *(e for e, _ in value.entries))
    else:
        lead = value.terms[0][0] if value.terms else None
    rest = value.remainder
    if isinstance(value, MatrixValue) and value.composed:
        return Size(None, math.inf, "a product of matrices")
    if lead is not None and (rest is None or lead > rest):
        return Size(lead, lead)
    if lead is None and rest is None:
        return ZERO
    assert rest is not None
    bound = max(rest, lead) if lead is not None else rest
    return Size(None, math.inf if bound > UNKNOWN / 1000 else bound, reason or "the kept terms of its series cancel")


def scaled(size: Size, by: Fraction) -> Size:
    """The size of a value times ``n**by``."""
    return replace(size, exponent=None if size.exponent is None else size.exponent + by, bound=size.bound + by)


def better(a: Size, b: Size) -> Size:
    """What two lowerings of different depth say of one value."""
    if a.exact or (not b.exact and a.bound <= b.bound):
        return a
    return b
