"""Softmax over a finite axis: of scalars as torch computes it, of vectors written out coordinate by coordinate."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tpcompile.errors import UnstableError
from tpcompile.lowering.context import Context
from tpcompile.lowering.registry import rule
from tpcompile.lowering.selections import repeated
from tpcompile.lowering.value import Value, flat, has_width, is_width


def _rescaled(g: Any) -> bool:
    """True if a gradient is not of order one: what is linear in it is then written out, and passes its powers on."""
    return g.lead != 0


def _written_out(ctx: Context, x: Any, dim: int) -> bool:
    """True if the rule applies: vectors, and an axis that does not grow."""
    if not has_width(x.axes):
        return False
    if is_width(x.axes[dim]):
        raise ctx.unsupported(f"no rule for {ctx.current.target} over an axis that grows with the width")
    return True


def _varying(ctx: Context, g: Any, dim: int) -> Any:
    """A gradient without the terms of its series that are the same along an axis."""
    if not isinstance(g, Value) or ctx.algebra.width is not None or len(g.axes[dim]) != 1 or is_width(g.axes[dim]):
        return g
    axis = len(flat(g.axes[: dim % len(g.axes)]))
    kept = tuple((e, x) for e, x in g.terms if not repeated(ctx.algebra.builder, x, axis))
    return g if len(kept) == len(g.terms) else replace(g, terms=kept)


def _finite(ctx: Context, *args: Any) -> Any:
    x = args[0]
    if ctx.beyond and ctx.current.origin.phase == "forward" and isinstance(x, Value) and x.terms and x.terms[0][0] > 0:
        lead = x.terms[0][0]
        raise UnstableError(
            f"logits of size n^{lead}, of which the softmax has no limit", value="logits",
            step=ctx.current.origin.step, exponent=lead, where=ctx.place,
        )  # fmt: skip
    return ctx.finite(str(ctx.current.target), args, dict(ctx.current.kwargs), None, ctx.current.shape)


@rule("aten._softmax.default")
def softmax(ctx: Context, x: Any, dim: int, half_to_float: bool) -> Any:
    """``_softmax(self, dim, half_to_float)``; the logits are not shifted by their maximum"""
    if not _written_out(ctx, x, dim):
        return _finite(ctx, x, dim, half_to_float)
    powers = ctx.apply("exp", x)
    return ctx.times(powers, ctx.reciprocal(ctx.sum(powers, [dim], True)))


@rule("aten._safe_softmax.default")
def safe_softmax(ctx: Context, x: Any, dim: int, dtype: Any = None) -> Any:
    """``_safe_softmax(self, dim, dtype=None)``: as softmax; rows that are masked throughout are not covered"""
    return _finite(ctx, x, dim) if not _written_out(ctx, x, dim) else softmax(ctx, x, dim, False)


@rule("aten._log_softmax.default")
def log_softmax(ctx: Context, x: Any, dim: int, half_to_float: bool) -> Any:
    """``_log_softmax(self, dim, half_to_float)``"""
    if not _written_out(ctx, x, dim):
        return _finite(ctx, x, dim, half_to_float)
    total = ctx.apply("log", ctx.sum(ctx.apply("exp", x), [dim], True))
    return ctx.add(x, ctx.negate(total))


@rule("aten._softmax_backward_data.default")
def softmax_backward(ctx: Context, g: Any, out: Any, dim: int, dtype: Any) -> Any:
    """``_softmax_backward_data(grad_output, output, dim, input_dtype)``

    What is the same along the axis has no part in it: the output's sum is one whatever the input is.
    """
    g = _varying(ctx, g, dim)
    if not (has_width(g.axes) or has_width(out.axes) or _rescaled(g)):
        return _finite(ctx, g, out, dim, dtype)
    product = ctx.times(g, out)
    return ctx.add(product, ctx.negate(ctx.times(out, ctx.sum(product, [dim], True))))


@rule("aten._log_softmax_backward_data.default")
def log_softmax_backward(ctx: Context, g: Any, out: Any, dim: int, dtype: Any) -> Any:
    """``_log_softmax_backward_data(grad_output, output, dim, input_dtype)``"""
    if not (has_width(g.axes) or has_width(out.axes) or _rescaled(g)):
        return _finite(ctx, g, out, dim, dtype)
    return ctx.add(g, ctx.negate(ctx.times(ctx.apply("exp", out), ctx.sum(g, [dim], True))))
