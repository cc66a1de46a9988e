"""Tensors that a model makes: memory to write into, places, diagonal matrices."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

from tpcompile.capture.graph import Scaled
from tpcompile.ir import Init, Width
from tpcompile.laws import Uniform
from tpcompile.lowering.axes import single
from tpcompile.lowering.context import Context
from tpcompile.lowering.matrix_products import composed
from tpcompile.lowering.registry import rule
from tpcompile.lowering.value import Value, has_width


@rule("aten.empty_like.default", "aten.new_empty.default", "aten.empty.memory_format")
def empty(ctx: Context, *args: Any, **kwargs: Any) -> Any:
    """``empty_like(self)``, ``new_empty(self, size)``, ``empty(size)``: all written over, or capture has refused it"""
    return ctx.filled(0)


@rule("aten.eye.default", "aten.eye.m")
def eye(ctx: Context, *args: Any, **kwargs: Any) -> Any:
    """``eye(n)``, ``eye(n, m)``: the identity of growing vectors is a product of no matrices"""
    axes = ctx.result_axes()
    if not has_width(axes):
        return ctx.finite(str(ctx.current.target), args, kwargs, None, ctx.current.shape)
    if axes[0] != axes[1]:
        raise ctx.unsupported("a growing identity matrix that is not square")
    return composed(ctx.contractions, axes)


@rule("aten.diag_embed.default")
def diag_embed(ctx: Context, x: Any, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Any:
    """``diag_embed(self, offset=0, dim1=-2, dim2=-1)``"""
    x = ctx.value(x)
    if not has_width(x.axes):
        return ctx.finite(str(ctx.current.target), (x, offset, dim1, dim2), {}, None, ctx.current.shape)
    if offset or len(x.axes) != 1:
        raise ctx.unsupported("a batch of growing diagonal matrices, or one beside the diagonal")
    axis = single(x.axes[0])
    return composed(ctx.contractions, (axis, axis), ctx.with_axes(x, (axis,)))


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
