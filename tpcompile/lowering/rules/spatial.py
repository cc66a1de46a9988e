"""Fixed linear maps of finite axes: padding, average pooling, resampling, flips, and the adjoints of all of them.

Such an operation acts on some of its axes (image positions) and treats all others alike. The operation itself, applied
to unit vectors, tells its matrix; the few entries that make up each result are gathered and added with their weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tpcompile.analysis.semantics import overload
from tpcompile.lowering.context import Context, length
from tpcompile.lowering.gather import constant_index, moved, put, take
from tpcompile.lowering.registry import rule
from tpcompile.lowering.value import Axes, MatrixValue, Value, has_width

_LARGEST = 2**26  # entries of the matrix of the map


@rule(
    "aten.avg_pool1d.default", "aten.adaptive_avg_pool1d.default",
    "aten.reflection_pad1d.default", "aten.reflection_pad1d_backward.default",
    "aten.replication_pad1d.default", "aten.replication_pad1d_backward.default",
    "aten.upsample_nearest1d.default", "aten.upsample_nearest1d_backward.default",
    "aten.upsample_linear1d.default", "aten.upsample_linear1d_backward.default",
)  # fmt: skip
def on_lines(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Operations on the last axis"""
    return _mapped(ctx, x, args, kwargs, 1)


@rule(
    "aten.avg_pool2d.default", "aten.avg_pool2d_backward.default",
    "aten._adaptive_avg_pool2d.default", "aten._adaptive_avg_pool2d_backward.default",
    "aten.reflection_pad2d.default", "aten.reflection_pad2d_backward.default",
    "aten.replication_pad2d.default", "aten.replication_pad2d_backward.default",
    "aten.upsample_nearest2d.default", "aten.upsample_nearest2d_backward.default",
    "aten.upsample_bilinear2d.default", "aten.upsample_bilinear2d_backward.default",
    "aten.upsample_bicubic2d.default", "aten.upsample_bicubic2d_backward.default",
)  # fmt: skip
def on_images(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Operations on the last two axes"""
    return _mapped(ctx, x, args, kwargs, 2)


@rule(
    "aten.avg_pool3d.default", "aten.avg_pool3d_backward.default",
    "aten._adaptive_avg_pool3d.default", "aten._adaptive_avg_pool3d_backward.default",
    "aten.reflection_pad3d.default", "aten.reflection_pad3d_backward.default",
    "aten.replication_pad3d.default", "aten.replication_pad3d_backward.default",
    "aten.upsample_nearest3d.default", "aten.upsample_nearest3d_backward.default",
)  # fmt: skip
def on_volumes(ctx: Context, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Operations on the last three axes"""
    return _mapped(ctx, x, args, kwargs, 3)


@rule("aten.constant_pad_nd.default")
def constant_pad(ctx: Context, x: Any, pad: Any, value: Any = 0) -> Any:
    """``constant_pad_nd(self, pad, value=0)``; negative lengths cut"""
    if not isinstance(x, MatrixValue) and not has_width(ctx.value(x).axes):
        return ctx.finite("aten.constant_pad_nd.default", [x, pad, value], {}, None, ctx.current.shape)
    x = moved(ctx, x)
    inside = torch.ones((1,) * len(x.axes), dtype=torch.float64)
    for i, ends in enumerate(zip(pad[::2], pad[1::2], strict=True)):
        dim = len(x.axes) - 1 - i
        if any(ends):  # an axis that grows may stand between those that are padded
            size = length_of(ctx, x.axes, dim)
            index = torch.constant_pad_nd(torch.arange(size), ends, -1)
            x = take(ctx, x, dim, dim + 1, constant_index(ctx, index))
            inside = inside * (index >= 0).double().reshape([-1 if d == dim else 1 for d in range(len(x.axes))])
    if not value:
        return x
    return ctx.add(x, ctx.constant(ctx.algebra.builder.constant(value * (1 - inside), "frame")))


@rule("aten.flip.default")
def flip(ctx: Context, x: Any, dims: Any) -> Any:
    """``flip(self, dims)``"""
    return _along(ctx, x, dims, lambda t: torch.flip(t, dims))


@rule("aten.roll.default")
def roll(ctx: Context, x: Any, shifts: Any, dims: Any = ()) -> Any:
    """``roll(self, shifts, dims=[])``"""
    if not dims:
        raise ctx.unsupported("a roll of the flattened tensor")
    return _along(ctx, x, dims, lambda t: torch.roll(t, shifts, dims))


@rule("aten.unfold.default")
def unfold(ctx: Context, x: Any, dimension: int, size: int, step: int) -> Any:
    """``unfold(self, dimension, size, step)``: windows as a new last axis"""
    x = moved(ctx, x)
    if not x.axes:
        raise ctx.unsupported("windows of a number")
    dimension %= len(x.axes)
    index = torch.arange(length(x.axes[dimension])).unfold(0, size, step)
    windows = take(ctx, x, dimension, dimension + 1, constant_index(ctx, index))
    rank = len(windows.axes)
    return ctx.algebra.permute(windows, [i for i in range(rank) if i != dimension + 1] + [dimension + 1])


@rule("aten.unfold_backward.default")
def unfold_backward(ctx: Context, g: Any, sizes: Any, dim: int, size: int, step: int) -> Any:
    """``unfold_backward(grad_in, input_sizes, dim, size, step)``"""
    axes = ctx.result_axes()
    dim %= len(axes)
    rank = len(g.axes)
    g = ctx.algebra.permute(moved(ctx, g), [*range(dim + 1), rank - 1, *range(dim + 1, rank - 1)])
    index = torch.arange(length(axes[dim])).unfold(0, size, step)
    return put(ctx, g, dim, constant_index(ctx, index), (axes[dim],))


def _along(ctx: Context, x: Any, dims: Any, f: Any) -> Any:
    """An operation that permutes the entries of some finite axes, one axis after the other."""
    x = moved(ctx, x)
    for dim in {d % len(x.axes) for d in dims}:
        probe = [1] * len(x.axes)
        probe[dim] = length_of(ctx, x.axes, dim)
        index = f(torch.arange(probe[dim]).reshape(probe)).reshape(-1)
        x = take(ctx, x, dim, dim + 1, constant_index(ctx, index))
    return x


def length_of(ctx: Context, axes: Axes, dim: int) -> int:
    """Length of a finite axis; an error for one that grows."""
    if has_width(axes[dim : dim + 1]):
        raise ctx.unsupported("coordinates of an axis that grows with the width moved")
    return length(axes[dim])


def _mapped(ctx: Context, x: Any, args: Any, kwargs: Any, rank: int) -> Any:
    """The operation at hand, which maps the last ``rank`` axes of x linearly."""
    target = str(ctx.current.target)
    if not isinstance(x, MatrixValue) and not has_width(ctx.value(x).axes):
        return ctx.finite(target, [x, *args], kwargs, None, ctx.current.shape)
    x = moved(ctx, x)
    axes = ctx.result_axes()
    start = len(x.axes) - rank
    if has_width(x.axes[start:]):
        raise ctx.unsupported("an operation along an axis that grows with the width")
    sizes = [length(a) for a in x.axes[start:]]
    places = [length(a) for a in axes[start:]]
    count, total = torch.Size(sizes).numel(), torch.Size(places).numel()
    if count * total > _LARGEST:
        raise ctx.unsupported(f"a map of {count} positions to {total}", "use smaller images")
    units = torch.eye(count, dtype=torch.float64).reshape(count, 1, *sizes)
    f: Any = overload(target)
    names = [a.name for a in f._schema.arguments[1:]]
    call = [_probe(a, name, count, rank) for a, name in zip(args, names, strict=False)]
    matrix = f(units, *call, **kwargs).reshape(count, total)
    index, weights = _sparse(matrix)
    index = index.reshape(*places, -1)
    out = take(ctx, x, start, len(x.axes), constant_index(ctx, index))
    if index.shape[-1] == 1 and bool((weights == (index.reshape(-1, 1) >= 0)).all()):
        return ctx.with_axes(out, axes)
    labels = "abcdefghijklmnopqrstuvwxyz"[: len(out.axes)]
    same = bool((weights == weights[0, 0]).all())
    if same:
        summed = ctx.times(ctx.sum(out, [len(out.axes) - 1], keepdim=False), float(weights[0, 0]))
    else:
        constant = ctx.algebra.builder.constant(weights.reshape(index.shape), "weights")
        value = ctx.constant(constant)
        summed = ctx.einsum(out, labels, value, labels[start:], labels[:-1])
    assert isinstance(summed, Value)
    return ctx.with_axes(summed, axes)


def _probe(argument: Any, name: str, count: int, rank: int) -> Any:
    """An argument for unit vectors as a batch of one channel: other tensors count by their shape alone."""
    if isinstance(argument, Value):
        return torch.zeros((count, 1, *(length(a) for a in argument.axes[-rank:])), dtype=torch.float64)
    if name == "input_size":
        return [count, 1, *argument[2:]]
    return argument


def _sparse(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """For each column the rows of its entries (-1 beyond their number) and the entries, both ``(columns, most)``."""
    present = matrix.T != 0
    most = max(1, int(present.sum(1).max()))
    order = torch.argsort(present.to(torch.int8), dim=1, descending=True, stable=True)[:, :most]
    kept = present.gather(1, order)
    return torch.where(kept, order, -1), torch.where(kept, matrix.T.gather(1, order), 0.0)
