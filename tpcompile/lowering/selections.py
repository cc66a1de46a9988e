"""Sums of parts of one value as one selection of its entries: what writing into slices (circular padding) comes to."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

import torch

from tpcompile.analysis.semantics import constant_value
from tpcompile.ir import Builder, Expand, Gather, Mul, Node, Slice, Sum, Unslice

Index = tuple[int, ...]  # the entry at each place, -1 for zero
Selection = tuple[Node, frozenset[tuple[int, Index]]]  # of a value, along each of some axes; along others all of it


def merged(builder: Builder, summands: Mapping[Node, float]) -> dict[Node, float]:
    """The summands, those that together pick at most one entry of the same value for each place made one."""
    out = dict(summands)
    if not any(isinstance(x.op, Unslice) for x in summands):
        return out
    found = {x: _selection(builder, x) for x in summands}
    for axis in sorted({axis for _, chosen in found.values() for axis, _ in chosen}):
        groups: dict[Selection, dict[Node, Index]] = defaultdict(dict)
        for x in out:
            base, chosen = found[x]
            along = dict(chosen)
            size = base.dims[axis] if axis < len(base.dims) else None
            index = along.pop(axis, tuple(range(size)) if isinstance(size, int) else None)
            if index is not None:
                groups[base, frozenset(along.items())][x] = index
        for (base, others), parts in groups.items():
            joined = _joined([(out[x], index) for x, index in parts.items()]) if len(parts) > 1 else None
            if joined is None:
                continue
            for x in parts:
                del out[x]
            coefficient, index = joined
            if coefficient:
                chosen = others | {(axis, index)}
                node = _selected(builder, base, chosen)
                found[node] = base, chosen
                out[node] = out.get(node, 0.0) + coefficient
    return out


def repeated(builder: Builder, node: Node, axis: int) -> bool:
    """True if a value is plainly one and the same along a finite axis."""
    if node.dims[axis] == 1:
        return True
    if isinstance(node.op, Expand):
        (inner,) = node.operands
        at = axis - len(node.dims) + len(inner.dims)
        return at < 0 or (inner.dims[at] == 1 or repeated(builder, inner, at))
    if isinstance(node.op, Gather) and node.op.axis == axis:
        index = _index(builder, node)
        return index is not None and len(set(index)) == 1
    if isinstance(node.op, Sum | Mul):
        offsets = [axis - len(node.dims) + len(x.dims) for x in node.operands]
        return all(at < 0 or repeated(builder, x, at) for x, at in zip(node.operands, offsets, strict=True))
    return False


def picked(builder: Builder, node: Node) -> Index | None:
    """The entry of its operand at each place of the axis of a slice, its adjoint or a gather; None if not known."""
    return _index(builder, node)


def _joined(parts: list[tuple[float, Index]]) -> tuple[float, Index] | None:
    """``coefficient * selection`` that equals the sum of such; None if there is none. A coefficient of 0 is zero."""
    if len({len(index) for _, index in parts}) > 1:  # one of them is broadcast
        return None
    places: list[dict[int, float]] = [defaultdict(float) for _ in parts[0][1]]
    for coefficient, index in parts:
        for place, source in zip(places, index, strict=True):
            if source >= 0:
                place[source] += coefficient
    kept = [[(source, c) for source, c in place.items() if c != 0.0] for place in places]
    coefficients = {c for place in kept for _, c in place}
    if len(coefficients) > 1 or any(len(place) > 1 for place in kept):
        return None
    return coefficients.pop() if coefficients else 0.0, tuple(place[0][0] if place else -1 for place in kept)


def _selected(builder: Builder, base: Node, chosen: frozenset[tuple[int, Index]]) -> Node:
    node = base
    for axis, index in sorted(chosen):
        size = node.dims[axis]
        assert isinstance(size, int)
        if index != tuple(range(size)):
            node = builder.node(Gather(axis), node, builder.constant(torch.tensor(index), "index"))
    return node


def _selection(builder: Builder, node: Node) -> Selection:
    """What a chain of slices, their adjoints and gathers picks: along different axes they commute."""
    chosen: dict[int, Index] = {}
    while isinstance(node.op, Slice | Unslice | Gather):
        index, axis = _index(builder, node), node.op.axis
        if index is None:
            break
        outer = chosen.get(axis, tuple(range(len(index))))
        chosen[axis] = tuple(index[i] if i >= 0 else -1 for i in outer)
        node = node.operands[0]
    return node, frozenset(chosen.items())


def _index(builder: Builder, node: Node) -> Index | None:
    op = node.op
    if isinstance(op, Slice):
        size = node.operands[0].dims[op.axis]
        assert isinstance(size, int)
        return tuple(range(size)[op.start : op.stop : op.step])
    if isinstance(op, Unslice):
        index = [-1] * op.size
        for i, place in enumerate(range(op.size)[op.start : op.stop : op.step]):
            index[place] = i
        return tuple(index)
    known = constant_value(node.operands[1], builder.data)
    return None if known is None or known.dim() != 1 else tuple(int(i) for i in known)
