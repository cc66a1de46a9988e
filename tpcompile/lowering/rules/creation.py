"""Memory that a model makes to write into."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from tpcompile.capture.graph import Scaled
from tpcompile.ir import Init, Width
from tpcompile.laws import Uniform
from tpcompile.lowering.context import Context
from tpcompile.lowering.registry import rule
from tpcompile.lowering.value import Value


@rule("aten.empty_like.default", "aten.new_empty.default", "aten.empty.memory_format")
def empty(ctx: Context, *args: Any, **kwargs: Any) -> Any:
    """``empty_like(self)``, ``new_empty(self, size)``, ``empty(size)``: all written over, or capture has refused it"""
    return ctx.filled(0)


@rule("aten.arange.default", "aten.arange.start", "aten.arange.start_step")
def arange(ctx: Context, *args: Any, **kwargs: Any) -> Any:
    """``arange(end)``, ``arange(start, end, step=1)``

    Places along a growing axis, as in a rotary embedding, are n times numbers that fill (0, 1) evenly: to the leading
    order independent uniform ones, the same wherever an axis of this length is counted. Only sizes are followed: a sum
    of such numbers alone is known better than that.
    """
    axes = ctx.result_axes()
    start, step = (args[0], args[2] if len(args) > 2 else 1) if len(args) > 1 else (0, 1)
    ends = [x for x in args[:2] if isinstance(x, Scaled)]
    if not ends:
        return ctx.finite(str(ctx.current.target), args, kwargs, None, ctx.current.shape)
    if not ctx.beyond or start != 0 or isinstance(step, Scaled) or ends[-1].exponent != 1:
        raise ctx.unsupported("the numbers of the places along an axis that grows with the width")
    ((width,),) = axes
    assert isinstance(width, Width)
    node = ctx.node(Init(f"places/{width.ratio}", Uniform(0.0, 1.0), (width,)))
    return ctx.times(Value(axes, ((Fraction(1), node),)), float(width.ratio * step))
