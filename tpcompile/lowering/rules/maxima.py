"""Maxima over finite axes and windows: a tournament, the first of equal entries winning as in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tpcompile.ir import Node, View
from tpcompile.lowering.context import Context, length
from tpcompile.lowering.functions import UNKNOWN
from tpcompile.lowering.gather import constant_index, moved, put, take
from tpcompile.lowering.registry import rule
from tpcompile.lowering.value import Axis, Value, has_width, is_width
from tpcompile.lowering.windows import Windows


@rule("aten.max_pool2d_with_indices.default", "aten.max_pool3d_with_indices.default")
def max_pool(ctx: Context, x: Any, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1,
             ceil_mode: bool = False) -> Any:  # fmt: skip
    """``max_pool2d_with_indices(self, kernel_size, stride, padding, dilation, ceil_mode)``"""
    x = moved(ctx, ctx.value(x))
    rank = 2 if "2d" in str(ctx.current.target) else 3
    index = _index(ctx, x, rank, kernel, stride, padding, dilation, ceil_mode)
    best, _ = _tournament(ctx, x, index, rank)
    return [best, Value(best.axes, (), UNKNOWN)]


@rule("aten.max_pool2d_with_indices_backward.default", "aten.max_pool3d_with_indices_backward.default")
def max_pool_backward(ctx: Context, g: Any, x: Any, kernel: Any, stride: Any, padding: Any, dilation: Any,
                      ceil_mode: bool, indices: Any) -> Any:  # fmt: skip
    """``max_pool2d_with_indices_backward(grad_output, self, ..., indices)``, the winners found again"""
    g, x = ctx.value(g), moved(ctx, ctx.value(x))
    rank = 2 if "2d" in str(ctx.current.target) else 3
    index = _index(ctx, x, rank, kernel, stride, padding, dilation, ceil_mode)
    _, challenges = _tournament(ctx, x, index, rank)
    start = len(x.axes) - rank
    total: Any = ctx.algebra.zeros(x.axes)
    for part, places in zip(_awarded(ctx, g, challenges), index, strict=True):
        total = ctx.add(total, put(ctx, part, start, constant_index(ctx, places), x.axes[start:]))
    return total


@rule("aten.amax.default", "aten.amin.default")
def amax(ctx: Context, x: Any, dims: Any = (), keepdim: bool = False) -> Any:
    """``amax(self, dim=(), keepdim=False)``; its backward pass compares the result with self (:func:`winners`)"""
    x = ctx.value(x)
    sign = 1 if "amax" in str(ctx.current.target) else -1
    if not has_width(x.axes):
        return ctx.finite(str(ctx.current.target), [x, list(dims), keepdim], {}, None, ctx.current.shape)
    best: Any = ctx.times(x, sign)
    mask: Any = None
    for dim in sorted(d % len(x.axes) for d in dims or range(len(x.axes))):
        best, flags = _over(ctx, best, dim)
        won = _joined(ctx, flags, dim, x.axes[dim])
        mask = won if mask is None else ctx.times(mask, won)
    result = ctx.value(ctx.times(ctx.reshape_to_result(best), sign))
    ctx.maxima[_key(result), _key(x)] = mask
    return result


@rule("aten.max.dim", "aten.min.dim")
def max_dim(ctx: Context, x: Any, dim: int, keepdim: bool = False) -> Any:
    """``max(self, dim, keepdim=False)``: values, and the places where they are"""
    x = ctx.value(x)
    sign, dim = 1 if "max" in str(ctx.current.target) else -1, dim % len(x.axes)
    best, flags = _over(ctx, ctx.times(x, sign), dim)
    place: Any = ctx.algebra.zeros(best.axes)
    for t, flag in enumerate(flags):
        place = ctx.add(place, ctx.times(flag, float(t)))
    axes = best.axes if keepdim else (*best.axes[:dim], *best.axes[dim + 1 :])
    values, index = (ctx.with_axes(ctx.value(v), axes) for v in (ctx.times(best, sign), place))
    ctx.maxima[_key(index), ()] = _joined(ctx, flags, dim, x.axes[dim])
    return [values, index]


def winners(ctx: Context, result: Any, x: Any = None) -> Any:
    """Ones where x is its maximum ``result`` (or where the index ``result`` of a maximum points), None if it is none.

    Found by what was computed, not by comparing numbers: rounding would tell a winner from the maximum.
    """
    if not isinstance(result, Value) or not isinstance(x, Value | None):
        return None
    return ctx.maxima.get((_key(result), () if x is None else _key(x)))


def _key(x: Value) -> tuple[Any, ...]:
    def moved_only(node: Node) -> Node:
        while isinstance(node.op, View):
            node = node.operands[0]
        return node

    return (x.remainder, *((e, moved_only(node)) for e, node in x.terms))


def _joined(ctx: Context, flags: Sequence[Any], dim: int, axis: Axis) -> Any:
    """Flags of the entries along an axis as one value."""
    total: Any = None
    for t, flag in enumerate(flags):
        placed = ctx.embed(flag, dim, t, t + 1, 1, axis)
        total = placed if total is None else ctx.add(total, placed)
    return total


def _over(ctx: Context, x: Any, dim: int) -> tuple[Any, list[Any]]:
    """The maximum over one axis, which stays with length 1, and for each entry whether it is the first that has it."""
    if is_width(x.axes[dim]):
        raise ctx.unsupported("a maximum along an axis that grows with the width")
    entries = [ctx.part(x, dim, t, t + 1) for t in range(length(x.axes[dim]))]
    best, challenges = _contest(ctx, entries)
    return best, _awarded(ctx, ctx.expand(ctx.number(1), best.axes), challenges)


def _tournament(ctx: Context, x: Value, index: Tensor, rank: int) -> tuple[Any, list[Any]]:
    """The maximum over the first axis of the index, and for each later offset whether it beats all before it."""
    start = len(x.axes) - rank
    return _contest(ctx, [take(ctx, x, start, len(x.axes), constant_index(ctx, places)) for places in index])


def _contest(ctx: Context, entries: Sequence[Any]) -> tuple[Any, list[Any]]:
    """The maximum of entries, and for each but the first whether it beats all before it."""
    best, challenges = entries[0], []
    for entry in entries[1:]:
        ahead = ctx.add(entry, ctx.negate(best))
        challenges.append(ctx.apply("heaviside", ahead))
        best = ctx.add(best, ctx.apply("relu", ahead))
    return best, challenges


def _awarded(ctx: Context, prize: Any, challenges: Sequence[Any]) -> list[Any]:
    """For each entry the prize where it has won, that is where no later challenge has."""
    parts: list[Any] = []
    for won in reversed(challenges):
        parts.append(ctx.times(prize, won))
        prize = ctx.add(prize, ctx.negate(parts[-1]))
    return [prize, *reversed(parts)]


def _index(ctx: Context, x: Value, rank: int, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: bool
           ) -> Tensor:  # fmt: skip
    """Entries of every window, shape ``(offsets, *places)``; for padding an entry that the window has already."""
    start = len(x.axes) - rank
    if has_width(x.axes[start:]):
        raise ctx.unsupported("a maximum along an axis that grows with the width")
    sizes = [length(a) for a in x.axes[start:]]
    every = [_full(v, rank) for v in (kernel, stride or kernel, padding, dilation)]
    shape: Any = torch.nn.functional.max_pool3d if rank == 3 else torch.nn.functional.max_pool2d
    places = shape(torch.zeros(1, 1, *sizes), *every, ceil_mode).shape[2:]
    index = Windows(sizes, every[0], every[1], every[2], every[3], places).index().reshape(-1, *places)
    order = torch.argsort((index < 0).to(torch.int8), dim=0, stable=True)
    index = index.gather(0, order)
    return torch.where(index < 0, index[:1], index)


def _full(value: Any, rank: int) -> list[int]:
    values = list(value) if isinstance(value, Sequence) else [value]
    return values * rank if len(values) == 1 else values
