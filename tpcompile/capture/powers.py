"""Recognise sizes and numbers as powers of the width by comparing the probe widths."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from tpcompile.capture.graph import Binomial, Scaled, Size

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


def binomial_of(values: Sequence[float], widths: Sequence[int]) -> Binomial | None:
    """``c * n**e * (n + s)`` or ``c * n**e / (n + s)`` with a half-integer e, or None."""
    n = np.array(widths, dtype=float)
    y = np.array(values, dtype=float)
    if len(n) < 3 or not np.isfinite(y).all() or not y.all():
        return None
    for inverse, half in itertools.product((True, False), sorted(range(-8, 9), key=abs)):
        line = n ** (half / 2) / y if inverse else y / n ** (half / 2)  # proportional to n + s
        slope = (line[-1] - line[0]) / (n[-1] - n[0])
        offset = line[0] - slope * n[0]
        if slope and np.allclose(line, slope * n + offset, rtol=1e-9, atol=0.0):
            power = Fraction(half, 2)
            if inverse:
                power = -power
            return Binomial(Scaled(float(slope), power + 1), Scaled(float(offset), power), inverse)
    return None
