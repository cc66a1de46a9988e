"""Losses of outputs that grow with the width, written out; others are finite operations as they stand."""

from __future__ import annotations

import math
from typing import Any

from tpcompile.lowering.context import Context, length
from tpcompile.lowering.registry import rule
from tpcompile.lowering.value import Value

_NONE, _MEAN = 0, 1  # torch's numbers for reductions


def _grows(x: Any) -> bool:
    return isinstance(x, Value) and bool(x.terms) and x.terms[0][0] > 0


@rule("aten.mse_loss.default")
def mse_loss(ctx: Context, x: Any, y: Any, reduction: int = _MEAN) -> Any:
    """``mse_loss(self, target, reduction=Mean)``"""
    if not _grows(x):
        rest = [reduction] if len(ctx.current.args) > 2 else []
        return ctx.finite(str(ctx.current.target), [x, y, *rest], {}, None, ctx.current.shape)
    apart = ctx.add(x, ctx.negate(y))
    squares = ctx.times(apart, apart)
    if reduction == _NONE:
        return squares
    total = ctx.sum(squares, None, False)
    return ctx.times(total, 1.0 / _count(squares)) if reduction == _MEAN else total


@rule("aten.mse_loss_backward.default")
def mse_loss_backward(ctx: Context, g: Any, x: Any, y: Any, reduction: int) -> Any:
    """``mse_loss_backward(grad_output, self, target, reduction)``"""
    if not _grows(x):
        return ctx.finite(str(ctx.current.target), [g, x, y, reduction], {}, None, ctx.current.shape)
    slope = ctx.times(g, ctx.times(ctx.add(x, ctx.negate(y)), 2.0))
    return ctx.times(slope, 1.0 / _count(x)) if reduction == _MEAN else slope


def _count(x: Any) -> int:
    return math.prod(length(a) for a in x.axes)
