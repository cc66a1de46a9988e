"""The instructions of a tensor program (theory, section 1), as frozen records.

An instruction knows its attributes, checks its operands and infers the axes of its value. Every
value keeps its width axis in place among the finite ones, so that an instruction means the same
torch operation at finite width, on particles and in the reader's head.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from tpcompile.ir.movement import (
    Concat,
    Expand,
    Gather,
    MergeWidth,
    Permute,
    Scatter,
    Slice,
    SplitWidth,
    Unslice,
    View,
)
from tpcompile.ir.op import Op, broadcast_dims, expect
from tpcompile.ir.types import Dims, Width, kind, width_positions
from tpcompile.laws import Law


@dataclass(frozen=True)
class Data(Op):
    """A finite constant tensor of the program's data section (inputs, targets, constants of the model)."""

    mnemonic: ClassVar[str] = "data"
    name: str
    shape: tuple[int, ...]

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        expect(not operands, self, "no operands", operands)
        return self.shape


@dataclass(frozen=True)
class Const(Op):
    """A number."""

    mnemonic: ClassVar[str] = "const"
    value: float

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        expect(not operands, self, "no operands", operands)
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
        expect(not operands, self, "no operands", operands)
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
        expect(len(operands) == 2 and kind(operands[0]) == "matrix", self, "a matrix and a vector", operands)
        matrix, x = operands
        rows, columns = (matrix[i] for i in width_positions(matrix))
        out, into = (columns, rows) if self.transpose else (rows, columns)
        finite = tuple(d for d in matrix if isinstance(d, int))
        expect(x[: len(finite)] == finite, self, f"the matrix's finite axes {finite} first", operands)
        expect([d for d in x if isinstance(d, Width)] == [into], self, f"a vector of width {into}", operands)
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
        expect(len(operands) == 1, self, "one value", operands)
        return operands[0]


@dataclass(frozen=True)
class Sum(Op):
    """``sum_i coefficient_i x_i`` with broadcasting; one n-ary node, never multiplied out."""

    mnemonic: ClassVar[str] = "sum"
    pointwise: ClassVar[bool] = True
    linear: ClassVar[bool] = True
    coefficients: tuple[float, ...]

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        expect(len(operands) == len(self.coefficients) > 0, self, "one coefficient an operand", operands)
        return broadcast_dims(self, operands)


@dataclass(frozen=True)
class Mul(Op):
    """Pointwise product with broadcasting."""

    mnemonic: ClassVar[str] = "mul"
    pointwise: ClassVar[bool] = True

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        expect(len(operands) > 1, self, "two operands or more", operands)
        return broadcast_dims(self, operands)


@dataclass(frozen=True)
class Contract(Op):
    """Einstein sum over named axes. A contracted width axis is averaged: this is Moment (theory, section 1)."""

    mnemonic: ClassVar[str] = "contract"
    spec: str

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        inputs, out = split_spec(self.spec)
        expect(len(inputs) == len(operands), self, f"{len(inputs)} operands for {self.spec}", operands)
        sizes: dict[str, Any] = {}
        for letters, dims in zip(inputs, operands, strict=True):
            expect(len(letters) == len(dims), self, f"axes {letters} of {self.spec}", operands)
            for letter, dim in zip(letters, dims, strict=True):
                expect(sizes.setdefault(letter, dim) == dim, self, f"equal axes '{letter}' in {self.spec}", operands)
        widths = [letter for letter, dim in sizes.items() if isinstance(dim, Width)]
        pairs = any(kind(d) == "matrix" for d in operands)
        expect(len(widths) <= 1 + pairs and set(out) <= set(sizes), self, f"one width axis in {self.spec}", operands)
        return tuple(sizes[letter] for letter in out)

    def contracted_width(self, operands: tuple[Dims, ...]) -> Width | None:
        """The width axis that is averaged over, if any; the first of two."""
        return next(iter(self.contracted_widths(operands)), None)

    def contracted_widths(self, operands: tuple[Dims, ...]) -> tuple[Width, ...]:
        """The width axes that are averaged over."""
        inputs, out = split_spec(self.spec)
        found = {
            letter: dim
            for letters, dims in zip(inputs, operands, strict=True)
            for letter, dim in zip(letters, dims, strict=True)
            if isinstance(dim, Width) and letter not in out
        }
        return tuple(found.values())


@dataclass(frozen=True)
class Outer(Op):
    """``sum_k u_k v_k^T`` as a value on pairs of coordinates, of which entrywise functions may be taken.

    u has dims ``(*finite, K, rows)``, v ``(*finite, K, columns)``. Rows and columns are independent copies in the
    limit, also where they are of the same width (theory, section 1, last row: nonlinear outer products).
    """

    mnemonic: ClassVar[str] = "outer"
    linear: ClassVar[bool] = True

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        fits = len(operands) == 2 and all(kind(d) == "vector" and len(d) >= 2 for d in operands)
        expect(fits and operands[0][:-1] == operands[1][:-1], self, "two vectors of equal finite axes", operands)
        return (*operands[0][:-2], operands[0][-1], operands[1][-1])


@dataclass(frozen=True)
class Entries(Op):
    """The entries of an initial matrix times ``n^(1/2)`` as a value on pairs of coordinates.

    In the limit a third copy, independent of the variables of its row and its column, on which a single entry has an
    influence of ``n^(-1/2)`` only. Made for sizes: no evaluator gives it a law.
    """

    mnemonic: ClassVar[str] = "entries"
    linear: ClassVar[bool] = True

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        expect(len(operands) == 1 and kind(operands[0]) == "matrix", self, "a matrix", operands)
        return operands[0]


@dataclass(frozen=True)
class Gaussian(Contract):
    """``n^(-1/2)`` times a sum over the width whose summands have mean zero: a Gaussian scalar (theory, section 5)."""

    mnemonic: ClassVar[str] = "gaussian"

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        dims = super().infer(operands)
        expect(self.contracted_width(operands) is not None, self, "a contracted width axis", operands)
        return dims


@dataclass(frozen=True)
class Fluctuation(Op):
    """A scalar's deviation from its limit, scaled to order one (``n^(1/2)`` times it for a moment).

    Carried so that it can cancel, or meet a sum that vanishes; no evaluator gives it a law. Operands after the
    first are what the deviation comes from, where the scalar alone does not tell; ``order`` counts its parts, in
    descending powers of n.
    """

    mnemonic: ClassVar[str] = "fluctuation"
    order: int = 1

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        expect(bool(operands) and all(kind(d) == "scalar" for d in operands), self, "scalars", operands)
        return operands[0]


def split_spec(spec: str) -> tuple[list[str], str]:
    """``"bi,ki->bk"`` to ``(["bi", "ki"], "bk")``."""
    left, _, out = spec.partition("->")
    return left.split(","), out


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
        expect(all(kind(d) == "scalar" for d in operands), self, "scalars", operands)
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
        Outer,
        Entries,
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
