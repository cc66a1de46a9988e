"""Layer, batch and group normalisation from their definitions: statistics over some axes, and one backward formula.

A statistic over an axis that grows is a moment; over the batch alone it is a vector. Whether epsilon counts is decided
by the exponents (theory, section 3): ``rsqrt(variance + eps)`` is a function of a series.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from tpcompile.ir import Width
from tpcompile.lowering.axes import refactor
from tpcompile.lowering.context import Context
from tpcompile.lowering.registry import rule
from tpcompile.lowering.value import Value


@rule("aten.native_layer_norm.default")
def layer_norm(ctx: Context, x: Any, shape: Any, weight: Any, bias: Any, eps: Any) -> Any:
    """``native_layer_norm(input, normalized_shape, weight, bias, eps)``: result, mean, 1/std"""
    x = ctx.value(x)
    dims = range(len(x.axes) - len(shape), len(x.axes))
    mean, scale = _statistics(ctx, x, dims, eps)
    return [_affine(ctx, _standard(ctx, x, mean, scale), weight, bias), mean, scale]


@rule("aten.native_layer_norm_backward.default")
def layer_norm_backward(
    ctx: Context, g: Any, x: Any, shape: Any, mean: Any, scale: Any, weight: Any, bias: Any, mask: Any
) -> Any:
    """``native_layer_norm_backward(grad_out, input, normalized_shape, mean, rstd, weight, bias, output_mask)``"""
    rank, count = len(x.axes), len(shape)
    standard = _standard(ctx, x, mean, scale)
    others = list(range(rank - count))
    of_input = None
    if mask[0]:
        inner = g if weight is None else ctx.times(g, weight)
        of_input = _back(ctx, inner, standard, scale, range(rank - count, rank))
    of_weight = _total(ctx, ctx.times(g, standard), others) if mask[1] and weight is not None else None
    of_bias = _total(ctx, g, others) if mask[2] else None
    return [of_input, of_weight, of_bias]


@rule("aten._native_batch_norm_legit_functional.default")
def batch_norm_functional(
    ctx: Context, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: Any, eps: Any
) -> Any:
    """``_native_batch_norm_legit_functional(input, weight, bias, running_mean, running_var, training, ...)``"""
    x = ctx.value(x)
    if not training:
        return [*batch_norm(ctx, x, weight, bias, mean, variance, False, momentum, eps), mean, variance]
    dims = _all_but_channels(x)
    centre, scale = _statistics(ctx, x, dims, eps)
    out = _affine(ctx, _standard(ctx, x, centre, scale), _channels(ctx, weight, x), _channels(ctx, bias, x))
    count = 1
    for i in dims:
        for d in x.axes[i]:
            if isinstance(d, Width):
                raise ctx.unsupported("batch statistics over an axis that grows with the width")
            count *= d
    spread = ctx.sum(_square(ctx, ctx.add(x, ctx.negate(centre))), list(dims), keepdim=False)
    unbiased = ctx.times(spread, 1.0 / max(count - 1, 1))
    flat_centre, flat_scale = (ctx.with_axes(v, (x.axes[1],)) for v in (centre, scale))
    moved = [
        ctx.add(ctx.times(old, 1.0 - momentum), ctx.times(new, momentum))
        for old, new in ((mean, flat_centre), (variance, unbiased))
    ]
    return [out, flat_centre, flat_scale, *moved]


@rule("aten.native_batch_norm.default")
def batch_norm(
    ctx: Context, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, training: bool, momentum: Any, eps: Any
) -> Any:
    """``native_batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps)``"""
    x = ctx.value(x)
    if training:  # without running statistics
        dims = _all_but_channels(x)
        centre, scale = _statistics(ctx, x, dims, eps)
    else:
        centre = _channels(ctx, mean, x)
        scale = ctx.apply("rsqrt", ctx.add(_channels(ctx, variance, x), ctx.number(eps)))
    out = _affine(ctx, _standard(ctx, x, centre, scale), _channels(ctx, weight, x), _channels(ctx, bias, x))
    if not training:
        nothing = ctx.algebra.zeros(((0,),))
        return [out, nothing, nothing]
    return [out, *(ctx.with_axes(v, (x.axes[1],)) for v in (centre, scale))]


@rule("aten.native_batch_norm_backward.default")
def batch_norm_backward(
    ctx: Context, g: Any, x: Any, weight: Any, mean: Any, variance: Any, centre: Any, scale: Any, training: bool,
    eps: Any, mask: Any,
) -> Any:  # fmt: skip
    """``native_batch_norm_backward(grad_out, input, weight, running_mean, ..., save_mean, save_invstd, train, ...)``"""
    if not training:
        centre, scale = mean, ctx.apply("rsqrt", ctx.add(variance, ctx.number(eps)))
    centre, scale = _channels(ctx, centre, x), _channels(ctx, scale, x)
    standard = _standard(ctx, x, centre, scale)
    dims = _all_but_channels(x)
    of_input = None
    if mask[0]:
        inner = g if weight is None else ctx.times(g, _channels(ctx, weight, x))
        of_input = _back(ctx, inner, standard, scale, dims) if training else ctx.times(inner, scale)
    of_weight = _total(ctx, ctx.times(g, standard), dims) if mask[1] and weight is not None else None
    of_bias = _total(ctx, g, dims) if mask[2] else None
    return [of_input, of_weight, of_bias]


@rule("aten.native_group_norm.default")
def group_norm(
    ctx: Context, x: Any, weight: Any, bias: Any, batch: Any, channels: Any, positions: Any, groups: Any, eps: Any
) -> Any:
    """``native_group_norm(input, weight, bias, N, C, HxW, group, eps)``: result, mean, 1/std"""
    x = ctx.value(x)
    parts = _groups(ctx, x, groups)
    dims = range(2, len(parts.axes))
    mean, scale = _statistics(ctx, parts, dims, eps)
    standard = ctx.with_axes(_standard(ctx, parts, mean, scale), x.axes)
    out = _affine(ctx, standard, _channels(ctx, weight, x), _channels(ctx, bias, x))
    return [out, *(ctx.with_axes(v, parts.axes[:2]) for v in (mean, scale))]


@rule("aten.native_group_norm_backward.default")
def group_norm_backward(
    ctx: Context, g: Any, x: Any, mean: Any, scale: Any, weight: Any, batch: Any, channels: Any, positions: Any,
    groups: Any, mask: Any,
) -> Any:  # fmt: skip
    """``native_group_norm_backward(grad_out, input, mean, rstd, weight, N, C, HxW, group, output_mask)``"""
    parts = _groups(ctx, x, groups)
    statistics = (*parts.axes[:2], *(() for _ in parts.axes[2:]))
    mean, scale = (ctx.with_axes(v, statistics) for v in (mean, scale))
    standard = _standard(ctx, parts, mean, scale)
    of_input = None
    if mask[0]:
        inner = ctx.value(g if weight is None else ctx.times(g, _channels(ctx, weight, x)))
        back = _back(ctx, ctx.with_axes(inner, parts.axes), standard, scale, range(2, len(parts.axes)))
        of_input = ctx.with_axes(back, x.axes)
    dims = _all_but_channels(x)
    whole = ctx.with_axes(standard, x.axes)
    of_weight = _total(ctx, ctx.times(g, whole), dims) if mask[1] and weight is not None else None
    of_bias = _total(ctx, g, dims) if mask[2] else None
    return [of_input, of_weight, of_bias]


def _statistics(ctx: Context, x: Value, dims: Sequence[int], eps: Any) -> tuple[Value, Value]:
    """Mean and ``1 / sqrt(variance + eps)`` over some axes, which stay with length 1."""
    mean = _mean(ctx, x, dims)
    variance = _mean(ctx, _square(ctx, ctx.add(x, ctx.negate(mean))), dims)
    return mean, ctx.apply("rsqrt", ctx.add(variance, ctx.number(eps)))


def _mean(ctx: Context, x: Value, dims: Sequence[int]) -> Value:
    total: Any = ctx.sum(x, list(dims), keepdim=True)
    for i in dims:
        total = ctx.divide_by_length(total, x.axes[i])
    return total


def _square(ctx: Context, x: Any) -> Value:
    return ctx.value(ctx.times(x, x))


def _total(ctx: Context, x: Any, dims: Sequence[int]) -> Any:
    """Sum over some axes, which disappear."""
    return ctx.sum(x, list(dims), keepdim=False) if dims else x


def _standard(ctx: Context, x: Any, mean: Any, scale: Any) -> Value:
    return ctx.value(ctx.times(ctx.add(x, ctx.negate(mean)), scale))


def _affine(ctx: Context, x: Any, weight: Any, bias: Any) -> Any:
    out = x if weight is None else ctx.times(x, weight)
    return out if bias is None else ctx.add(out, bias)


def _back(ctx: Context, g: Any, standard: Value, scale: Any, dims: Sequence[int]) -> Value:
    """Gradient of the input: ``scale (g - mean(g) - standard mean(g standard))``."""
    g = ctx.value(g)
    along = ctx.times(standard, _mean(ctx, ctx.value(ctx.times(g, standard)), dims))
    rest = ctx.add(g, ctx.negate(ctx.add(_mean(ctx, g, dims), along)))
    return ctx.value(ctx.times(rest, scale))


def _all_but_channels(x: Value) -> list[int]:
    return [i for i in range(len(x.axes)) if i != 1]


def _channels(ctx: Context, v: Any, x: Value) -> Any:
    """A vector over the channels, to broadcast against x."""
    if v is None:
        return None
    if v.axes != (x.axes[1],):  # a constant over channels that are a batch of channels in x (tangent kernels)
        nodes = ctx.algebra.nodes
        numbers = [(e, *nodes.split(node, keep_dims=False)) for e, node in v.terms]
        if any(base is not nodes.one for _, _, base in numbers):
            raise ctx.unsupported("a normalisation of channels that are merged with other axes")
        v = ctx.algebra.collect((x.axes[1],), numbers, v.remainder)
    return ctx.with_axes(v, (*v.axes, *(() for _ in x.axes[2:])))


def _groups(ctx: Context, x: Value, groups: int) -> Value:
    """The channels as two axes: the groups, and those of a group."""
    coefficient, power = Fraction(1), 0
    for d in x.axes[1]:
        coefficient *= d.ratio if isinstance(d, Width) else d
        power += isinstance(d, Width)
    parts = refactor((x.axes[1],), [(Fraction(groups), 0), (coefficient / groups, power)], ctx.place)
    return ctx.with_axes(x, (x.axes[0], *parts, *x.axes[2:]))
