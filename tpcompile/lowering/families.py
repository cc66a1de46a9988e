"""Finite axes of growing matrices: parts of them, zeros around these, and sums.

A parameter of which a finite axis comes first, as the experts of a mixture do, is a family of independent matrices. So
each is an initial matrix of its own, which stands at one index; what is multiplied with one is taken there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tpcompile.errors import UnsupportedOperationError
from tpcompile.ir import Expand, Gather, Map, Mul, Node, Outer, Permute, Sum, Unslice, View
from tpcompile.lowering.axes import merge_finite
from tpcompile.lowering.nodes import Nodes, Weighted
from tpcompile.lowering.selections import picked
from tpcompile.lowering.value import Axes, Axis, Block, Fixed, InitTerm, MatrixValue, flat

if TYPE_CHECKING:
    from tpcompile.lowering.matrix import Matrices


def part(of: Matrices, m: MatrixValue, dim: int, index: range) -> MatrixValue:
    """Entries of a finite torch axis."""
    if not m.axes[dim]:
        return m
    axes = (*m.axes[:dim], merge_finite([len(index)]), *m.axes[dim + 1 :])
    at, place = _finite_before(m, dim), len(flat(m.axes[:dim]))
    whole = replace(m, axes=axes)
    inits: list[InitTerm] = []
    for t in m.inits:
        where = _fixed(of, t, at).index
        if where in index:
            own = (Fixed(index.index(where)),) if len(index) > 1 else ()
            inits.append(replace(t, finite=(*t.finite[:at], *own, *t.finite[at + 1 :])))
    outers = []
    for t in m.outers:
        blocks: list[Block] = []
        for b in t.blocks:
            u, v = (taken(of.nodes, x, at, index) for x in (b.u, b.v))
            if u is not None and v is not None:
                u, v = (of.nodes.view(x, (*whole.finite, *x.dims[-2:])) for x in (u, v))
                blocks.append(Block(b.coefficient, u, v))
        outers.append((t.exponent, blocks))
    entries = [(e, of.nodes.view(y, flat(axes))) for e, x in m.entries if (y := taken(of.nodes, x, place, index))]
    return of.make(axes, inits, outers, m.remainder, entries)


def embed(of: Matrices, m: MatrixValue, dim: int, index: range, axis: Axis) -> MatrixValue:
    """The adjoint of :func:`part`: m at these entries of a finite torch axis of zeros."""
    if not axis:
        return m
    (size,) = axis
    assert isinstance(size, int)
    axes = (*m.axes[:dim], axis, *m.axes[dim + 1 :])
    at, place, finite = _finite_before(m, dim), len(flat(m.axes[:dim])), replace(m, axes=axes).finite
    inits: list[InitTerm] = []
    for t in m.inits:
        inside, behind = (_fixed(of, t, at).index, at + 1) if len(index) > 1 else (0, at)
        inits.append(replace(t, finite=(*t.finite[:at], Fixed(index[inside]), *t.finite[behind:])))

    def moved(node: Node, at: int, dims: tuple) -> Node:
        have = (*dims[:at], len(index), *dims[at + 1 :])
        return within(of.nodes, of.nodes.view(node, have), at, index, size)

    outers = [
        (
            t.exponent,
            [Block(b.coefficient, *(moved(x, at, (*finite, *x.dims[-2:])) for x in (b.u, b.v))) for b in t.blocks],
        )
        for t in m.outers
    ]
    return of.make(axes, inits, outers, m.remainder, [(e, moved(x, place, flat(axes))) for e, x in m.entries])


def copied(of: Matrices, m: MatrixValue, axes: Axes) -> MatrixValue:
    """Copies of a matrix along finite torch axes, where it has an axis of length one or none."""
    m = of.view(m, ((),) * (len(axes) - len(m.axes)) + m.axes)
    for dim, axis in enumerate(axes):
        if m.axes[dim] or not axis:
            continue
        (size,) = axis
        if not isinstance(size, int):
            raise UnsupportedOperationError("a matrix copied along a third growing axis", where=of.a.place)
        at, wide = _finite_before(m, dim), (*m.axes[:dim], axis, *m.axes[dim + 1 :])

        def spread(node: Node, at: int, size: int = size) -> Node:
            one = of.nodes.view(node, (*node.dims[:at], 1, *node.dims[at:]))
            return of.nodes.expand(one, (*node.dims[:at], size, *node.dims[at:]))

        outers = [
            (t.exponent, [Block(b.coefficient, spread(b.u, at), spread(b.v, at)) for b in t.blocks]) for t in m.outers
        ]
        inits = [replace(t, finite=(*t.finite[:at], Fixed(i), *t.finite[at:])) for t in m.inits for i in range(size)]
        place = len(flat(m.axes[:dim]))
        m = of.make(wide, inits, outers, m.remainder, [(e, spread(x, place)) for e, x in m.entries])
    return m


def within(nodes: Nodes, node: Node, axis: int, index: range, size: int) -> Node:
    """A node at these entries of an axis of zeros; numbers stay outside."""
    if (index.start, len(index), index.step) == (0, size, 1):
        return node
    number, base = nodes.split(node)
    scaled = nodes.scale(number, nodes.builder.node(Unslice(axis, index.start, index.stop, index.step, size), base))
    assert scaled is not None
    return scaled


def taken(nodes: Nodes, node: Node, axis: int, index: range) -> Node | None:
    """Entries of a finite axis, which stays, of a value that may be put together along it; None for zero."""
    return _taken(nodes, node, axis, index, {})


def summed(of: Matrices, t: InitTerm, count: int) -> InitTerm:
    """An initial matrix summed over all finite axes but the first ``count``: it stands at one index of them."""
    for at in range(count, len(t.finite)):
        _fixed(of, t, at)
    return replace(t, finite=t.finite[:count])


def stacked(nodes: Nodes, blocks: Sequence[Block]) -> tuple[Block, ...]:
    """Outer products at different indices of a finite axis as those of one pair of vectors, put together along it."""
    out: list[Block] = []
    for b in blocks:
        for i, other in enumerate(out):
            if (b.u.dims, b.v.dims) == (other.u.dims, other.v.dims) and _apart(nodes, b, other):
                u = nodes.sum([(other.coefficient, other.u), (b.coefficient, b.u)], b.u.dims)
                v = nodes.sum([(1.0, other.v), (1.0, b.v)], b.v.dims)
                assert u is not None
                assert v is not None
                (c, u), (d, v) = nodes.split(u), nodes.split(v)
                out[i] = Block(c * d, u, v)
                break
        else:
            out.append(b)
    return tuple(out)


def _apart(nodes: Nodes, a: Block, b: Block) -> bool:
    places = [p for x in (a.u, a.v, b.u, b.v) if (p := _places(nodes, x)) is not None]
    axes = {axis for axis, _ in places}
    if len(places) < 4 or len(axes) > 1 or axes.pop() >= len(a.u.dims) - 2:
        return False
    au, av, bu, bv = (where for _, where in places)
    return not au & bv and not bu & av


def _places(nodes: Nodes, node: Node) -> tuple[int, frozenset[int]] | None:
    """An axis along which a value is put together, and where it is not zero."""
    if isinstance(node.op, Sum) and all(x.dims == node.dims for x in node.operands):
        found = [_places(nodes, x) for x in node.operands]
        known = [x for x in found if x is not None]
        if len(known) < len(found) or len({axis for axis, _ in known}) > 1:
            return None
        return known[0][0], frozenset().union(*(where for _, where in known))
    if not isinstance(node.op, Unslice | Gather):
        return None
    index = picked(nodes.builder, node)
    return None if index is None else (node.op.axis, frozenset(i for i, x in enumerate(index) if x >= 0))


def _taken(
    nodes: Nodes, node: Node, axis: int, index: range, known: dict[tuple[Node, int], Node | None]
) -> Node | None:
    if (node, axis) not in known:
        known[node, axis] = _find(nodes, node, axis, index, known)
    return known[node, axis]


def _find(nodes: Nodes, node: Node, axis: int, index: range, known: dict[tuple[Node, int], Node | None]) -> Node | None:
    op = node.op
    dims = (*node.dims[:axis], len(index), *node.dims[axis + 1 :])

    def below(x: Node) -> Node | None:
        at = axis - len(node.dims) + len(x.dims)
        return x if at < 0 or x.dims[at] == 1 else _taken(nodes, x, at, index, known)

    if nodes.repeats(node, axis):
        return _cut(nodes, node, axis, index)
    if isinstance(op, Sum):
        parts: list[Weighted] = [
            (c, y) for c, x in zip(op.coefficients, node.operands, strict=True) if (y := below(x)) is not None
        ]
        return nodes.sum(parts, dims)
    if isinstance(op, Mul):
        factors = [y for x in node.operands if (y := below(x)) is not None]
        return nodes.mul(factors, dims) if len(factors) == len(node.operands) else None
    if isinstance(op, Expand):
        inner = below(node.operands[0])
        return None if inner is None else nodes.expand(inner, dims)
    if isinstance(op, Permute):
        inner = _taken(nodes, node.operands[0], op.order[axis], index, known)
        return None if inner is None else nodes.permute(inner, op.order)
    if isinstance(op, View) and node.operands[0].dims[: axis + 1] == node.dims[: axis + 1]:
        inner = _taken(nodes, node.operands[0], axis, index, known)
        return None if inner is None else nodes.view(inner, dims)
    if isinstance(op, Outer) and axis < len(node.dims) - 2:
        pair = [_taken(nodes, x, axis, index, known) for x in node.operands]
        kept = [x for x in pair if x is not None]
        return nodes.builder.node(op, *kept) if len(kept) == 2 else None
    if isinstance(op, Map):
        inner = _taken(nodes, node.operands[0], axis, index, known)
        return nodes.builder.node(op, inner) if inner is not None else _cut(nodes, node, axis, index)
    if isinstance(op, Unslice) and op.axis != axis:
        inner = _taken(nodes, node.operands[0], axis, index, known)
        return None if inner is None else nodes.builder.node(op, inner)
    if isinstance(op, Unslice | Gather) and op.axis == axis and (places := picked(nodes.builder, node)) is not None:
        wanted = [places[i] for i in index]
        if all(i < 0 for i in wanted):
            return None
        if len(wanted) == 1:
            return _taken(nodes, node.operands[0], axis, range(wanted[0], wanted[0] + 1), {})
    return _cut(nodes, node, axis, index)


def _cut(nodes: Nodes, node: Node, axis: int, index: range) -> Node:
    if (index.start, len(index), index.step) == (0, node.dims[axis], 1):
        return node
    return nodes.slice(node, axis, index.start, index.stop, index.step)


def _finite_before(m: MatrixValue, dim: int) -> int:
    return sum(isinstance(d, int) for d in flat(m.axes[:dim]))


def _fixed(of: Matrices, t: InitTerm, at: int) -> Fixed:
    where = t.finite[at]
    if not isinstance(where, Fixed):
        raise UnsupportedOperationError(
            "a part of a finite axis of a growing weight, or a sum over it",
            where=of.a.place,
            advice="put that axis first: then it counts independent matrices",
        )
    return where
