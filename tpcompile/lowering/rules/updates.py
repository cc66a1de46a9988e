"""Operations of optimizers: interpolation, products with quotients, norms of gradients."""

from __future__ import annotations

from typing import Any

from tpcompile.lowering.context import Context
from tpcompile.lowering.registry import rule


@rule("aten.lerp.Scalar", "aten.lerp.Tensor")
def lerp(ctx: Context, start: Any, end: Any, weight: Any) -> Any:
    """``lerp(self, end, weight)`` = self + weight (end - self), written so that equal parts merge"""
    rest = ctx.add(ctx.number(1), ctx.negate(ctx.any(weight)))
    return ctx.add(ctx.times(start, rest), ctx.times(end, weight))


@rule("aten.addcdiv.default")
def addcdiv(ctx: Context, a: Any, b: Any, c: Any, value: Any = 1) -> Any:
    """``addcdiv(self, tensor1, tensor2, *, value=1)``"""
    return ctx.add(a, ctx.times(ctx.times(b, ctx.reciprocal(c)), value))
