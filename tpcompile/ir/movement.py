"""Instructions that move entries and compute nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tpcompile.ir.op import Op, broadcast_dims, expect
from tpcompile.ir.types import Dims, Width, dims_text, kind


@dataclass(frozen=True)
class Concat(Op):
    """Operands joined along a finite axis; a chain of these is the history of a weight's updates."""

    mnemonic: ClassVar[str] = "concat"
    linear: ClassVar[bool] = True
    axis: int

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        total = 0
        first = operands[0] if operands else ()
        for dims in operands:
            rest = dims[: self.axis] + dims[self.axis + 1 :]
            expect(rest == first[: self.axis] + first[self.axis + 1 :], self, "equal other axes", operands)
            size = dims[self.axis]
            expect(isinstance(size, int), self, "a finite axis", operands)
            assert isinstance(size, int)
            total += size
        expect(bool(operands), self, "an operand", operands)
        return (*first[: self.axis], total, *first[self.axis + 1 :])


@dataclass(frozen=True)
class View(Op):
    """Finite axes split and merged; width axes stay as they are, in order."""

    mnemonic: ClassVar[str] = "view"
    linear: ClassVar[bool] = True
    dims: Dims

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        expect(len(operands) == 1, self, "one operand", operands)
        expect(
            _segments(operands[0]) == _segments(self.dims), self, f"as many entries as {dims_text(self.dims)}", operands
        )
        return self.dims


def _segments(dims: Dims) -> list[Any]:
    """Products of the finite runs between width axes: what a view must keep."""
    out: list[Any] = [1]
    for d in dims:
        if isinstance(d, Width):
            out += [d, 1]
        else:
            out[-1] *= d
    return out


@dataclass(frozen=True)
class SplitWidth(Op):
    """Blocks of a width axis as a finite axis: ``Width(r)`` becomes ``(parts, Width(r / parts))``.

    ``inner`` True puts the finite axis behind the width: ``(Width(r / parts), parts)``. At finite width both are
    torch views: a block holds neighbouring coordinates, or every ``parts``-th one where ``inner``. In the limit the
    coordinates of different blocks are different draws of Z^x, each block a vector on a narrower width.
    """

    mnemonic: ClassVar[str] = "splitwidth"
    linear: ClassVar[bool] = True
    axis: int
    parts: int
    inner: bool

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        (x,) = operands
        width = x[self.axis]
        expect(isinstance(width, Width) and self.parts > 1, self, "a width axis and two parts or more", operands)
        assert isinstance(width, Width)
        narrow = Width(width.ratio / self.parts)
        pair = (narrow, self.parts) if self.inner else (self.parts, narrow)
        return (*x[: self.axis], *pair, *x[self.axis + 1 :])


@dataclass(frozen=True)
class MergeWidth(Op):
    """Inverse of :class:`SplitWidth`: ``(parts, Width(r))`` at ``axis``, or ``(Width(r), parts)`` where ``inner``.

    The coordinates of the merged vector are those of all blocks: a moment of it is the mean over the blocks.
    """

    mnemonic: ClassVar[str] = "mergewidth"
    linear: ClassVar[bool] = True
    axis: int
    inner: bool

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        (x,) = operands
        pair = x[self.axis : self.axis + 2]
        expect(len(pair) == 2, self, "two neighbouring axes", operands)
        width, parts = pair if self.inner else pair[::-1]
        expect(isinstance(width, Width) and isinstance(parts, int), self, "a width axis and a finite one", operands)
        assert isinstance(width, Width)
        assert isinstance(parts, int)
        return (*x[: self.axis], Width(width.ratio * parts), *x[self.axis + 2 :])


@dataclass(frozen=True)
class Permute(Op):
    """Axes reordered."""

    mnemonic: ClassVar[str] = "permute"
    linear: ClassVar[bool] = True
    order: tuple[int, ...]

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        expect(
            len(operands) == 1 and sorted(self.order) == list(range(len(operands[0]))), self, "a permutation", operands
        )
        return tuple(operands[0][i] for i in self.order)


@dataclass(frozen=True)
class Expand(Op):
    """Broadcast to the given axes; a scalar expanded over a width axis is a constant vector."""

    mnemonic: ClassVar[str] = "expand"
    linear: ClassVar[bool] = True
    dims: Dims

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        expect(
            len(operands) == 1 and broadcast_dims(self, (operands[0], self.dims)) == self.dims,
            self,
            "a smaller value",
            operands,
        )
        return self.dims


@dataclass(frozen=True)
class Slice(Op):
    """Entries ``start:stop:step`` of a finite axis."""

    mnemonic: ClassVar[str] = "slice"
    linear: ClassVar[bool] = True
    axis: int
    start: int
    stop: int
    step: int = 1

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        (x,) = operands
        size = x[self.axis]
        expect(isinstance(size, int), self, "a finite axis", operands)
        assert isinstance(size, int)
        length = len(range(size)[self.start : self.stop : self.step])
        return (*x[: self.axis], length, *x[self.axis + 1 :])


@dataclass(frozen=True)
class Unslice(Op):
    """Adjoint of :class:`Slice`: the operand put at ``start:stop:step`` of an axis of zeros of length ``size``."""

    mnemonic: ClassVar[str] = "unslice"
    linear: ClassVar[bool] = True
    axis: int
    start: int
    stop: int
    step: int
    size: int

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        (x,) = operands
        length = len(range(self.size)[self.start : self.stop : self.step])
        expect(x[self.axis] == length, self, f"an axis of length {length}", operands)
        return (*x[: self.axis], self.size, *x[self.axis + 1 :])


@dataclass(frozen=True)
class Gather(Op):
    """Operands x and index: ``x[.., index, ..]`` along a finite axis, zero where the index is -1.

    The index holds integers below the length of the axis, -1 for zero (padding), in any shape: its axes stand in
    place of the axis.
    """

    mnemonic: ClassVar[str] = "gather"
    linear: ClassVar[bool] = True  # in x
    axis: int

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        expect(len(operands) == 2 and kind(operands[1]) == "scalar", self, "a value and an index", operands)
        x, index = operands
        expect(self.axis < len(x) and isinstance(x[self.axis], int), self, f"a finite axis {self.axis}", operands)
        return (*x[: self.axis], *index, *x[self.axis + 1 :])


@dataclass(frozen=True)
class Scatter(Op):
    """Adjoint of :class:`Gather`: operands x and index, entries of x summed at the places of the index.

    The ``rank`` axes of x from ``axis`` on, which are those of the index, become one axis of length ``size``; entries
    with index -1 are dropped.
    """

    mnemonic: ClassVar[str] = "scatter"
    linear: ClassVar[bool] = True  # in x
    axis: int
    size: int
    rank: int

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        expect(len(operands) == 2 and kind(operands[1]) == "scalar", self, "a value and an index", operands)
        x, index = operands
        end = self.axis + self.rank
        expect(x[self.axis : end] == index, self, f"the index's axes from axis {self.axis} on", operands)
        return (*x[: self.axis], self.size, *x[end:])
