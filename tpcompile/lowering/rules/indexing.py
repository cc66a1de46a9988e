"""Entries picked by integer tensors, and their adjoints."""

from __future__ import annotations

from typing import Any

import torch

from tpcompile.ir import Finite, Node
from tpcompile.lowering.context import Context, length
from tpcompile.lowering.gather import constant_index, entries, fixed, joint_index, known_index, moved, put, take
from tpcompile.lowering.registry import rule
from tpcompile.lowering.rules.maxima import winners
from tpcompile.lowering.value import Axes, Value, has_width, is_width


@rule("aten.index.Tensor", "aten._unsafe_index.Tensor")
def index(ctx: Context, x: Any, indices: Any) -> Any:
    """``index(self, indices)``: x[i, :, j] by integer tensors of data"""
    if not has_width(ctx.value(x).axes):
        return ctx.finite(str(ctx.current.target), [x, indices], {}, None, ctx.current.shape)
    order, count, start, sizes = _indexed(ctx, x, indices)
    x = ctx.algebra.permute(x, order)
    joint = joint_index(ctx, [i for i in indices if i is not None], sizes)
    return take(ctx, x, start, start + count, joint)


@rule("aten.index_put.default", "aten._unsafe_index_put.default")
def index_put(ctx: Context, x: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    """``index_put(self, indices, values, accumulate=False)``; without accumulation into zeros only"""
    x, values = ctx.value(x), ctx.value(values)
    if not has_width(x.axes) and not has_width(values.axes):
        args = [x, indices, values, accumulate]
        return ctx.finite(str(ctx.current.target), args, {}, None, ctx.current.shape)
    if not accumulate:
        raise ctx.unsupported("entries overwritten at places given by a tensor", "add to zeros with accumulate=True")
    order, count, start, sizes = _indexed(ctx, x, indices)
    joint = joint_index(ctx, [i for i in indices if i is not None], sizes)
    axes = tuple(x.axes[i] for i in order)
    expanded = (*axes[:start], *(((d,) if d != 1 else ()) for d in joint.dims), *axes[start + count :])
    values = ctx.expand(values, expanded)
    added = put(ctx, values, start, joint, axes[start : start + count])
    back = [order.index(i) for i in range(len(order))]
    return ctx.add(x, ctx.algebra.permute(added, back))


def _indexed(ctx: Context, x: Any, indices: Any) -> tuple[list[int], int, int, list[int]]:
    """Axes in the order of the result, how many are indexed and from where on, and their lengths."""
    moved(ctx, x)
    places = [i for i, v in enumerate(indices) if v is not None]
    rest = [i for i in range(len(x.axes)) if i not in places]
    adjacent = places == list(range(places[0], places[0] + len(places)))
    start = places[0] if adjacent else 0
    order = [*rest[:start], *places, *rest[start:]]
    return order, len(places), start, [entries(ctx, (x.axes[i],)) for i in places]


@rule("aten.index_select.default")
def index_select(ctx: Context, x: Any, dim: int, index: Any) -> Any:
    """``index_select(self, dim, index)``"""
    x = moved(ctx, x)
    dim %= len(x.axes)
    return take(ctx, x, dim, dim + 1, joint_index(ctx, [index], [entries(ctx, (x.axes[dim],))]))


@rule("aten.index_add.default")
def index_add(ctx: Context, x: Any, dim: int, index: Any, source: Any, alpha: Any = 1) -> Any:
    """``index_add(self, dim, index, source, *, alpha=1)``"""
    x = moved(ctx, x)
    dim %= len(x.axes)
    joint = joint_index(ctx, [index], [entries(ctx, (x.axes[dim],))])
    return ctx.add(x, ctx.times(put(ctx, moved(ctx, source), dim, joint, (x.axes[dim],)), alpha))


@rule("aten.gather.default")
def gather(ctx: Context, x: Any, dim: int, index: Any, sparse_grad: bool = False) -> Any:
    """``gather(self, dim, index)`` with an index that is repeated along the axes that grow"""
    x = moved(ctx, x)
    if computed(ctx, index):
        return _gathered(ctx, x, dim, index)
    joint, order, back = _along(ctx, x.axes, dim, index)
    finite = len(joint.dims)
    picked = take(ctx, ctx.algebra.permute(x, order), 0, finite, joint)
    return ctx.algebra.permute(picked, back)


@rule("aten.scatter_add.default")
def scatter_add(ctx: Context, x: Any, dim: int, index: Any, source: Any) -> Any:
    """``scatter_add(self, dim, index, src)`` with an index that is repeated along the axes that grow"""
    x, source = moved(ctx, ctx.value(x)), moved(ctx, ctx.value(source))
    if computed(ctx, index):
        return ctx.add(x, _scattered(ctx, "aten.scatter_add.default", source, dim, index, x.axes))
    joint, order, back = _along(ctx, x.axes, dim, index)
    finite = len(joint.dims)
    added = put(ctx, ctx.algebra.permute(source, order), 0, joint, tuple(x.axes[i] for i in order[:finite]))
    return ctx.add(x, ctx.algebra.permute(added, back))


@rule("aten.scatter.src")
def scatter(ctx: Context, x: Any, dim: int, index: Any, source: Any) -> Any:
    """``scatter(self, dim, index, src)`` of finite axes, or at the places of a maximum"""
    x, source = moved(ctx, ctx.value(x)), moved(ctx, ctx.value(source))
    if (won := winners(ctx, index)) is not None and won.axes == x.axes:
        return ctx.add(x, ctx.times(won, ctx.add(source, ctx.negate(x))))
    if has_width(x.axes):
        raise ctx.unsupported("entries of growing values overwritten at places given by a tensor")
    return ctx.add(_erased(ctx, x, dim, index), _scattered(ctx, "aten.scatter.src", source, dim, index, x.axes))


@rule("aten.topk.default")
def topk(ctx: Context, x: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """``topk(self, k, dim=-1, largest=True, sorted=True)``: values and places

    The places are those of the leading term: where it is a random sum, they are random. A limit needs that no two
    entries agree, which nothing here can know, so only sizes are followed.
    """
    x = moved(ctx, ctx.value(x))
    if not (ctx.beyond or ctx.algebra.width) or has_width(x.axes):
        raise ctx.unsupported("the largest of computed values: which they are jumps where two of them meet")
    if x.remainder is not None and (not x.terms or x.remainder >= x.terms[0][0]):
        raise ctx.unsupported("the largest of values whose leading order is not known")
    node = x.terms[0][1] if x.terms else ctx.algebra.limit(x)
    dims = tuple(k if i == dim % len(x.axes) else d for i, d in enumerate(_lengths(x)))
    op = Finite("aten.topk.default", (("%", 0), k, dim, largest, sorted), (), 1, dims)
    index = ctx.constant(ctx.node(op, ctx.algebra.nodes.view(node, _lengths(x))))
    return [_gathered(ctx, x, dim, index), index]


def computed(ctx: Context, index: Any) -> bool:
    """True if an index depends on initial values."""
    return isinstance(index, Value) and not has_width(index.axes) and bool(index.terms) and ctx.known(index) is None


def _gathered(ctx: Context, x: Value, dim: int, index: Value) -> Value:
    """Entries of finite axes at a computed index."""
    op = Finite("aten.gather.default", (("%", 0), dim, ("%", 1)), (), None, _lengths(index))
    place = _node(ctx, index)
    return ctx.linear(
        x, op.shape, lambda n: ctx.node(op, n, place), before=_lengths(x), axes=index.axes
    )  # fmt: skip


def _scattered(ctx: Context, target: str, source: Value, dim: int, index: Value, axes: Axes) -> Value:
    """The source at a computed index of zeros of finite axes."""
    zeros = ctx.algebra.zeros(axes)
    op = Finite(target, (("%", 2), dim, ("%", 1), ("%", 0)), (), None, _lengths(zeros))
    place, rest = _node(ctx, index), _node(ctx, zeros)
    return ctx.linear(
        source, op.shape, lambda n: ctx.node(op, n, place, rest), before=_lengths(source), axes=axes
    )  # fmt: skip


def _erased(ctx: Context, x: Value, dim: int, index: Value) -> Value:
    """Zero at a computed index."""
    op = Finite("aten.scatter.value", (("%", 0), dim, ("%", 1), 0.0), (), None, _lengths(x))
    place = _node(ctx, index)
    return ctx.linear(x, op.shape, lambda n: ctx.node(op, n, place), before=_lengths(x), axes=x.axes)


def _node(ctx: Context, x: Value) -> Node:
    return ctx.algebra.nodes.view(ctx.algebra.limit(x), _lengths(x))


def _lengths(x: Value) -> tuple[int, ...]:
    return tuple(length(a) for a in x.axes)


def _along(ctx: Context, axes: Axes, dim: int, index: Value) -> tuple[Node, list[int], list[int]]:
    """The index into all finite axes merged, the order that puts these first, and the way back."""
    dim %= len(axes)
    finite = [i for i, a in enumerate(axes) if not is_width(a)]
    order = [*finite, *(i for i in range(len(axes)) if i not in finite)]
    if dim not in finite or any(is_width(index.axes[i]) == (i in finite) for i in range(len(axes))):
        raise ctx.unsupported("single coordinates of an axis that grows with the width")
    known = known_index(ctx, index)
    fixed(ctx, index)
    total = torch.zeros((), dtype=torch.int64)
    for place, i in enumerate(finite):
        here = [1] * len(finite)
        here[place] = known.shape[place]
        at = known if i == dim else torch.arange(known.shape[place]).reshape(here)
        total = total * entries(ctx, (axes[i],)) + at
    return constant_index(ctx, total.expand(known.shape)), order, [order.index(i) for i in range(len(order))]


@rule("aten.embedding.default")
def embedding(
    ctx: Context, weight: Any, indices: Any, padding_idx: int = -1, scale_grad: bool = False, sparse: bool = False
) -> Any:
    """``embedding(weight, indices, padding_idx=-1, ...)``: rows of a table of finitely many"""
    weight = moved(ctx, weight)
    return take(ctx, weight, 0, 1, joint_index(ctx, [indices], [entries(ctx, (weight.axes[0],))]))


@rule("aten.embedding_dense_backward.default")
def embedding_backward(ctx: Context, g: Any, indices: Any, rows: Any, padding_idx: int, scale_grad: bool) -> Any:
    """``embedding_dense_backward(grad_output, indices, num_weights, padding_idx, scale_grad_by_freq)``"""
    if scale_grad:
        raise ctx.unsupported("an embedding with scale_grad_by_freq=True")
    axes = ctx.result_axes()
    known = known_index(ctx, indices)
    if padding_idx >= 0:
        fixed(ctx, indices)
    if padding_idx >= 0 and bool((known == padding_idx).any()):
        node = constant_index(ctx, known.masked_fill(known == padding_idx, -1))
    else:
        node = joint_index(ctx, [indices], [entries(ctx, axes[:1])])
    return put(ctx, moved(ctx, g), 0, node, axes[:1])
