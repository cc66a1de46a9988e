"""Normal forms of single IR nodes: numbers pulled out, sums flattened, products and contractions sorted.

What makes structural cancellation work: two ways to write the same value end in the same node.
"""

from __future__ import annotations

import math
import string
from collections.abc import Callable, Iterable, Sequence
from functools import cache

import torch

from tpcompile.ir import (
    Builder,
    Concat,
    Const,
    Contract,
    Dims,
    Expand,
    Gaussian,
    MatMul,
    MergeWidth,
    Mul,
    Node,
    Permute,
    Slice,
    SplitWidth,
    Sum,
    Unslice,
    View,
    Width,
    split_spec,
)
from tpcompile.lowering import selections
from tpcompile.rationals import simple_fraction

_CANCEL = 1e-12  # rounding of Python arithmetic on coefficients; anything larger is a real difference
_SIMPLE = 1024  # largest denominator of a fraction that a drifted float is set to
_ROUNDING = 4 * 2.0**-52

Weighted = tuple[float, Node]


@cache
def _undrifted(c: float) -> float:
    """c, or the float of the simple fraction or root of one that it is to rounding: products of constants drift."""
    near = simple_fraction(c, _ROUNDING, _SIMPLE)
    if near is not None:
        return float(near)
    square = simple_fraction(c * c, 2 * _ROUNDING, _SIMPLE)
    return math.copysign(math.sqrt(square), c) if square else c


class Nodes:
    """Smart constructors over a :class:`Builder`."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.one = builder.node(Const(1.0))

    def split(self, node: Node, keep_dims: bool = True) -> Weighted:
        """A node as number times node; a constant is a number times one, expanded if its dims are to be kept."""
        inner = node.operands[0] if isinstance(node.op, Expand) else node
        if isinstance(inner.op, Const) and inner.op.value != 0.0:
            return inner.op.value, self.expand(self.one, node.dims) if keep_dims else self.one
        if isinstance(node.op, Sum) and len(node.operands) == 1 and node.operands[0].dims == node.dims:
            return node.op.coefficients[0], node.operands[0]
        return 1.0, node

    def scale(self, coefficient: float, node: Node) -> Node | None:
        """``coefficient * node``; None for zero."""
        return self.sum([(coefficient, node)], node.dims)

    def sum(self, items: Iterable[Weighted], dims: Dims) -> Node | None:
        """A flat sum with these dims, equal summands merged; None if everything cancels."""
        total: dict[Node, float] = {}
        size: dict[Node, float] = {}
        for coefficient, node in items:
            inner = zip(node.op.coefficients, node.operands, strict=True) if isinstance(node.op, Sum) else [(1.0, node)]
            for c, x in inner:
                number, base = self.split(x, keep_dims=False)
                c = coefficient * c * number
                total[base] = total.get(base, 0.0) + c
                size[base] = size.get(base, 0.0) + abs(c)
        kept = {x: _undrifted(c) for x, c in total.items() if abs(c) > _CANCEL * size[x]}
        kept = selections.merged(self.builder, kept)
        if not kept:
            return None
        if list(kept) == [self.one]:
            return self.expand(self.builder.node(Const(kept[self.one])), dims)
        order = sorted(kept, key=lambda x: x.serial)
        if len(order) == 1 and kept[order[0]] == 1.0:
            return self.expand(order[0], dims)
        if len(order) == 1 and order[0].dims != dims:
            order = [self.expand(order[0], dims)]
            kept = {order[0]: next(iter(kept.values()))}
        node = self.builder.node(Sum(tuple(kept[x] for x in order)), *order)
        return self.expand(node, dims)

    def mul(self, factors: Iterable[Node], dims: Dims) -> Node | None:
        """A flat product with these dims; None if a factor is zero."""
        number = 1.0
        flat: list[Node] = []
        for factor in factors:
            c, base = self.split(factor, keep_dims=False)
            number *= c
            inner = base.operands if isinstance(base.op, Mul) else (base,)
            flat += [x for x in inner if x is not self.one]
        if number == 0.0:
            return None
        if not flat:
            return self.expand(self.builder.node(Const(number)), dims)
        flat.sort(key=lambda x: x.serial)
        node = flat[0] if len(flat) == 1 else self.builder.node(Mul(), *flat)
        return self.sum([(number, node)], dims)

    def expand(self, node: Node, dims: Dims) -> Node:
        """Broadcast to dims where needed."""
        return node if node.dims == dims else self.builder.node(Expand(dims), node)

    def view(self, node: Node, dims: Dims) -> Node:
        """Reshape the finite axes; numbers stay outside."""
        if node.dims == dims:
            return node
        number, base = self.split(node)
        while isinstance(base.op, View):
            base = base.operands[0]
        moved = base if base.dims == dims else self.builder.node(View(dims), base)
        return self._rescale(number, moved)

    def split_width(self, node: Node, axis: int, parts: int, inner: bool) -> Node:
        """Blocks of a width axis as a finite axis; numbers stay outside."""
        merge = MergeWidth(axis, inner)
        return self._refactored(node, SplitWidth(axis, parts, inner), lambda x: x.op == merge, parts, axis + inner)

    def merge_width(self, node: Node, axis: int, inner: bool) -> Node:
        """Inverse of :meth:`split_width`."""

        def undone(x: Node) -> bool:
            return isinstance(x.op, SplitWidth) and (x.op.axis, x.op.inner) == (axis, inner)

        return self._refactored(node, MergeWidth(axis, inner), undone)

    def _refactored(
        self, node: Node, op: SplitWidth | MergeWidth, undone: Callable[[Node], bool], parts: int = 0, finite: int = 0
    ) -> Node:
        number, base = self.split(node)
        if isinstance(base.op, Expand) and base.operands[0] is self.one:
            return self._rescale(number, self.expand(self.one, op.infer((base.dims,))))
        if undone(base) and (not parts or base.operands[0].dims[finite] == parts):
            return self._rescale(number, base.operands[0])
        return self._rescale(number, self.builder.node(op, base))

    def permute(self, node: Node, order: Sequence[int]) -> Node:
        """Reorder axes; numbers stay outside."""
        if list(order) == sorted(order):
            return node
        number, base = self.split(node)
        if isinstance(base.op, Permute):
            order = [base.op.order[i] for i in order]
            base = base.operands[0]
            if list(order) == sorted(order):
                return self._rescale(number, base)
        return self._rescale(number, self.builder.node(Permute(tuple(order)), base))

    def slice(self, node: Node, axis: int, start: int, stop: int, step: int) -> Node:
        """Entries ``start:stop:step`` of a finite axis; any of them where they are one value repeated."""
        if not self.repeats(node, axis):
            return self.builder.node(Slice(axis, start, stop, step), node)
        (inner,) = node.operands
        return self.expand(inner, (*node.dims[:axis], len(range(start, stop, step)), *node.dims[axis + 1 :]))

    @staticmethod
    def repeats(node: Node, axis: int) -> bool:
        """True if a value is one broadcast along an axis."""
        if not isinstance(node.op, Expand):
            return False
        (inner,) = node.operands
        at = axis - len(node.dims) + len(inner.dims)
        return at < 0 or (inner.dims[at] == 1 and node.dims[axis] != 1)

    def _rescale(self, number: float, node: Node) -> Node:
        return node if number == 1.0 else self.builder.node(Sum((number,)), node)

    def concat(self, nodes: Sequence[Node], axis: int) -> Node:
        """Operands joined along an axis as a chain, so that a longer history shares its beginning."""
        joined = nodes[0]
        for node in nodes[1:]:
            joined = self.builder.node(Concat(axis), joined, node)
        return joined

    def contract(self, spec: str, operands: Sequence[Node], gaussian: bool = False) -> Weighted:
        """An Einstein sum in normal form, as number times node."""
        inputs, out = split_spec(spec)
        number = 1.0
        pairs: list[tuple[Node, str]] = []
        for letters, operand in zip(inputs, operands, strict=True):
            c, base = self.split(operand)
            number *= c
            pairs.append((base, letters))
        if len(pairs) == 1 and sorted(pairs[0][1]) == sorted(out):
            base, letters = pairs[0]
            return number, self.permute(base, [letters.index(x) for x in out])
        if len(pairs) == 1 and not gaussian:
            unstacked = self._unstacked(*pairs[0], out)
            if unstacked is not None:
                return number * unstacked[0], unstacked[1]
        pairs.sort(key=lambda p: (p[0].serial, p[1]))
        names: dict[str, str] = {}
        for letter in "".join(letters for _, letters in pairs):
            names.setdefault(letter, string.ascii_letters[len(names)])
        text = ",".join("".join(names[x] for x in letters) for _, letters in pairs)
        op = (Gaussian if gaussian else Contract)(text + "->" + "".join(names[x] for x in out))
        return number, self.builder.node(op, *(base for base, _ in pairs))

    def _unstacked(self, node: Node, letters: str, out: str) -> Weighted | None:
        """The sum along a finite axis of what stands at different places of it: the sum of what stands there."""
        if not isinstance(node.op, Sum) or not isinstance(node.operands[0].op, Unslice):
            return None
        axis = node.operands[0].op.axis
        if letters[axis] in out or letters.count(letters[axis]) > 1 or isinstance(node.dims[axis], Width):
            return None
        if not all(isinstance(x.op, Unslice) and x.op.axis == axis and x.dims == node.dims for x in node.operands):
            return None
        parts: list[Weighted] = []
        for c, x in zip(node.op.coefficients, node.operands, strict=True):
            own, part = self.contract(f"{letters}->{out}", [x.operands[0]])
            parts.append((c * own, part))
        total = self.sum(parts, parts[0][1].dims)
        return None if total is None else self.split(total)

    def matmul(self, matrix: Node, x: Node, transpose: bool) -> Weighted:
        """Product with an initial matrix, as number times node."""
        number, base = self.split(x)
        return number, self.builder.node(MatMul(transpose), matrix, base)

    def constant(self, values: Sequence[float] | torch.Tensor) -> Node:
        """A finite constant of the data section."""
        return self.builder.constant(
            torch.as_tensor(values, dtype=torch.float64) if not isinstance(values, torch.Tensor) else values
        )
