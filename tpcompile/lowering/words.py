"""Letters for the atoms of torch axes: the words of an Einstein sum."""

from __future__ import annotations

import string
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from tpcompile.ir import Dim, Node, Width
from tpcompile.lowering.value import Axes


@dataclass(frozen=True)
class Words:
    """The axes of a product ``M x``, a letter each: the finite ones of M, its two growing ones, those of x."""

    m: str
    finite: str
    into: str  # contracted
    free: str  # of the result
    x: str
    dims: Mapping[str, Dim]

    @property
    def rest(self) -> str:
        """Axes of x that M has not, the contracted one among them."""
        return "".join(letter for letter in self.x if letter not in self.finite)

    @property
    def result(self) -> str:
        """Axes of the product: the finite ones of M, then those of x with the contracted one replaced in place."""
        return self.finite + self.rest.replace(self.into, self.free)

    @property
    def fresh(self) -> str:
        """A letter for the rank axis."""
        return next(letter for letter in string.ascii_uppercase if letter not in self.dims)


class Letters:
    """One letter for each atom of each label."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], str] = {}

    def word(self, labels: str, axes: Axes) -> str:
        return "".join(
            self._letter(label, i) for label, axis in zip(labels, axes, strict=True) for i in range(len(axis))
        )

    def fresh(self) -> str:
        return self._letter("\0", len(self._of))

    def _letter(self, label: str, atom: int) -> str:
        return self._of.setdefault((label, atom), string.ascii_letters[len(self._of)])


def ratio_of(node: Node) -> Fraction:
    """Ratio of the width axis, which stands last."""
    width = node.dims[-1]
    assert isinstance(width, Width)
    return width.ratio
