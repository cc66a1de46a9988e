"""What a lowering rule works with: values of all kinds under one set of operations."""

from __future__ import annotations

import operator
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch

from tpcompile.analysis.semantics import constant_value
from tpcompile.capture.graph import Binomial, GraphNode, Ref, Scaled, Size
from tpcompile.errors import UnsupportedOperationError
from tpcompile.ir import Dims, Finite, Init, Node, Op, Unslice, Width, reachable
from tpcompile.lowering import families
from tpcompile.lowering.algebra import Algebra
from tpcompile.lowering.axes import merge_finite, refactor
from tpcompile.lowering.contract import Contractions
from tpcompile.lowering.corrections import corrected
from tpcompile.lowering.functions import Functions
from tpcompile.lowering.matrix import Matrices
from tpcompile.lowering.matrix_products import spread
from tpcompile.lowering.pairs import Pairs
from tpcompile.lowering.parts import pieces
from tpcompile.lowering.value import (
    AnyValue,
    Axes,
    Axis,
    MatrixValue,
    Value,
    extent,
    flat,
    has_width,
    is_width,
)

# Functions whose limit is not the function of the limit where they jump; constants may pass.
_DISCONTINUOUS = frozenset(
    (
        *("argmax", "argmin", "sign", "sgn", "round", "floor", "ceil", "trunc", "eq", "ne", "sort", "argsort", "topk"),
        *("bucketize", "nonzero", "unique", "floor_divide", "remainder", "fmod", "frac", "max_pool2d_with_indices"),
    )
)


@dataclass
class Context:
    """The state of one lowering: the algebra, and the graph node at hand."""

    algebra: Algebra
    current: GraphNode
    derivatives: bool = False  # backward operations as derivatives at the input, whatever tensor torch has saved
    beyond: bool = False  # functions of values that grow by their behaviour at infinity
    graph: Mapping[str, GraphNode] = field(default_factory=dict)  # its nodes by name
    maxima: dict[tuple[Any, Any], AnyValue] = field(default_factory=dict)  # where a maximum is taken (rules/maxima.py)
    applied: dict[tuple[str, str, AnyValue], tuple[AnyValue, dict[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.matrices = Matrices(self.algebra)
        self.contractions = Contractions(self.algebra, self.matrices)
        self.functions = Functions(self.algebra, self.beyond)
        self.parts = self.contractions.parts
        self.pairs = Pairs(self.algebra, self.matrices, self.beyond)

    # places and shapes ---------------------------------------------------------------------

    @property
    def place(self) -> str:
        """Where in the user's model the current operation stands."""
        target = "" if self.current.target is operator.getitem else f"{self.current.target} in "
        return f"{target}{self.current.origin}"

    def unsupported(self, what: str, advice: str | None = None) -> UnsupportedOperationError:
        """An error for the operation at hand."""
        return UnsupportedOperationError(what, where=self.place, advice=advice)

    def result_sizes(self) -> list[tuple[Fraction, int]]:
        """Sizes of the result's torch axes as ``(coefficient, power of n)``."""
        return [(s.coefficient, s.power) for s in self.current.shape or ()]

    def result_axes(self, like: Axes = ()) -> Axes:
        """Axes of the result: one atom each, or the atoms of the axis of ``like`` (from the right) of that length."""
        axes = tuple(axis_of(s) for s in self.current.shape or ())
        known = ((),) * (len(axes) - len(like)) + like[max(0, len(like) - len(axes)) :]
        return tuple(b if is_width(a) and extent(a) == extent(b) else a for a, b in zip(axes, known, strict=True))

    def dtype(self, argument: int) -> torch.dtype | None:
        """The dtype of a tensor that the operation at hand is called with; None if it is not known."""
        given = self.current.args[argument] if argument < len(self.current.args) else None
        return self.graph[given.name].dtype if isinstance(given, Ref) and given.name in self.graph else None

    def node(self, op: Op, *operands: Node) -> Node:
        """A node of the program."""
        return self.algebra.builder.node(op, *operands)

    # values --------------------------------------------------------------------------------

    def number(self, x: Any) -> Value:
        """A Python number or a scaled one as a value."""
        if isinstance(x, Scaled):
            return self.algebra.number(x.coefficient, x.exponent)
        if isinstance(x, Binomial):
            total = self.algebra.add((1.0, self.number(x.first)), (1.0, self.number(x.second)))
            return self.functions.apply("reciprocal", total) if x.inverse else total
        return self.algebra.number(float(x))

    def constant(self, node: Node) -> Value:
        """A node of order one that is finite as a value, one axis a dimension."""
        axes = tuple(merge_finite([d]) for d in node.dims)
        return Value(axes, ((Fraction(0), self.algebra.nodes.view(node, flat(axes))),))

    def value(self, x: Any) -> Value:
        """Anything but a matrix as a value."""
        if isinstance(x, MatrixValue):
            raise self.unsupported(
                "an operation on a whole matrix of two growing axes that is neither linear nor a product with a vector"
            )
        return x if isinstance(x, Value) else self.number(x)

    def any(self, x: Any) -> AnyValue:
        """A value or a matrix."""
        return x if isinstance(x, MatrixValue) else self.value(x)

    def filled(self, x: Any) -> AnyValue:
        """The result's shape filled with one number."""
        axes = self.result_axes()
        value = self.number(x)
        if has_width(axes) < 2:
            return self.expand(value, axes)
        if value.is_zero:
            return MatrixValue(axes)
        raise self.unsupported("a matrix of two growing axes filled with a number")

    def known(self, x: Any) -> torch.Tensor | None:
        """The entries of a value that is a constant of finite axes, in the shape of its torch axes; else None."""
        if isinstance(x, int | float):
            return torch.tensor(float(x), dtype=torch.float64)
        if not isinstance(x, Value) or has_width(x.axes) or x.remainder is not None or any(e for e, _ in x.terms):
            return None
        found = constant_value(self.algebra.limit(x), self.algebra.builder.data)
        return None if found is None else found.reshape([length(a) for a in x.axes])

    def data(self, x: torch.Tensor) -> Value:
        """A finite constant; zero and one of it as numbers."""
        axes = tuple(merge_finite([d]) for d in x.shape)
        if x.numel() and bool((x == x.flatten()[0]).all()) and bool(torch.isfinite(x.flatten()[0])):
            return self.algebra.number(float(x.flatten()[0]), axes=axes)
        node = self.algebra.builder.constant(x)
        return Value(axes, ((Fraction(0), self.algebra.nodes.view(node, flat(axes))),))

    # arithmetic ----------------------------------------------------------------------------

    def add(self, a: Any, b: Any) -> AnyValue:
        """``a + b``."""
        a, b = self.any(a), self.any(b)
        if isinstance(a, MatrixValue) or isinstance(b, MatrixValue):
            if not (isinstance(a, MatrixValue) and isinstance(b, MatrixValue)):
                if a.is_zero or b.is_zero:
                    return b if a.is_zero else a
                return self.pairs.combine(a, b, lambda x, y: self.algebra.add((1.0, x), (1.0, y)))
            return self.matrices.add((1.0, a), (1.0, b))
        return self.algebra.add((1.0, a), (1.0, b))

    def negate(self, a: Any) -> AnyValue:
        """``-a``."""
        a = self.any(a)
        return self.matrices.scale(a, -1.0) if isinstance(a, MatrixValue) else self.algebra.scale(a, -1.0)

    def times(self, a: Any, b: Any) -> AnyValue:
        """``a * b`` with broadcasting; two vectors of crossing width axes make an outer product."""
        if isinstance(a, int | float | Scaled | Binomial):
            a, b = b, a
        if isinstance(b, Binomial):
            a, c = self.any(a), self.number(b)
            return self.matrices.scale_by_value(a, c) if isinstance(a, MatrixValue) else self.algebra.mul(a, c)
        if isinstance(b, int | float | Scaled):
            c, e = (b.coefficient, b.exponent) if isinstance(b, Scaled) else (float(b), Fraction(0))
            a = self.any(a)
            return self.matrices.scale(a, c, e) if isinstance(a, MatrixValue) else self.algebra.scale(a, c, e)
        if isinstance(a, MatrixValue) or isinstance(b, MatrixValue):
            m, s = (a, b) if isinstance(a, MatrixValue) else (b, a)
            assert isinstance(m, MatrixValue)
            if isinstance(s, MatrixValue) or flat(s.axes):
                plain = m.low_rank or not self.pairs.has_entries(m)
                diagonal = spread(self.contractions, m, s) if plain and isinstance(s, Value) else None
                return diagonal or self.pairs.combine(m, s, self.algebra.mul)
            return self.matrices.scale_by_value(m, s)
        axes = self.algebra.common_axes(a.axes, b.axes)
        if has_width(axes) < 2:
            return self.algebra.mul(a, b)
        labels = string.ascii_letters[: len(axes)]
        pad_a, pad_b = (((),) * (len(axes) - len(v.axes)) + v.axes for v in (a, b))
        return self.contractions.einsum(replace(a, axes=pad_a), labels, replace(b, axes=pad_b), labels, labels)

    def reciprocal(self, x: Any) -> Any:
        """``1 / x``."""
        if isinstance(x, Scaled):
            return Scaled(1.0 / x.coefficient, -x.exponent)
        if isinstance(x, int | float):
            return 1.0 / x
        return self.apply("reciprocal", x)

    def apply(self, name: str, x: Any, order: int = 0, **params: Any) -> Any:
        """A nonlinearity; of a matrix of two growing axes entry by entry."""
        if isinstance(x, MatrixValue):
            return self.pairs.map(x, lambda v: self.functions.apply(name, v, order, **params))
        return self.functions.apply(name, self.value(x), order, **params)

    # structure -----------------------------------------------------------------------------

    def with_axes(self, x: Value, axes: Axes) -> Value:
        """The same nodes under other torch axes of equal atoms."""
        return self.algebra.reshape(x, axes)

    def reshape_to_result(self, x: AnyValue) -> AnyValue:
        """A view as the result's shape."""
        if any(c == 0 for c, _ in self.result_sizes()):  # no entries
            return self.algebra.zeros(self.result_axes())
        if isinstance(x, MatrixValue):
            return self.matrices.view(x, refactor(x.axes, self.result_sizes(), self.place))
        return self.algebra.reshape(x, refactor(x.axes, self.result_sizes(), self.place))

    def expand(self, x: Value, axes: Axes) -> Value:
        """Broadcast."""
        return self.algebra.expand(x, axes)

    def linear(
        self, x: Value, dims: Dims, f: Callable[[Node], Node], *, before: Dims | None = None, axes: Axes | None = None
    ) -> Value:
        """A linear map of every node, numbers kept outside; the operand is viewed as ``before``, the result as dims."""
        nodes = self.algebra.nodes

        def move(node: Node) -> Node:
            number, base = nodes.split(node)
            base = f(nodes.view(base, before) if before is not None else base)
            scaled = nodes.scale(number, nodes.view(base, dims))
            assert scaled is not None
            return scaled

        return self.algebra.over_nodes(x, axes if axes is not None else tuple((d,) for d in dims), move)

    def part(self, x: AnyValue, dim: int, start: Any, stop: Any, step: int = 1) -> AnyValue:
        """Entries ``start:stop:step`` of a torch axis."""
        dim %= len(x.axes)
        if is_width(x.axes[dim]):
            return self.parts.cut(x, dim, self.parts.part(x.axes[dim], dim, start, stop, step))
        if isinstance(start, Scaled) or isinstance(stop, Scaled):
            raise self.unsupported(f"a part of axis {dim} whose bounds grow with the width")
        size = length(x.axes[dim])
        begin, end, step = slice(start, end_of(stop), step).indices(size)
        if isinstance(x, MatrixValue):
            return families.part(self.matrices, x, dim, range(begin, end, step))
        if (begin, end, step) == (0, size, 1):
            return x
        axes = (*x.axes[:dim], merge_finite([len(range(begin, end, step))]), *x.axes[dim + 1 :])
        at = len(flat(x.axes[:dim]))
        sliced = self.algebra.nodes.slice
        return self.linear(x, flat(axes), lambda n: sliced(n, at, begin, end, step), before=flat(x.axes), axes=axes)

    def slice_axis(self, axis: Axis, dim: int, start: Any, stop: Any) -> Axis:
        """The axis of ``start:stop`` of an axis."""
        if is_width(axis):
            return self.parts.part(axis, dim, start, stop, 1).piece
        return merge_finite([len(range(*slice(start, end_of(stop)).indices(length(axis))))])

    def embed(self, g: AnyValue, dim: int, start: Any, stop: Any, step: int, axis: Axis) -> AnyValue:
        """The adjoint of :meth:`part`: g at ``start:stop:step`` of an axis of zeros."""
        if is_width(axis):
            return self.parts.embed(g, dim, self.parts.part(axis, dim, start, stop, step))
        size = length(axis)
        begin, end, step = slice(start, end_of(stop), step).indices(size)
        if isinstance(g, MatrixValue):
            return families.embed(self.matrices, g, dim, range(begin, end, step), axis)
        axes = (*g.axes[:dim], axis, *g.axes[dim + 1 :])
        full = (*flat(g.axes[:dim]), len(range(begin, end, step)), *flat(g.axes[dim + 1 :]))
        op = Unslice(len(flat(g.axes[:dim])), begin, end, step, size)
        return self.linear(g, flat(axes), lambda n: self.node(op, n), before=full, axes=axes)

    def concat(self, values: Sequence[Any], dim: int) -> AnyValue:
        """Values joined along a torch axis."""
        everything = [self.any(v) for v in values]
        dim %= len(everything[0].axes)
        if any(is_width(p.axes[dim]) for p in everything):
            return self._concat_growing(everything, dim)
        along = merge_finite([sum(length(p.axes[dim]) for p in everything)])
        if any(isinstance(p, MatrixValue) for p in everything):
            return self._concat_matrices(everything, dim, along)
        parts = [self.value(v) for v in everything]
        axes = (*parts[0].axes[:dim], along, *parts[0].axes[dim + 1 :])
        start = len(flat(axes[:dim]))
        total = self.algebra.zeros(axes)
        size, offset = length(along), 0
        pieces: list[tuple[float, Value]] = [(1.0, total)]
        for part in parts:
            own = length(part.axes[dim])
            full = (*flat(part.axes[:dim]), own, *flat(part.axes[dim + 1 :]))
            op = Unslice(start, offset, offset + own, 1, size)
            pieces.append(
                (1.0, self.linear(part, flat(axes), lambda n, op=op: self.node(op, n), before=full, axes=axes))
            )
            offset += own
        return self.algebra.add(*pieces)

    def _concat_matrices(self, values: Sequence[AnyValue], dim: int, along: Axis) -> AnyValue:
        out: AnyValue | None = None
        offset = 0
        for value in values:
            size = length(value.axes[dim])
            placed = self.embed(value, dim, offset, offset + size, 1, along)
            out, offset = placed if out is None else self.add(out, placed), offset + size
        assert out is not None
        return out

    def _concat_growing(self, values: Sequence[AnyValue], dim: int) -> AnyValue:
        lengths, unit, total = pieces([v.axes[dim] for v in values])
        axis: Axis = (int(total / unit), Width(unit))
        out: AnyValue | None = None
        for i, value in enumerate(values):
            part = self.parts.run(axis, sum(lengths[:i], Fraction(0)), lengths[i], unit)
            placed = self.parts.embed(value, dim, part)
            out = placed if out is None else self.add(out, placed)
        assert out is not None
        return out

    # sums ----------------------------------------------------------------------------------

    def einsum(self, a: Any, a_labels: str, b: Any, b_labels: str, out: str) -> AnyValue:
        """Einstein sum over labels of torch axes."""
        return self.contractions.einsum(self.any(a), a_labels, self.any(b), b_labels, out)

    def sum(self, x: Any, dim: Any, keepdim: bool) -> AnyValue:
        """``sum`` over torch axes."""
        rank = len(x.axes)
        dims = list(range(rank)) if dim is None or len(dim) == 0 else [d % rank for d in dim]
        if isinstance(x, MatrixValue):
            if any(is_width(x.axes[d]) for d in dims):
                return self._sum_pairs(self.pairs.entries(x), dims, keepdim)
            total = self.matrices.sum_finite(x, dims)
            return self.matrices.view(total, self.result_axes()) if keepdim else total
        labels = string.ascii_letters[:rank]
        out = "".join(label for i, label in enumerate(labels) if i not in dims)
        total = self.contractions.sum(x, labels, out)
        if keepdim:
            total = self.with_axes(total, tuple(() if i in dims else a for i, a in enumerate(x.axes)))
        return total

    def _sum_pairs(self, x: Value, dims: Sequence[int], keepdim: bool) -> AnyValue:
        labels = string.ascii_letters[: len(x.axes)]
        out = "".join(label for i, label in enumerate(labels) if i not in dims)
        total = self.contractions.sum(x, labels, out)
        return self.with_axes(total, tuple(() if i in dims else a for i, a in enumerate(x.axes))) if keepdim else total

    def divide_by_length(self, x: AnyValue, axis: Axis) -> AnyValue:
        """Divide by the length of an axis, powers of n included."""
        for d in axis:
            c, e = (1.0 / float(d.ratio), Fraction(-1)) if isinstance(d, Width) else (1.0 / d, Fraction(0))
            x = self.times(x, Scaled(c, e))
        return x

    # finite operations ---------------------------------------------------------------------

    def finite(self, target: str, args: Sequence[Any], kwargs: dict[str, Any], index: int | None, shape: Any) -> Value:
        """Any continuous ATen operation on scalars: the same function of the limits (theory, section 1)."""
        operands: list[Node] = []
        lower: list[Value] = []

        def encode(x: Any) -> Any:
            if isinstance(x, Value):
                if has_width(x.axes):
                    raise self.unsupported(
                        f"no rule for {target} on values that grow with the width",
                        "write it with supported operations, or open an issue with this line",
                    )
                limit = self.algebra.limit(x)
                lower.append(x)
                operands.append(self.algebra.nodes.view(limit, tuple(length(a) for a in x.axes)))
                return ("%", len(operands) - 1)
            if isinstance(x, MatrixValue):
                self.value(x)
            if isinstance(x, list | tuple):
                return tuple(encode(y) for y in x)
            if isinstance(x, Scaled | Binomial):
                raise self.unsupported(f"{target} with a number that changes with the width")
            return x

        coded = tuple(encode(x) for x in args)
        keywords = tuple((k, encode(v)) for k, v in kwargs.items() if k not in ("device", "layout", "pin_memory"))
        exact = all(x.remainder is None and all(e == 0 for e, _ in x.terms) for x in lower)
        if target.split(".")[1] in _DISCONTINUOUS and not (exact and all(is_constant(x) for x in operands)):
            raise self.unsupported(f"{target} of computed values jumps: its limit is not the function of the limit")
        node = self.node(Finite(target, coded, keywords, index, tuple(int(s.coefficient) for s in shape)), *operands)
        axes = tuple(axis_of(s) for s in shape)
        return corrected(self.algebra, self.algebra.nodes.view(node, flat(axes)), axes, lower)


def axis_of(size: Size) -> Axis:
    """The axis of a size: finite or one width atom."""
    if size.power == 0:
        return merge_finite([int(size.coefficient)])
    if size.power == 1:
        return (Width(size.coefficient),)
    raise UnsupportedOperationError(f"an axis of length {size.coefficient}*n^{size.power}")


def length(axis: Axis) -> int:
    """Length of a finite axis."""
    (d,) = axis or (1,)
    assert isinstance(d, int)
    return d


def is_constant(node: Node) -> bool:
    """True if no initial value enters."""
    return not any(isinstance(x.op, Init) for x in reachable([node]))


def end_of(stop: Any) -> Any:
    """The end of a slice; a width-sized number beyond a finite axis is its end."""
    return None if isinstance(stop, Scaled) else stop
