"""Operations that move entries and compute nothing."""

from __future__ import annotations

from typing import Any

from tpcompile.ir import Slice, Unslice
from tpcompile.lowering.context import Context, length
from tpcompile.lowering.registry import rule
from tpcompile.lowering.value import MatrixValue, Value, flat


@rule("aten.view.default", "aten._unsafe_view.default", "aten.reshape.default")
def view(ctx: Context, x: Any, size: Any) -> Any:
    """``view(self, size)``"""
    return ctx.reshape_to_result(x)


@rule("aten.unsqueeze.default", "aten.squeeze.dim", "aten.squeeze.dims", "aten.squeeze.default")
def squeeze(ctx: Context, x: Any, dim: Any = None) -> Any:
    """``unsqueeze(self, dim)`` and the squeezes: the result's shape says it all"""
    return ctx.reshape_to_result(x)


@rule("aten.expand.default", "aten.broadcast_to.default")
def expand(ctx: Context, x: Any, size: Any, implicit: bool = False) -> Any:
    """``expand(self, size)``"""
    axes = ctx.result_axes()
    if isinstance(x, MatrixValue):
        if x.axes == axes:
            return x
        raise ctx.unsupported("a copied matrix of two growing axes")
    return ctx.expand(x, axes)


@rule("aten.t.default")
def t(ctx: Context, x: Any) -> Any:
    """``t(self)``"""
    return permute(ctx, x, list(range(len(x.axes)))[::-1])


@rule("aten.transpose.int")
def transpose(ctx: Context, x: Any, dim0: int, dim1: int) -> Any:
    """``transpose(self, dim0, dim1)``"""
    order = list(range(len(x.axes)))
    order[dim0], order[dim1] = order[dim1], order[dim0]
    return permute(ctx, x, order)


@rule("aten.permute.default")
def permute(ctx: Context, x: Any, dims: Any) -> Any:
    """``permute(self, dims)``"""
    rank = len(x.axes)
    order = [d % rank for d in dims]
    if isinstance(x, Value):
        return ctx.algebra.permute(x, order)
    return ctx.matrices.permute(x, order)


@rule(
    "aten.clone.default",
    "aten.detach.default",
    "aten.alias.default",
    "aten.lift_fresh_copy.default",
    "aten._to_copy.default",
    "aten.contiguous.default",
    "aten.positive.default",
    "aten.view_as.default",
)
def same(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Copies and casts: the same value"""
    return x


def _axis(ctx: Context, x: Value, dim: int) -> int:
    """IR axis of a finite torch axis."""
    if isinstance(x, MatrixValue):
        raise ctx.unsupported("a part of a matrix of two growing axes")
    dim %= len(x.axes)
    if len(x.axes[dim]) != 1 or not isinstance(x.axes[dim][0], int):
        raise ctx.unsupported(f"a part of axis {dim}, which grows with the width or has length 1")
    return len(flat(x.axes[:dim]))


@rule("aten.slice.Tensor")
def slice_(ctx: Context, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    """``slice(self, dim=0, start=None, end=None, step=1)``"""
    axes = ctx.result_axes()
    if x.axes == axes and step == 1:
        return x
    axis = _axis(ctx, x, dim)
    size = length(x.axes[dim])
    begin, stop, step = slice(start, end, step).indices(size)
    cut = ctx.linear(x, flat(axes), lambda n: ctx.node(Slice(axis, begin, stop, step), n), before=flat(x.axes))
    return ctx.with_axes(cut, axes)


@rule("aten.select.int")
def select(ctx: Context, x: Any, dim: int, index: int) -> Any:
    """``select(self, dim, index)``"""
    axes = ctx.result_axes()
    if isinstance(x, Value) and x.axes[dim] == ():
        return ctx.with_axes(x, axes)
    axis = _axis(ctx, x, dim)
    index %= length(x.axes[dim])
    return ctx.linear(x, flat(axes), lambda n: ctx.node(Slice(axis, index, index + 1, 1), n), axes=axes)


@rule("aten.slice_backward.default")
def slice_backward(ctx: Context, g: Any, sizes: Any, dim: int, start: int, end: int, step: int) -> Any:
    """``slice_backward(grad_output, input_sizes, dim, start, end, step)``"""
    axes = ctx.result_axes()
    if g.axes == axes:
        return g
    axis = len(flat(axes[:dim]))
    size = length(axes[dim])
    begin, stop, step = slice(start, end, step).indices(size)
    full = (*flat(axes[:dim]), len(range(begin, stop, step)), *flat(axes[dim + 1 :]))
    return ctx.linear(
        g, flat(axes), lambda n: ctx.node(Unslice(axis, begin, stop, step, size), n), before=full, axes=axes
    )


@rule("aten.select_backward.default")
def select_backward(ctx: Context, g: Any, sizes: Any, dim: int, index: int) -> Any:
    """``select_backward(grad_output, input_sizes, dim, index)``"""
    axes = ctx.result_axes()
    dim %= len(axes)
    if axes[dim] == ():
        return ctx.with_axes(g, axes)
    axis, size = len(flat(axes[:dim])), length(axes[dim])
    index %= size
    full = (*flat(axes[:dim]), 1, *flat(axes[dim + 1 :]))
    op = Unslice(axis, index, index + 1, 1, size)
    return ctx.linear(g, flat(axes), lambda n: ctx.node(op, n), before=full, axes=axes)


@rule("aten.cat.default")
def cat(ctx: Context, tensors: Any, dim: int = 0) -> Any:
    """``cat(tensors, dim=0)`` along a finite axis"""
    return ctx.concat(tensors, dim)


@rule("aten.stack.default")
def stack(ctx: Context, tensors: Any, dim: int = 0) -> Any:
    """``stack(tensors, dim=0)``"""
    rank = len(tensors[0].axes)
    dim %= rank + 1
    parts = [ctx.with_axes(x, (*x.axes[:dim], (), *x.axes[dim:])) for x in tensors]
    return ctx.concat(parts, dim)
