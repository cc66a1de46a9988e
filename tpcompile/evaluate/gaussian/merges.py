"""Expectations of values of which the width axis was put together from blocks (groups of a convolution, flattened
positions): the mean over the blocks, with all factors at the same one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tpcompile.evaluate.gaussian.terms import Label, Poly
from tpcompile.ir import Dim, Map, MergeWidth, Mul, Node, SplitWidth, Sum, View, Width

if TYPE_CHECKING:
    from tpcompile.evaluate.gaussian.moments import Factor, Moments


def below(m: Moments, node: Node) -> MergeWidth | None:
    """The first merge that a value is, or is an entrywise function of."""
    key = ("merge below", node)
    if key not in m.made:
        m.made[key] = None
        if isinstance(node.op, MergeWidth):
            m.made[key] = node.op
        elif isinstance(node.op, Map | Sum | Mul) or _drops_ones(node):
            m.made[key] = next((op for x in node.operands if (op := below(m, x))), None)
    return m.made[key]


def merged(m: Moments, f: Factor, factors: Sequence[Factor]) -> Poly:
    """The expectation of a product of which f is a merged width or an entrywise function of one."""
    op = below(m, f.node)
    assert op is not None
    parts = _parts(m, f.node, op)
    if len(f.blocks) > 1:
        raise m.unfactorised("blocks of blocks of a merged width", f.node)
    given = f.blocks[0] if f.blocks else None
    if given is not None and m.lengths[given] != parts:
        raise m.unfactorised("blocks of a merged width that are not those it is made of", f.node)
    at = given if given is not None else m.label(parts)

    def under(g: Factor) -> Factor:
        if g.node.kind != "vector":
            return g
        whole = _ratio(g.node) == _ratio(f.node)
        if not whole and given is not None and not g.blocks:
            return g  # a value of one block already
        if not whole or len(g.blocks) != len(f.blocks):
            raise m.unfactorised("blocks of a merged width beside the whole", g.node)
        own = below(m, g.node)
        block = g.blocks[0] if g.blocks else at
        if own is None:
            return replace(g, blocks=(block,))
        if own.inner != op.inner or _parts(m, g.node, own) != parts:
            raise m.unfactorised("widths merged in different ways", g.node)
        node = _apart(m, g.node, op.inner, parts)
        place = _width(g.node) + op.inner
        labels = iter(g.labels)
        by_axis: list[Label | None] = [None if isinstance(d, Width) else next(labels) for d in g.node.dims]
        by_axis.insert(place, block)
        kept = [x for x, d in zip(by_axis, node.dims, strict=True) if not isinstance(d, Width)]
        return replace(g.on(node, kept), blocks=())

    poly = m.moment(tuple(under(g) for g in factors))
    if given is not None:
        return poly
    return tuple(replace(t, coefficient=t.coefficient / parts) if at in t.labels() else t for t in poly)


def _drops_ones(node: Node) -> bool:
    """Whether a value is a view of another that differs in axes of length one only."""
    return isinstance(node.op, View) and [d for d in node.dims if d != 1] == [
        d for d in node.operands[0].dims if d != 1
    ]


def _width(node: Node) -> int:
    return next(i for i, d in enumerate(node.dims) if isinstance(d, Width))


def _ratio(node: Node) -> object:
    return next(d for d in node.dims if isinstance(d, Width)).ratio


def _parts(m: Moments, node: Node, op: MergeWidth) -> int:
    """How many blocks the merge below a value has."""
    if node.op == op:
        parts = node.operands[0].dims[op.axis + op.inner]
        assert isinstance(parts, int)
        return parts
    return _parts(m, next(x for x in node.operands if below(m, x) == op), op)


def _apart(m: Moments, node: Node, inner: bool, parts: int) -> Node:
    """A value with its width axis as ``(parts, width)``, or ``(width, parts)`` where ``inner``: merges are undone."""
    key = ("apart", node, inner, parts)
    if key not in m.made:
        m.made[key] = _rebuilt(m, node, inner, parts)
        if node in m.structure.random:
            m.structure.random.add(m.made[key])
    return m.made[key]


def _rebuilt(m: Moments, node: Node, inner: bool, parts: int) -> Node:
    at, op = _width(node), node.op
    if isinstance(op, MergeWidth) and op.inner == inner and op.axis == at:
        (x,) = node.operands
        if x.dims[at + inner] == parts:
            return x
    width = node.dims[at]
    assert isinstance(width, Width)
    pair: tuple[Dim, Dim] = (parts, Width(width.ratio / parts))
    dims = (*node.dims[:at], *(pair[::-1] if inner else pair), *node.dims[at + 1 :])
    if _drops_ones(node):
        return Node(View(dims), (_apart(m, node.operands[0], inner, parts),), dims, node.serial)
    if not isinstance(op, Map | Sum | Mul):
        return Node(SplitWidth(at, parts, inner), (node,), dims, node.serial)
    behind = len(node.dims) - at  # axes from the width on, the width included
    operands = []
    for x in node.operands:
        if any(isinstance(d, Width) for d in x.dims):
            operands.append(_apart(m, x, inner, parts))
        elif len(x.dims) < behind:
            operands.append(x)
        else:  # of length one where the width is
            place = len(x.dims) - behind
            wider = Node(View((*x.dims[:place], 1, *x.dims[place:])), (x,), (*x.dims[:place], 1, *x.dims[place:]), 0)
            if x in m.structure.random:
                m.structure.random.add(wider)
            operands.append(wider)
    return Node(op, tuple(operands), dims, node.serial)
