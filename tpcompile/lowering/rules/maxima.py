"""Max pooling: a tournament over the offsets of a window, the first of equal entries winning as in torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tpcompile.lowering.context import Context, length
from tpcompile.lowering.functions import UNKNOWN
from tpcompile.lowering.gather import constant_index, moved, put, take
from tpcompile.lowering.registry import rule
from tpcompile.lowering.value import Value, has_width
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
    parts: list[Any] = []
    left: Any = g  # what no later offset has won
    for won in reversed(challenges):
        parts.append(ctx.times(left, won))
        left = ctx.add(left, ctx.negate(parts[-1]))
    parts.append(left)
    total: Any = ctx.algebra.zeros(x.axes)
    for part, places in zip(reversed(parts), index, strict=True):
        total = ctx.add(total, put(ctx, part, start, constant_index(ctx, places), x.axes[start:]))
    return total


def _tournament(ctx: Context, x: Value, index: Tensor, rank: int) -> tuple[Any, list[Any]]:
    """The maximum over the first axis of the index, and for each later offset whether it beats all before it."""
    start = len(x.axes) - rank
    best: Any = take(ctx, x, start, len(x.axes), constant_index(ctx, index[0]))
    challenges = []
    for places in index[1:]:
        ahead = ctx.add(take(ctx, x, start, len(x.axes), constant_index(ctx, places)), ctx.negate(best))
        challenges.append(ctx.apply("heaviside", ahead))
        best = ctx.add(best, ctx.apply("relu", ahead))
    return best, challenges


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
