"""Operations that move entries and compute nothing."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch

from tpcompile.capture.graph import Scaled
from tpcompile.lowering import families
from tpcompile.lowering.context import Context, length
from tpcompile.lowering.registry import rule
from tpcompile.lowering.rules.arithmetic import ne
from tpcompile.lowering.value import MatrixValue, Value, extent, flat, has_width, is_width

_WIDEST = {False: torch.int64, True: torch.float64}  # by whether it is a floating point type


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
    axes = ctx.result_axes(x.axes)
    if isinstance(x, MatrixValue):
        if x.axes == axes:
            return x
        if x.is_zero:
            return ctx.filled(0)
        if ctx.current.origin.phase == "tangent" and axes[-len(x.axes) :] == x.axes:
            return replace(x, axes=(((),) * (len(axes) - len(x.axes)) + x.axes))  # one copy a sample: the same matrix
        return families.copied(ctx.matrices, x, axes)
    if has_width(axes) > 1:
        if x.is_zero:
            return ctx.filled(0)
        raise ctx.unsupported("a vector copied along a second axis that grows")
    return ctx.expand(x, axes)


@rule("aten.repeat.default")
def repeat(ctx: Context, x: Any, repeats: Any) -> Any:
    """``repeat(self, repeats)``: copies one behind the other along every axis"""
    x = ctx.any(x)
    rank = len(repeats)
    if rank > len(x.axes):
        x = ctx.with_axes(ctx.value(x), ((),) * (rank - len(x.axes)) + x.axes)
    for dim, times in enumerate(repeats):
        if isinstance(times, Scaled) or times < 1:
            raise ctx.unsupported(f"{times} copies along axis {dim}")
        if times > 1:
            x = ctx.concat([x] * times, dim)
    return x


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
    "aten.contiguous.default",
    "aten.positive.default",
    "aten.view_as.default",
)
def same(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Copies: the same value"""
    return x


@rule("aten._to_copy.default")
def cast(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Any:
    """``_to_copy(self, dtype)``: whether it is not zero, without its fraction, or the same value"""
    before, after = ctx.dtype(0), ctx.current.dtype
    if before is None or after is None or before == after:
        return x
    if after == torch.bool:
        return ne(ctx, x, 0.0)
    if before.is_floating_point and not after.is_floating_point:
        return ctx.finite("aten.trunc.default", [x], {}, None, ctx.current.shape)
    known = ctx.known(x)
    return x if known is None or known.is_floating_point() else ctx.data(known.to(_WIDEST[after.is_floating_point]))


@rule("aten.slice.Tensor")
def slice_(ctx: Context, x: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1) -> Any:
    """``slice(self, dim=0, start=None, end=None, step=1)``"""
    return ctx.part(x, dim, start, end, step)


@rule("aten.select.int")
def select(ctx: Context, x: Any, dim: int, index: int) -> Any:
    """``select(self, dim, index)``"""
    dim %= len(x.axes)
    if is_width(x.axes[dim]):
        raise ctx.unsupported(f"one entry of axis {dim}, which grows with the width")
    index %= length(x.axes[dim])
    return _without(ctx, ctx.part(x, dim, index, index + 1, 1), dim)


def _without(ctx: Context, x: Any, dim: int) -> Any:
    """An axis of length 1 dropped."""
    return ctx.with_axes(x, (*x.axes[:dim], *x.axes[dim + 1 :]))


@rule("aten.unbind.int")
def unbind(ctx: Context, x: Any, dim: int = 0) -> Any:
    """``unbind(self, dim=0)``"""
    return [select(ctx, x, dim, i) for i in range(length(x.axes[dim % len(x.axes)]))]


@rule("aten.split.Tensor", "aten.unsafe_split.Tensor")
def split(ctx: Context, x: Any, size: Any, dim: int = 0) -> Any:
    """``split(self, split_size, dim=0)``"""
    total, growing = extent(x.axes[dim % len(x.axes)])
    each = Fraction(size.coefficient).limit_denominator(2**20) if isinstance(size, Scaled) else Fraction(size)
    if isinstance(size, Scaled) != bool(growing):
        raise ctx.unsupported(f"a number of parts of axis {dim} that changes with the width")
    count = -(-total // each)
    sizes = [each] * (count - 1) + [total - each * (count - 1)]
    return _split(ctx, x, [Scaled(float(s), Fraction(1)) if growing else int(s) for s in sizes], dim)


@rule("aten.split_with_sizes.default", "aten.unsafe_split_with_sizes.default")
def split_with_sizes(ctx: Context, x: Any, sizes: Any, dim: int = 0) -> Any:
    """``split_with_sizes(self, split_sizes, dim=0)``"""
    return _split(ctx, x, sizes, dim)


def _split(ctx: Context, x: Any, sizes: Any, dim: int) -> Any:
    out, start = [], Scaled(0.0, Fraction(1)) if isinstance(sizes[0], Scaled) else 0
    for size in sizes:
        if isinstance(size, Scaled):
            assert isinstance(start, Scaled)
            stop: Any = Scaled(start.coefficient + size.coefficient, Fraction(1))
        else:
            stop = start + size
        out.append(ctx.part(x, dim, start, stop, 1))
        start = stop
    return out


@rule("aten.slice_backward.default")
def slice_backward(ctx: Context, g: Any, sizes: Any, dim: int, start: Any, end: Any, step: int) -> Any:
    """``slice_backward(grad_output, input_sizes, dim, start, end, step)``"""
    if _empty(g):
        return ctx.filled(0)
    dim %= len(g.axes)
    return ctx.embed(g, dim, start, end, step, ctx.result_axes(g.axes)[dim])


def _empty(x: Any) -> bool:
    """True if there are no entries."""
    return isinstance(x, Value) and 0 in flat(x.axes)


@rule("aten.select_backward.default")
def select_backward(ctx: Context, g: Any, sizes: Any, dim: int, index: int) -> Any:
    """``select_backward(grad_output, input_sizes, dim, index)``"""
    dim %= len(g.axes) + 1
    axis = ctx.result_axes()[dim]
    if is_width(axis):
        raise ctx.unsupported(f"one entry of axis {dim}, which grows with the width")
    index %= length(axis)
    wide = ctx.with_axes(g, (*g.axes[:dim], (), *g.axes[dim:]))
    return ctx.embed(wide, dim, index, index + 1, 1, axis)


@rule("aten.slice_scatter.default")
def slice_scatter(
    ctx: Context, x: Any, source: Any, dim: int = 0, start: Any = None, end: Any = None, step: int = 1
) -> Any:
    """``slice_scatter(self, src, dim=0, start=None, end=None, step=1)``: self with a part replaced"""
    dim %= len(x.axes)
    axis = x.axes[dim]
    old = ctx.embed(ctx.part(x, dim, start, end, step), dim, start, end, step, axis)
    return ctx.add(ctx.add(x, ctx.negate(old)), ctx.embed(ctx.any(source), dim, start, end, step, axis))


@rule("aten.select_scatter.default")
def select_scatter(ctx: Context, x: Any, source: Any, dim: int, index: int) -> Any:
    """``select_scatter(self, src, dim, index)``: self with one entry of an axis replaced"""
    dim %= len(x.axes)
    source = ctx.any(source)
    row = ctx.with_axes(source, (*source.axes[:dim], (), *source.axes[dim:]))
    return slice_scatter(ctx, x, row, dim, index, index + 1 if index != -1 else None)


@rule("aten.cat.default")
def cat(ctx: Context, tensors: Any, dim: int = 0) -> Any:
    """``cat(tensors, dim=0)``"""
    return ctx.concat([x for x in tensors if not _empty(x)] or tensors, dim)


@rule("aten.stack.default")
def stack(ctx: Context, tensors: Any, dim: int = 0) -> Any:
    """``stack(tensors, dim=0)``"""
    rank = len(tensors[0].axes)
    dim %= rank + 1
    parts = [ctx.with_axes(x, (*x.axes[:dim], (), *x.axes[dim:])) for x in tensors]
    return ctx.concat(parts, dim)
