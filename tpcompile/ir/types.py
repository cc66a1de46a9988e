"""Axes of IR values: finite lengths, and width axes that grow with n in a fixed ratio."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, order=True)
class Width:
    """An axis of length ``ratio * n``."""

    ratio: Fraction = Fraction(1)

    def __str__(self) -> str:
        top = "n" if self.ratio.numerator == 1 else f"{self.ratio.numerator}n"
        return top if self.ratio.denominator == 1 else f"{top}/{self.ratio.denominator}"


Dim = int | Width
Dims = tuple[Dim, ...]


def width_positions(dims: Dims) -> tuple[int, ...]:
    """Positions of the width axes."""
    return tuple(i for i, d in enumerate(dims) if isinstance(d, Width))


def width_of(dims: Dims) -> Width | None:
    """The one width axis of a vector, None of a scalar."""
    for d in dims:
        if isinstance(d, Width):
            return d
    return None


def kind(dims: Dims) -> str:
    """``"scalar"``, ``"vector"`` or ``"matrix"`` by the number of width axes (theory, section 1)."""
    return ("scalar", "vector", "matrix")[len(width_positions(dims))]


def broadcast(*shapes: Dims) -> Dims:
    """Right-aligned broadcasting; ValueError where two axes do not fit."""
    rank = max((len(s) for s in shapes), default=0)
    out: list[Dim] = []
    for i in range(rank):
        axis: Dim = 1
        for s in shapes:
            j = i - (rank - len(s))
            if j < 0 or s[j] == 1 or s[j] == axis:
                continue
            if axis != 1:
                raise ValueError(f"axes {axis} and {s[j]} do not broadcast")
            axis = s[j]
        out.append(axis)
    return tuple(out)


def dims_text(dims: Dims) -> str:
    """``[3, n, n/2]``."""
    return "[" + ", ".join(str(d) for d in dims) + "]"


def parse_dims(text: str) -> Dims:
    """Inverse of :func:`dims_text`."""
    inner = text.strip()[1:-1].strip()
    return tuple(_parse_dim(part.strip()) for part in inner.split(",")) if inner else ()


def _parse_dim(text: str) -> Dim:
    if "n" not in text:
        return int(text)
    top, _, bottom = text.partition("/")
    return Width(Fraction(int(top[:-1] or "1"), int(bottom or "1")))
