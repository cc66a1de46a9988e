"""Arithmetic of matrix values: sums, multiples, transposes, and the history of updates as two chains.

Matrices are never formed (architecture, decision 6). Updates of the same exponent stand in one outer
term; their factors are concatenated along the rank axis step by step, so that the program grows by
a constant number of instructions a step.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction

from tpcompile.errors import UnsupportedOperationError
from tpcompile.ir import Expand, Node, Slice, Unslice, View, Width
from tpcompile.lowering import families
from tpcompile.lowering.algebra import Algebra
from tpcompile.lowering.axes import refactored
from tpcompile.lowering.value import (
    Axes,
    Block,
    Composed,
    InitTerm,
    MatrixValue,
    OuterTerm,
    Term,
    Value,
    extent,
    flat,
    has_width,
    largest,
    plus,
)


class Matrices:
    """Operations on :class:`MatrixValue`."""

    def __init__(self, algebra: Algebra) -> None:
        self.a = algebra
        self.nodes = algebra.nodes

    def make(
        self,
        axes: Axes,
        inits: Iterable[InitTerm],
        outers: Iterable[tuple[Fraction, Sequence[Block]]],
        remainder: Fraction | None,
        entries: Sequence[Term] = (),
        composed: Iterable[Composed] = (),
    ) -> MatrixValue:
        """A matrix value in normal form: equal parts merged, cancelled ones dropped, the tail cut."""
        sums: dict[InitTerm, float] = defaultdict(float)
        for t in inits:
            sums[replace(t, coefficient=1.0)] += t.coefficient
        kept = [replace(t, coefficient=c) for t, c in sums.items() if abs(c) > 1e-12]
        products: dict[Composed, float] = defaultdict(float)
        for p in composed:
            products[replace(p, coefficient=1.0)] += p.coefficient
        left = tuple(replace(p, coefficient=c) for p, c in products.items() if abs(c) > 1e-12 and p.action is not None)
        groups: dict[Fraction, dict[tuple[Node, Node], float]] = defaultdict(dict)
        for exponent, blocks in outers:
            group = groups[exponent]
            for b in blocks:
                group[(b.u, b.v)] = group.get((b.u, b.v), 0.0) + b.coefficient
        merged = [
            OuterTerm(e, self._joined([Block(c, u, v) for (u, v), c in groups[e].items() if abs(c) > 1e-14]))
            for e in sorted(groups, reverse=True)
        ]
        pairs = self.a.collect(axes, [(e, 1.0, x) for e, x in entries], remainder) if entries else None
        if pairs is not None:
            entries, remainder = pairs.terms, pairs.remainder
        whole = MatrixValue(axes, tuple(kept), tuple(t for t in merged if t.blocks), remainder, tuple(entries), left)
        return self._cut(whole)

    def _cut(self, m: MatrixValue) -> MatrixValue:
        top = m.action
        if top is None or self.a.width is not None:
            return m
        floor = largest(top - self.a.depth, plus(m.remainder, Fraction(1)))
        assert floor is not None
        drop = [t.exponent - 1 for t in m.inits if t.exponent <= floor and t.exponent != top]
        drop += [t.exponent for t in m.outers if t.exponent + 1 <= floor and t.exponent + 1 != top]
        drop += [e for e, _ in m.entries if e + 1 <= floor and e + 1 != top]
        actions = [(p, e) for p in m.composed if (e := p.action) is not None]
        drop += [e - 1 for _, e in actions if e <= floor and e != top]
        return replace(
            m,
            inits=tuple(t for t in m.inits if t.exponent > floor or t.exponent == top),
            outers=tuple(t for t in m.outers if t.exponent + 1 > floor or t.exponent + 1 == top),
            entries=tuple(t for t in m.entries if t[0] + 1 > floor or t[0] + 1 == top),
            composed=tuple(p for p, e in actions if e > floor or e == top),
            remainder=largest(m.remainder, *drop),
        )

    def _joined(self, blocks: Sequence[Block]) -> tuple[Block, ...]:
        """Blocks with the same left vectors as one, ``u v^T + u w^T = u (v + w)^T``: polynomials keep their rank."""
        same: dict[Node, list[Block]] = {}
        for b in blocks:
            same.setdefault(b.u, []).append(b)
        out = []
        for u, group in same.items():
            if len(group) == 1:
                out.append(group[0])
                continue
            v = self.nodes.sum([(b.coefficient, b.v) for b in group], group[0].v.dims)
            if v is not None:
                number, base = self.nodes.split(v)
                out.append(Block(number, u, base))
        return families.stacked(self.nodes, out)

    def add(self, *summands: tuple[float, MatrixValue]) -> MatrixValue:
        """``sum_i c_i M_i`` of equal axes."""
        axes = next((m.axes for _, m in summands if m.inits or m.composed), summands[0][1].axes)
        summands = tuple((c, self.regroup(m, axes)) for c, m in summands)
        inits = [replace(t, coefficient=c * t.coefficient) for c, m in summands for t in m.inits]
        outers = [
            (t.exponent, [replace(b, coefficient=c * b.coefficient) for b in t.blocks])
            for c, m in summands
            for t in m.outers
        ]
        entries = [(e, self._times(c, x)) for c, m in summands if c for e, x in m.entries]
        composed = [replace(p, coefficient=c * p.coefficient) for c, m in summands for p in m.composed]
        return self.make(axes, inits, outers, largest(*(m.remainder for c, m in summands if c)), entries, composed)

    def scale(self, m: MatrixValue, coefficient: float, exponent: Fraction = Fraction(0)) -> MatrixValue:
        """``coefficient * n**exponent * M``."""
        if coefficient == 0.0:
            return MatrixValue(m.axes)
        coefficient, exponent = self.a.power(coefficient, exponent)
        inits = [replace(t, exponent=t.exponent + exponent, coefficient=coefficient * t.coefficient) for t in m.inits]
        outers = [
            (t.exponent + exponent, [replace(b, coefficient=coefficient * b.coefficient) for b in t.blocks])
            for t in m.outers
        ]
        entries = [(e + exponent, self._times(coefficient, x)) for e, x in m.entries]
        composed = [
            replace(p, exponent=p.exponent + exponent, coefficient=coefficient * p.coefficient) for p in m.composed
        ]
        return self.make(m.axes, inits, outers, plus(m.remainder, exponent), entries, composed)

    def _times(self, coefficient: float, node: Node) -> Node:
        scaled = self.nodes.scale(coefficient, node)
        assert scaled is not None
        return scaled

    def scale_by_value(self, m: MatrixValue, s: Value) -> MatrixValue:
        """A matrix times a scalar without axes; only constants reach an initial matrix."""
        if m.is_zero or s.is_zero:
            return MatrixValue(m.axes)
        parts: list[MatrixValue] = []
        for exponent, node in s.terms:
            number, base = self.nodes.split(node, keep_dims=False)
            if base is self.nodes.one:
                parts.append(self.scale(m, number, exponent))
                continue
            if m.inits or m.composed or has_width(s.axes) or flat(s.axes):
                raise UnsupportedOperationError(
                    "a growing matrix with its initial values times a computed number", where=self.a.place
                )
            outers = []
            for t in m.outers:
                blocks = []
                for b in t.blocks:
                    u = self.nodes.mul([b.u, node], b.u.dims)
                    assert u is not None
                    c, base = self.nodes.split(u)
                    blocks.append(Block(b.coefficient * c, base, b.v))
                outers.append((t.exponent + exponent, blocks))
            entries = [(e + exponent, y) for e, x in m.entries if (y := self.nodes.mul([x, node], x.dims)) is not None]
            parts.append(self.make(m.axes, [], outers, plus(m.remainder, exponent), entries))
        total = self.add(*((1.0, p) for p in parts)) if parts else MatrixValue(m.axes)
        return replace(total, remainder=largest(total.remainder, plus(s.remainder, m.action, Fraction(-1))))

    def permute(self, m: MatrixValue, order: Sequence[int]) -> MatrixValue:
        """Torch axes reordered; where the two growing ones change places the matrix is transposed."""
        start = [sum(len(a) for a in m.axes[:i]) for i in range(len(m.axes))]
        atoms = [start[i] + k for i in order for k in range(len(m.axes[i]))]
        growing = [i for i, d in enumerate(flat(m.axes)) if isinstance(d, Width)]
        flip = [i for i in atoms if i in growing] != growing
        finite = [i for i in range(len(flat(m.axes))) if i not in growing]
        moved = [finite.index(i) for i in atoms if i not in growing]
        tail = [len(moved), len(moved) + 1]

        def block(b: Block) -> Block:
            u, v = (self.nodes.permute(x, moved + tail) for x in (b.u, b.v))
            return Block(b.coefficient, v, u) if flip else Block(b.coefficient, u, v)

        return replace(
            m,
            axes=tuple(m.axes[i] for i in order),
            inits=tuple(
                replace(
                    t,
                    transpose=t.transpose != flip,
                    finite=tuple(t.finite[i] for i in moved),
                    rows=t.columns if flip else t.rows,
                    columns=t.rows if flip else t.columns,
                )
                for t in m.inits
            ),
            outers=tuple(replace(t, blocks=tuple(map(block, t.blocks))) for t in m.outers),
            entries=tuple((e, self.nodes.permute(x, atoms)) for e, x in m.entries),
            composed=tuple(self._transposed(p) for p in m.composed) if flip else m.composed,
        )

    def _transposed(self, p: Composed) -> Composed:
        turned = (self.permute(f, [1, 0]) if isinstance(f, MatrixValue) else f for f in reversed(p.factors))
        return replace(p, factors=tuple(turned))

    def view(self, m: MatrixValue, axes: Axes) -> MatrixValue:
        """Finite atoms split, merged and regrouped among the axes: same entries, other shape."""
        whole = replace(m, axes=axes)
        if whole.widths != m.widths:
            return self._refactored(m, axes)
        if m.inits and m.finite != whole.finite:
            raise UnsupportedOperationError(
                "a view that regroups the finite axes of a growing weight", where=self.a.place
            )

        def block(b: Block) -> Block:
            u, v = (self.nodes.view(x, (*whole.finite, *x.dims[-2:])) for x in (b.u, b.v))
            return Block(b.coefficient, u, v)

        entries = tuple((e, self.nodes.view(x, flat(axes))) for e, x in m.entries)
        return replace(
            whole, outers=tuple(replace(t, blocks=tuple(map(block, t.blocks))) for t in m.outers), entries=entries
        )

    def regroup(self, m: MatrixValue, axes: Axes) -> MatrixValue:
        """The matrix under torch axes of the same lengths and other atoms."""
        if m.axes == axes or m.is_zero:
            return replace(m, axes=axes)
        if tuple(map(extent, m.axes)) != tuple(map(extent, axes)):
            raise UnsupportedOperationError("a sum of two growing matrices of different axes", where=self.a.place)
        return self.view(m, axes)

    def _refactored(self, m: MatrixValue, axes: Axes) -> MatrixValue:
        """Growing axes split into finite atoms and widths, or merged from them."""
        if m.inits or m.composed:
            raise UnsupportedOperationError(
                "a view that splits a growing axis of an initial matrix",
                where=self.a.place,
                advice="take the parts of the matrix (chunk, slices), or split the vectors that it is multiplied with",
            )
        outers = []
        for t in m.outers:
            pairs = [pair for b in t.blocks for pair in self._merged(b, m.axes)]
            outers.append((t.exponent, [self._split(b, axes) for b in pairs]))
        entries = [(e, refactored(self.nodes, x, x.dims, flat(axes), self.a.place)) for e, x in m.entries]
        return self.make(axes, [], outers, m.remainder, entries)

    def _merged(self, b: Block, axes: Axes) -> list[Block]:
        """Outer products with the finite atoms beside each width taken into it: no finite atoms in growing axes.

        An atom of the rows is an index that the columns usually do not depend on; then u is merged as it is. Else
        the outer product is one for each index, u being zero at all others.
        """
        growing = [i for i, axis in enumerate(axes) if has_width((axis,))]
        position = 0
        for i, axis in enumerate(axes):
            before = True
            for d in axis:
                if isinstance(d, Width):
                    before = False
                    continue
                if i in growing:
                    rest = (*axes[:i], tuple(x for x in axis if x is not d), *axes[i + 1 :])
                    parts = self._absorbed(b, position, i == growing[0], inner=not before)
                    return [x for part in parts for x in self._merged(part, _widened(rest, i, d))]
                position += 1
        return [b]

    def _absorbed(self, b: Block, position: int, rows: bool, inner: bool) -> list[Block]:
        side, other = (b.u, b.v) if rows else (b.v, b.u)
        size = side.dims[position]
        assert isinstance(size, int)
        constant = self._constant_along(other, position)
        whole = range(size) if constant is None else [None]
        out = []
        for index in whole:
            x = side if index is None else self._only(side, position, index)
            y = constant if index is None else self._at(other, position, index)
            assert y is not None
            rank = len(x.dims)
            order = [i for i in range(rank) if i != position]
            order.insert(rank - 1 if inner else rank - 2, position)
            x = self.nodes.merge_width(self.nodes.permute(x, order), rank - 2, inner)
            out.append(Block(b.coefficient, x, y) if rows else Block(b.coefficient, y, x))
        return out

    def _constant_along(self, node: Node, axis: int) -> Node | None:
        """The node without a finite axis along which it is repeated; None where that cannot be seen."""
        dims = (*node.dims[:axis], *node.dims[axis + 1 :])
        if isinstance(node.op, Expand):
            (x,) = node.operands
            padded = (1,) * (len(node.dims) - len(x.dims)) + x.dims
            if padded[axis] != 1:
                return None
            return self.nodes.expand(self.nodes.view(x, (*padded[:axis], *padded[axis + 1 :])), dims)
        if isinstance(node.op, View) and node.operands[0].dims[: axis + 1] == node.dims[: axis + 1]:
            inner = self._constant_along(node.operands[0], axis)
            return None if inner is None else self.nodes.view(inner, dims)
        return None

    def _at(self, node: Node, axis: int, index: int) -> Node:
        part = self.nodes.builder.node(Slice(axis, index, index + 1, 1), node)
        return self.nodes.view(part, (*node.dims[:axis], *node.dims[axis + 1 :]))

    def _only(self, node: Node, axis: int, index: int) -> Node:
        size = node.dims[axis]
        assert isinstance(size, int)
        part = self.nodes.builder.node(Slice(axis, index, index + 1, 1), node)
        return self.nodes.builder.node(Unslice(axis, index, index + 1, 1, size), part)

    def _split(self, b: Block, axes: Axes) -> Block:
        """Outer products without finite atoms in growing axes as those of a matrix of the given axes."""
        growing = [i for i, axis in enumerate(axes) if has_width((axis,))]
        plain = [axis for i, axis in enumerate(axes) if i not in growing]
        batch = flat(tuple(plain))
        u, v = b.u, b.v
        rank = u.dims[-2]
        rows, columns = (axes[i] for i in growing)
        extra = [tuple(d for d in axis if isinstance(d, int)) for axis in (rows, columns)]
        # u as (batch, rank, *rows), then the finite atoms to their places; v repeated along them
        sides = []
        for x, axis, mine, before, after in ((u, rows, 0, (), extra[1]), (v, columns, 1, extra[0], ())):
            x = refactored(self.nodes, x, x.dims, (*batch, rank, *axis))
            at = len(batch) + 1
            finite = [at + i for i, d in enumerate(axis) if isinstance(d, int)]
            width = at + next(i for i, d in enumerate(axis) if isinstance(d, Width))
            x = self.nodes.permute(x, [*range(len(batch)), *finite, len(batch), width])
            spread = (*batch, *(1 for _ in before), *extra[mine], *(1 for _ in after), *x.dims[-2:])
            full = (*batch, *before, *extra[mine], *after, *x.dims[-2:])
            sides.append(self.nodes.expand(self.nodes.view(x, spread), full))
        order: list[int] = []
        starts = {}
        offset = len(batch)
        for i, group in zip(growing, extra, strict=True):
            starts[i] = list(range(offset, offset + len(group)))
            offset += len(group)
        count = 0
        for i, axis in enumerate(axes):
            if i in growing:
                order += starts[i]
            else:
                order += range(count, count + len(axis))
                count += len(axis)
        tail = [offset, offset + 1]
        u, v = (self.nodes.permute(x, [*order, *tail]) for x in sides)
        return Block(b.coefficient, u, v)

    def sum_finite(self, m: MatrixValue, dims: Sequence[int]) -> MatrixValue:
        """Sum over finite torch axes: they join the rank axis."""
        keep = [i for i in range(len(m.axes)) if i not in dims]
        m = self.permute(m, [*keep, *dims])
        whole = replace(m, axes=m.axes[: len(keep)])
        count = len(whole.finite)

        def move(node: Node) -> Node:
            rank = 1
            for d in node.dims[count:-1]:
                assert isinstance(d, int)
                rank *= d
            return self.nodes.view(node, (*whole.finite, rank, node.dims[-1]))

        outers = [(t.exponent, [Block(b.coefficient, move(b.u), move(b.v)) for b in t.blocks]) for t in m.outers]
        entries = []
        for e, x in m.entries:
            words = [string.ascii_letters[: len(x.dims)], string.ascii_letters[: len(flat(whole.axes))]]
            number, node = self.nodes.contract("->".join(words), [x])
            entries.append((e, self._times(number, node)))
        inits = [families.summed(self, t, count) for t in m.inits]
        return self.make(whole.axes, inits, outers, m.remainder, entries)

    def chain(self, outer: OuterTerm) -> tuple[float, Node | None, Node, Node]:
        """``(number, coefficients along the rank axis or None if all equal, U, V)`` of all blocks joined."""
        axis = len(outer.blocks[0].v.dims) - 2
        u = self.nodes.concat([b.u for b in outer.blocks], axis)
        v = self.nodes.concat([b.v for b in outer.blocks], axis)
        first = outer.blocks[0].coefficient
        if all(b.coefficient == first for b in outer.blocks):
            return first, None, u, v
        values = [b.coefficient for b in outer.blocks for _ in range(_rank(b))]
        return 1.0, self.nodes.constant(values), u, v


def _widened(axes: Axes, position: int, factor: int) -> Axes:
    """The axes with the one width atom of one of them longer by a factor."""
    axis = tuple(Width(d.ratio * factor) if isinstance(d, Width) else d for d in axes[position])
    return (*axes[:position], axis, *axes[position + 1 :])


def _rank(block: Block) -> int:
    rank = block.u.dims[-2]
    assert isinstance(rank, int)
    return rank
