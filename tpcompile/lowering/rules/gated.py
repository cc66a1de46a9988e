"""Gated linear units: halves of an axis, one the gate of the other."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from tpcompile.capture.graph import Scaled
from tpcompile.lowering.context import Context
from tpcompile.lowering.registry import rule
from tpcompile.lowering.value import extent


def _halves(ctx: Context, x: Any, dim: int) -> tuple[Any, Any]:
    size, power = extent(x.axes[dim])
    middle = Scaled(float(size / 2), Fraction(1)) if power else int(size / 2)
    return ctx.part(x, dim, 0, middle), ctx.part(x, dim, middle, None)


@rule("aten.glu.default")
def glu(ctx: Context, x: Any, dim: int = -1) -> Any:
    """``glu(self, dim=-1)``: the first half times the sigmoid of the second"""
    a, b = _halves(ctx, x, dim % len(x.axes))
    return ctx.times(a, ctx.apply("sigmoid", b))


@rule("aten.glu_backward.default")
def glu_backward(ctx: Context, g: Any, x: Any, dim: int) -> Any:
    """``glu_backward(grad_output, self, dim)``"""
    a, b = _halves(ctx, x, dim % len(x.axes))
    slope = ctx.apply("sigmoid", b, 1)
    return ctx.concat([ctx.times(g, ctx.apply("sigmoid", b)), ctx.times(g, ctx.times(a, slope))], dim)


@rule("aten.glu_jvp.default")
def glu_jvp(ctx: Context, glu: Any, x: Any, dx: Any, dim: int) -> Any:
    """``glu_jvp(glu, x, dx, dim)``: its derivative along dx, ``da sigmoid(b) + a sigmoid'(b) db``"""
    (a, b), (da, db) = (_halves(ctx, ctx.value(y), dim % len(x.axes)) for y in (x, dx))
    return ctx.add(ctx.times(da, ctx.apply("sigmoid", b)), ctx.times(ctx.times(a, ctx.apply("sigmoid", b, 1)), db))
