"""Entries picked along finite axes, and summed back: what indexing, padding, unfolding and embedding come down to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tpcompile.analysis.semantics import constant_value
from tpcompile.ir import Data, Expand, Gather, Node, Permute, Scatter, Slice, View, Width, reachable
from tpcompile.lowering.context import Context
from tpcompile.lowering.value import Axes, Axis, MatrixValue, Value, flat, is_width


def take(ctx: Context, x: Value, start: int, stop: int, index: Node) -> Value:
    """The finite torch axes ``start:stop`` of x, as one axis, replaced by the axes of the index; -1 is zero."""
    run = _run(ctx, index) if stop - start == 1 else None
    if run is not None:
        part = ctx.value(ctx.part(x, start, *run))
        return ctx.value(ctx.with_axes(part, (*x.axes[:start], *_axes(index), *x.axes[stop:])))
    size = entries(ctx, x.axes[start:stop])
    axes = (*x.axes[:start], *_axes(index), *x.axes[stop:])
    at = len(flat(x.axes[:start]))
    before = (*flat(x.axes[:start]), size, *flat(x.axes[stop:]))
    return ctx.linear(x, flat(axes), lambda n: ctx.node(Gather(at), n, index), before=before, axes=axes)


def _run(ctx: Context, index: Node) -> tuple[int, int, int] | None:
    """Start, stop and step of an index that is a slice, which has rules of its own about what vanishes."""
    if not isinstance(index.op, Data) or index.op.name.startswith(("inputs", "test_inputs", "targets")):
        return None
    known = constant_value(index, ctx.algebra.builder.data)
    if known is None or known.dim() != 1:
        return None
    first = int(known[0]) if len(known) else -1
    step = int(known[1]) - first if len(known) > 1 else 1
    if first < 0 or step < 1 or known.tolist() != list(range(first, first + step * len(known), step)):
        return None
    return first, first + step * (len(known) - 1) + 1, step


def put(ctx: Context, x: Value, start: int, index: Node, axes: Axes) -> Value:
    """Adjoint of :func:`take`: the index's axes of x, from torch axis ``start`` on, summed into the axes given."""
    rank = len(index.dims)
    size = entries(ctx, axes)
    after = x.axes[start + rank :]
    at = len(flat(x.axes[:start]))
    before = (*flat(x.axes[:start]), *index.dims, *flat(after))
    out = (*x.axes[:start], *axes, *after)
    op = Scatter(at, size, rank)
    return ctx.linear(x, flat(out), lambda n: ctx.node(op, n, index), before=before, axes=out)


def entries(ctx: Context, axes: Axes) -> int:
    """Number of entries of finite axes."""
    size = 1
    for d in flat(axes):
        if isinstance(d, Width):
            raise ctx.unsupported("single coordinates of an axis that grows with the width")
        size *= d
    return size


def constant_index(ctx: Context, index: Tensor) -> Node:
    """An index known while compiling."""
    return ctx.algebra.builder.constant(index.to(torch.int64), "index")


def known_index(ctx: Context, x: Value) -> Tensor:
    """The integers of an index of data; without the axes that grow, along which it must be repeated."""
    finite = [_length(a) for a in x.axes if not is_width(a)]
    if x.is_zero:
        return torch.zeros(finite, dtype=torch.int64)
    if not x.terms:
        raise ctx.unsupported("an index that is computed from initial values")
    node = x.terms[0][1]
    dims = node.dims
    while isinstance(node.op, Expand):
        node = node.operands[0]
    found = constant_value(node, ctx.algebra.builder.data)
    if found is None or len(x.terms) > 1 or bool((found != found.round()).any()):
        raise ctx.unsupported("an index that is computed from initial values")
    lengths = [d if isinstance(d, int) else 1 for d in dims]
    return found.expand(lengths).reshape(finite).to(torch.int64)


def joint_index(ctx: Context, indices: Sequence[Value], sizes: Sequence[int]) -> Node:
    """One index into the merged axes of these lengths, from one index an axis; negative ones count from the end."""
    known = [known_index(ctx, x) for x in indices]
    if len(indices) == 1 and indices[0].terms and bool((known[0] >= 0).all()):
        node = indices[0].terms[0][1]
        if all(isinstance(x.op, Data | Slice | View | Permute) for x in reachable([node])):
            return ctx.algebra.nodes.view(node, tuple(known[0].shape))
    fixed(ctx, *indices)
    total = torch.zeros((), dtype=torch.int64)
    for place, size in zip(known, sizes, strict=True):
        total = total * size + place % size
    return constant_index(ctx, total)


def fixed(ctx: Context, *indices: Value) -> None:
    """Refuse to take the entries of indices for constants where the program is to serve other inputs (kernels)."""
    nodes = reachable([node for x in indices for _, node in x.terms])
    if ctx.derivatives and any(isinstance(x.op, Data) and x.op.name.startswith("inputs") for x in nodes):
        raise ctx.unsupported(
            "an index that is computed from the inputs", advice="index with the inputs or with parts of them"
        )


def moved(ctx: Context, x: Any) -> Value:
    """x, for rules of operations that move entries; matrices of two growing axes are refused."""
    if isinstance(x, MatrixValue):
        raise ctx.unsupported("a part of a matrix of two growing axes")
    return x


def _axes(index: Node) -> Axes:
    return tuple(_axis(d) for d in index.dims)


def _axis(d: int | Width) -> Axis:
    return () if d == 1 else (d,)


def _length(axis: Axis) -> int:
    (d,) = axis or (1,)
    assert isinstance(d, int)
    return d
