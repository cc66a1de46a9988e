"""Recognise sizes and numbers as powers of the width by comparing the probe widths."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from tpcompile.capture.graph import Scaled, Size

MAX_DENOMINATOR = 12
_MAX_SIZE_POWER = 4


def size_of(lengths: Sequence[int], widths: Sequence[int]) -> Size | None:
    """``c * n**p`` with an integer p, or None."""
    for power in range(_MAX_SIZE_POWER + 1):
        ratios = {Fraction(length, width**power) for length, width in zip(lengths, widths, strict=True)}
        if len(ratios) == 1:
            return Size(ratios.pop(), power)
        if 0 in lengths:
            return None
    return None


def power_of(values: Sequence[float], widths: Sequence[int], tolerance: float = 1e-9) -> Scaled | None:
    """``c * n**e`` with a fraction e of denominator at most 12, or None."""
    first, last = values[0], values[-1]
    if all(v == first for v in values):
        return Scaled(float(first), Fraction(0))
    if any(v == 0 or (v > 0) != (first > 0) or not math.isfinite(v) for v in values):
        return None
    exact = math.log(last / first) / math.log(widths[-1] / widths[0])
    exponent = Fraction(exact).limit_denominator(MAX_DENOMINATOR)
    coefficients = [v / n ** float(exponent) for v, n in zip(values, widths, strict=True)]
    if any(abs(c - coefficients[0]) > tolerance * abs(coefficients[0]) for c in coefficients):
        return None
    return Scaled(float(f"{coefficients[0]:.15g}"), exponent)
