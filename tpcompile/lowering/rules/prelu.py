"""The rectifier with a trained slope."""

from __future__ import annotations

from typing import Any

from tpcompile.lowering.context import Context
from tpcompile.lowering.registry import rule


@rule("aten._prelu_kernel.default")
def prelu(ctx: Context, x: Any, weight: Any) -> Any:
    """``_prelu_kernel(self, weight)`` = relu(self) - weight relu(-self)"""
    return ctx.add(ctx.apply("relu", x), ctx.negate(ctx.times(weight, ctx.apply("relu", ctx.negate(x)))))


@rule("aten._prelu_kernel_backward.default")
def prelu_backward(ctx: Context, grad: Any, x: Any, weight: Any) -> Any:
    """``_prelu_kernel_backward(grad_output, self, weight)``: for self and for every entry's weight"""
    below = ctx.negate(x)
    slope = ctx.add(ctx.apply("heaviside", x), ctx.times(weight, ctx.apply("heaviside", below)))
    return ctx.times(grad, slope), ctx.negate(ctx.times(grad, ctx.apply("relu", below)))
