"""The instructions of a tensor program (theory, section 1), as frozen records.

An instruction knows its attributes, checks its operands and infers the axes of its value. Every
value keeps its width axis in place among the finite ones, so that an instruction means the same
torch operation at finite width, on particles and in the reader's head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tpcompile.errors import ProgramError
from tpcompile.ir.types import Dims, Width, broadcast, dims_text, kind, width_positions
from tpcompile.laws import Law


@dataclass(frozen=True)
class Op:
    """Base of all instructions. Traits: ``pointwise`` acts coordinate by coordinate, ``linear`` in each operand."""

    mnemonic: ClassVar[str]
    pointwise: ClassVar[bool] = False
    linear: ClassVar[bool] = False

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        """Axes of the value; ProgramError if the operands do not fit."""
        raise NotImplementedError


def _expect(condition: bool, op: Op, what: str, operands: tuple[Dims, ...]) -> None:
    if not condition:
        found = " ".join(dims_text(d) for d in operands)
        raise ProgramError(f"{op.mnemonic}: expected {what}, found {found or 'no operands'}")


@dataclass(frozen=True)
class Data(Op):
    """A finite constant tensor of the program's data section (inputs, targets, constants of the model)."""

    mnemonic: ClassVar[str] = "data"
    name: str
    shape: tuple[int, ...]

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        _expect(not operands, self, "no operands", operands)
        return self.shape


@dataclass(frozen=True)
class Const(Op):
    """A number."""

    mnemonic: ClassVar[str] = "const"
    value: float

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        _expect(not operands, self, "no operands", operands)
        return ()


@dataclass(frozen=True)
class Init(Op):
    """A parameter at initialisation without its power of n.

    A scalar or vector has entries of the law; a matrix has independent centred entries of standard
    deviation ``law.std / sqrt(n)``, whatever its ratio (universality: only the variance matters). A matrix may have
    finite axes anywhere beside its two growing ones (the offsets of a convolution): it is an independent
    matrix for each of their indices.
    """

    mnemonic: ClassVar[str] = "init"
    name: str
    law: Law
    dims: Dims

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        _expect(not operands, self, "no operands", operands)
        return self.dims


@dataclass(frozen=True)
class MatMul(Op):
    """``W x`` or ``W^T x`` for an initial matrix W: Z = Ẑ + Ż. The width axis of x is replaced in place.

    A matrix with finite axes F applies ``W_f`` to ``x[f]``: the first axes of x are F, in the order of the matrix.
    """

    mnemonic: ClassVar[str] = "matmul"
    linear: ClassVar[bool] = True
    transpose: bool

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        _expect(len(operands) == 2 and kind(operands[0]) == "matrix", self, "a matrix and a vector", operands)
        matrix, x = operands
        rows, columns = (matrix[i] for i in width_positions(matrix))
        out, into = (columns, rows) if self.transpose else (rows, columns)
        finite = tuple(d for d in matrix if isinstance(d, int))
        _expect(x[: len(finite)] == finite, self, f"the matrix's finite axes {finite} first", operands)
        _expect([d for d in x if isinstance(d, Width)] == [into], self, f"a vector of width {into}", operands)
        return tuple(out if isinstance(d, Width) else d for d in x)


@dataclass(frozen=True)
class Map(Op):
    """A pointwise function of one value: the derivative of that order of a named nonlinearity."""

    mnemonic: ClassVar[str] = "map"
    pointwise: ClassVar[bool] = True
    fn: str
    order: int = 0
    params: tuple[tuple[str, Any], ...] = ()

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        _expect(len(operands) == 1 and kind(operands[0]) != "matrix", self, "one vector or scalar", operands)
        return operands[0]


@dataclass(frozen=True)
class Sum(Op):
    """``sum_i coefficient_i x_i`` with broadcasting; one n-ary node, never multiplied out."""

    mnemonic: ClassVar[str] = "sum"
    pointwise: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    coefficients: tuple[float, ...]

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        _expect(len(operands) == len(self.coefficients) > 0, self, "one coefficient an operand", operands)
        return _broadcast(self, operands)


@dataclass(frozen=True)
class Mul(Op):
    """Pointwise product with broadcasting."""

    mnemonic: ClassVar[str] = "mul"
    pointwise: ClassVar[bool] = True

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        _expect(len(operands) > 1, self, "two operands or more", operands)
        return _broadcast(self, operands)


def _broadcast(op: Op, operands: tuple[Dims, ...]) -> Dims:
    try:
        dims = broadcast(*operands)
    except ValueError:
        dims = None
    _expect(dims is not None and kind(dims) != "matrix", op, "operands that broadcast to a vector or scalar", operands)
    assert dims is not None
    return dims


@dataclass(frozen=True)
class Contract(Op):
    """Einstein sum over named axes. A contracted width axis is averaged: this is Moment (theory, section 1)."""

    mnemonic: ClassVar[str] = "contract"
    spec: str

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        inputs, out = split_spec(self.spec)
        _expect(len(inputs) == len(operands), self, f"{len(inputs)} operands for {self.spec}", operands)
        sizes: dict[str, Any] = {}
        for letters, dims in zip(inputs, operands, strict=True):
            _expect(len(letters) == len(dims), self, f"axes {letters} of {self.spec}", operands)
            for letter, dim in zip(letters, dims, strict=True):
                _expect(sizes.setdefault(letter, dim) == dim, self, f"equal axes '{letter}' in {self.spec}", operands)
        widths = [letter for letter, dim in sizes.items() if isinstance(dim, Width)]
        _expect(len(widths) <= 1 and set(out) <= set(sizes), self, f"at most one width axis in {self.spec}", operands)
        return tuple(sizes[letter] for letter in out)

    def contracted_width(self, operands: tuple[Dims, ...]) -> Width | None:
        """The width axis that is averaged over, if any."""
        inputs, out = split_spec(self.spec)
        for letters, dims in zip(inputs, operands, strict=True):
            for letter, dim in zip(letters, dims, strict=True):
                if isinstance(dim, Width) and letter not in out:
                    return dim
        return None


@dataclass(frozen=True)
class Gaussian(Contract):
    """``n^(-1/2)`` times a sum over the width whose summands have mean zero: a Gaussian scalar (theory, section 5)."""

    mnemonic: ClassVar[str] = "gaussian"

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        dims = super().infer(operands)
        _expect(self.contracted_width(operands) is not None, self, "a contracted width axis", operands)
        return dims


@dataclass(frozen=True)
class Fluctuation(Op):
    """A scalar's deviation from its limit, scaled to order one (``n^(1/2)`` times it for a moment).

    Carried so that it can cancel, or meet a sum that vanishes; no evaluator gives it a law. Operands after the
    first are what the deviation comes from, where the scalar alone does not tell.
    """

    mnemonic: ClassVar[str] = "fluctuation"

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        _expect(bool(operands) and all(kind(d) == "scalar" for d in operands), self, "scalars", operands)
        return operands[0]


def split_spec(spec: str) -> tuple[list[str], str]:
    """``"bi,ki->bk"`` to ``(["bi", "ki"], "bk")``."""
    left, _, out = spec.partition("->")
    return left.split(","), out


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
            _expect(rest == first[: self.axis] + first[self.axis + 1 :], self, "equal other axes", operands)
            size = dims[self.axis]
            _expect(isinstance(size, int), self, "a finite axis", operands)
            assert isinstance(size, int)
            total += size
        _expect(bool(operands), self, "an operand", operands)
        return (*first[: self.axis], total, *first[self.axis + 1 :])


@dataclass(frozen=True)
class View(Op):
    """Finite axes split and merged; width axes stay as they are, in order."""

    mnemonic: ClassVar[str] = "view"
    linear: ClassVar[bool] = True
    dims: Dims

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        _expect(len(operands) == 1, self, "one operand", operands)
        _expect(
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
        _expect(isinstance(width, Width) and self.parts > 1, self, "a width axis and two parts or more", operands)
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
        _expect(len(pair) == 2, self, "two neighbouring axes", operands)
        width, parts = pair if self.inner else pair[::-1]
        _expect(isinstance(width, Width) and isinstance(parts, int), self, "a width axis and a finite one", operands)
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
        _expect(
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
        _expect(
            len(operands) == 1 and _broadcast(self, (operands[0], self.dims)) == self.dims,
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
        _expect(isinstance(size, int), self, "a finite axis", operands)
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
        _expect(x[self.axis] == length, self, f"an axis of length {length}", operands)
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
        _expect(len(operands) == 2 and kind(operands[1]) == "scalar", self, "a value and an index", operands)
        x, index = operands
        _expect(self.axis < len(x) and isinstance(x[self.axis], int), self, f"a finite axis {self.axis}", operands)
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
        _expect(len(operands) == 2 and kind(operands[1]) == "scalar", self, "a value and an index", operands)
        x, index = operands
        end = self.axis + self.rank
        _expect(x[self.axis : end] == index, self, f"the index's axes from axis {self.axis} on", operands)
        return (*x[: self.axis], self.size, *x[end:])


@dataclass(frozen=True)
class Finite(Op):
    """Any continuous ATen operation on scalars (loss, softmax over a finite axis, ...): the same function in the limit.

    ``args`` is the ATen argument list in which ``("%", i)`` stands for operand i; ``index`` picks one
    of several results; ``shape`` is that of the result.
    """

    mnemonic: ClassVar[str] = "finite"
    target: str
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    index: int | None
    shape: tuple[int, ...]

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        _expect(all(kind(d) == "scalar" for d in operands), self, "scalars", operands)
        return self.shape


OPS: dict[str, type[Op]] = {
    cls.mnemonic: cls
    for cls in (
        Data,
        Const,
        Init,
        MatMul,
        Map,
        Sum,
        Mul,
        Contract,
        Gaussian,
        Fluctuation,
        Concat,
        View,
        SplitWidth,
        MergeWidth,
        Permute,
        Expand,
        Slice,
        Unslice,
        Gather,
        Scatter,
        Finite,
    )
}
