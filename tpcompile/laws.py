"""Laws of the entries of parameters at initialisation, each with its power of the width.

An entry of a parameter is ``n**width_exponent`` times an independent draw of the law. ``n`` is the
argument of the user's factory. The laws are what the initialisation recorder produces and what
the user passes as ``init={"name": tp.Normal(std=...)}``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True)
class Normal:
    """``n**width_exponent * N(mean, std**2)``, independent entries."""

    std: float
    mean: float = 0.0
    width_exponent: Fraction = Fraction(0)


@dataclass(frozen=True)
class Uniform:
    """``n**width_exponent * U(low, high)``, independent entries."""

    low: float
    high: float
    width_exponent: Fraction = Fraction(0)


@dataclass(frozen=True)
class TruncatedNormal:
    """``n**width_exponent`` times a normal law with ``mean`` and ``std`` conditioned on ``[low, high]``."""

    std: float
    low: float
    high: float
    mean: float = 0.0
    width_exponent: Fraction = Fraction(0)


@dataclass(frozen=True)
class Constant:
    """Every entry is ``n**width_exponent * value``."""

    value: float
    width_exponent: Fraction = Fraction(0)


@dataclass(frozen=True)
class Orthogonal:
    """``n**width_exponent * gain`` times a Haar (semi-)orthogonal matrix."""

    gain: float = 1.0
    width_exponent: Fraction = Fraction(0)


Law = Normal | Uniform | TruncatedNormal | Constant | Orthogonal


@dataclass(frozen=True)
class Pieces:
    """Consecutive slices of one axis of a parameter, each with a law of its own.

    A row of zeros in an embedding (``padding_idx``), the bias of a forget gate. ``ends[k]`` is where slice k ends, as
    ``(c, p)`` for ``c * n**p``; the first slice starts at 0, each other where the one before it ends.
    """

    axis: int
    ends: tuple[tuple[Fraction, int], ...]
    laws: tuple[Law, ...]

    @property
    def width_exponent(self) -> Fraction:
        """The largest power of n among the slices that are not zero."""
        return max(Fraction(law.width_exponent) for law in self.laws if law != Constant(0.0))


ParameterLaw = Law | Pieces


def mean_and_std(law: Law) -> tuple[float, float]:
    """Mean and standard deviation of an entry without its power of n (an orthogonal law has none)."""
    match law:
        case Normal(std=std, mean=mean):
            return mean, std
        case Uniform(low=low, high=high):
            return (low + high) / 2, (high - low) / math.sqrt(12)
        case TruncatedNormal(std=std, low=low, high=high, mean=mean):
            return _truncated_moments(mean, std, low, high)
        case Constant(value=value):
            return value, 0.0
        case Orthogonal():
            raise ValueError("the entries of an orthogonal matrix are not independent")


def is_symmetric(law: Law) -> bool:
    """True if ``-w`` has the law of ``w`` (theory, section 4); the zero constant counts."""
    match law:
        case Normal(mean=mean):
            return mean == 0.0
        case Uniform(low=low, high=high):
            return low == -high
        case TruncatedNormal(low=low, high=high, mean=mean):
            return mean == 0.0 and low == -high
        case Constant(value=value):
            return value == 0.0
        case Orthogonal():
            return True


def _truncated_moments(mean: float, std: float, low: float, high: float) -> tuple[float, float]:
    def pdf(x: float) -> float:
        return 0.0 if math.isinf(x) else math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    def cdf(x: float) -> float:
        return 0.5 * (1 + math.erf(x / math.sqrt(2)))

    a, b = (low - mean) / std, (high - mean) / std
    mass = cdf(b) - cdf(a)
    shift = (pdf(a) - pdf(b)) / mass
    edge = (0.0 if math.isinf(a) else a * pdf(a)) - (0.0 if math.isinf(b) else b * pdf(b))
    return mean + std * shift, std * math.sqrt(1 + edge / mass - shift * shift)
