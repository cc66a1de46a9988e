"""Sums, differences, products and quotients."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tpcompile.capture.graph import Scaled, Size
from tpcompile.lowering.context import Context, is_constant, length
from tpcompile.lowering.pointwise import pointwise
from tpcompile.lowering.registry import rule
from tpcompile.lowering.rules.maxima import winners
from tpcompile.lowering.value import Value, has_width


@rule("aten.add.Tensor", "aten.add.Scalar")
def add(ctx: Context, a: Any, b: Any, alpha: Any = 1) -> Any:
    """``add(self, other, *, alpha=1)``"""
    return ctx.add(a, ctx.times(b, alpha))


@rule("aten.sub.Tensor", "aten.sub.Scalar")
def sub(ctx: Context, a: Any, b: Any, alpha: Any = 1) -> Any:
    """``sub(self, other, *, alpha=1)``"""
    return ctx.add(a, ctx.negate(ctx.times(b, alpha)))


@rule("aten.rsub.Scalar", "aten.rsub.Tensor")
def rsub(ctx: Context, a: Any, b: Any, alpha: Any = 1) -> Any:
    """``rsub(self, other, alpha=1)``: other - alpha * self"""
    return ctx.add(b, ctx.negate(ctx.times(a, alpha)))


@rule("aten.neg.default")
def neg(ctx: Context, a: Any) -> Any:
    """``neg(self)``"""
    return ctx.negate(a)


@rule("aten.mul.Tensor", "aten.mul.Scalar")
def mul(ctx: Context, a: Any, b: Any) -> Any:
    """``mul(self, other)``"""
    return ctx.times(a, b)


@rule("aten.div.Tensor", "aten.div.Scalar")
def div(ctx: Context, a: Any, b: Any) -> Any:
    """``div(self, other)``"""
    return ctx.times(a, ctx.reciprocal(b))


@rule("aten.addcmul.default")
def addcmul(ctx: Context, a: Any, b: Any, c: Any, value: Any = 1) -> Any:
    """``addcmul(self, tensor1, tensor2, *, value=1)``"""
    return ctx.add(a, ctx.times(ctx.times(b, c), value))


@rule("aten.where.self")
def where(ctx: Context, condition: Any, a: Any, b: Any) -> Any:
    """``where(condition, self, other)`` with a condition of zeros and ones."""
    known = ctx.known(condition)
    if known is None:
        if any(math.isinf(x) for x in (a, b) if isinstance(x, float)):
            raise ctx.unsupported("an infinite number where a computed condition holds")
        return ctx.add(b, ctx.times(condition, ctx.add(a, ctx.negate(b))))
    mask = known != 0
    return ctx.add(_masked(ctx, a, mask), _masked(ctx, b, ~mask))


def _masked(ctx: Context, x: Any, mask: Tensor) -> Any:
    """x where the mask holds and zero elsewhere, infinite constants included."""
    constant = ctx.known(x)
    if constant is not None:
        return ctx.data(torch.where(mask, constant.double(), 0.0))
    return ctx.times(x, ctx.data(mask.double()))


@rule("aten.gt.Scalar", "aten.gt.Tensor")
def gt(ctx: Context, a: Any, b: Any) -> Any:
    """``gt(self, other)`` as zeros and ones; where both are equal has probability zero or is decided as torch does."""
    return ctx.apply("heaviside", ctx.value(ctx.add(a, ctx.negate(b))))


@rule("aten.lt.Scalar", "aten.lt.Tensor")
def lt(ctx: Context, a: Any, b: Any) -> Any:
    """``lt(self, other)``"""
    return gt(ctx, b, a)


@rule("aten.le.Scalar", "aten.le.Tensor")
def le(ctx: Context, a: Any, b: Any) -> Any:
    """``le(self, other)``"""
    return ctx.add(ctx.number(1), ctx.negate(gt(ctx, a, b)))


@rule("aten.ge.Scalar", "aten.ge.Tensor")
def ge(ctx: Context, a: Any, b: Any) -> Any:
    """``ge(self, other)``"""
    return ctx.add(ctx.number(1), ctx.negate(gt(ctx, b, a)))


@rule("aten.eq.Scalar", "aten.eq.Tensor")
def eq(ctx: Context, a: Any, b: Any) -> Any:
    """``eq(self, other)`` as zeros and ones: neither greater nor less"""
    if all(not isinstance(x, Value) or (not has_width(x.axes) and _is_data(x)) for x in (a, b)):
        kind = "Tensor" if isinstance(b, Value) else "Scalar"
        if ctx.dtype(0) == torch.float32:  # in which entries may be equal that are not in higher precision
            a, b = (_rounded(ctx, x) for x in (a, b))
        return ctx.finite(f"aten.eq.{kind}", [a, b], {}, None, ctx.current.shape)
    for result, x in ((a, b), (b, a)):
        if (won := winners(ctx, result, x)) is not None:
            return won
    return ctx.add(ctx.number(1), ctx.negate(ctx.add(gt(ctx, a, b), gt(ctx, b, a))))


def _rounded(ctx: Context, x: Any) -> Any:
    if not isinstance(x, Value):
        return float(torch.tensor(x, dtype=torch.float32))
    shape = tuple(Size(Fraction(length(axis)), 0) for axis in x.axes)
    return ctx.finite("aten._to_copy.default", [x], {"dtype": torch.float32}, None, shape)


def _is_data(x: Value) -> bool:
    return all(is_constant(node) for _, node in x.terms) and x.remainder is None


@rule("aten.ne.Scalar", "aten.ne.Tensor")
def ne(ctx: Context, a: Any, b: Any) -> Any:
    """``ne(self, other)``"""
    return ctx.add(ctx.number(1), ctx.negate(eq(ctx, a, b)))


@rule("aten.clamp.default")
def clamp(ctx: Context, x: Any, low: Any = None, high: Any = None) -> Any:
    """``clamp(self, min=None, max=None)``; bounds that change with the width as maximum and minimum"""
    if not isinstance(low, Scaled) and not isinstance(high, Scaled):
        return pointwise(ctx, "aten.clamp.default", [x, low, high], {})
    x = x if low is None else maximum(ctx, x, ctx.number(low))
    return x if high is None else minimum(ctx, x, ctx.number(high))


@rule("aten.clamp_min.default", "aten.clamp_min.Tensor")
def clamp_min(ctx: Context, x: Any, low: Any) -> Any:
    """``clamp_min(self, min)``, also of what grows"""
    return maximum(ctx, x, low if isinstance(low, Value) else ctx.number(low))


@rule("aten.clamp_max.default", "aten.clamp_max.Tensor")
def clamp_max(ctx: Context, x: Any, high: Any) -> Any:
    """``clamp_max(self, max)``, also of what grows"""
    return minimum(ctx, x, high if isinstance(high, Value) else ctx.number(high))


@rule("aten.logical_and.default", "aten.bitwise_and.Tensor")
def logical_and(ctx: Context, a: Any, b: Any) -> Any:
    """``logical_and(self, other)``, of zeros and ones"""
    return ctx.times(_truth(ctx, a, 0), _truth(ctx, b, 1))


@rule("aten.logical_not.default", "aten.bitwise_not.default")
def logical_not(ctx: Context, a: Any) -> Any:
    """``logical_not(self)``, of zeros and ones"""
    return ctx.add(ctx.number(1), ctx.negate(_truth(ctx, a, 0)))


def _truth(ctx: Context, x: Any, argument: int) -> Any:
    """An argument of a logical operation as zeros and ones."""
    if ctx.dtype(argument) in (None, torch.bool):
        return x
    if "bitwise" in str(ctx.current.target):
        raise ctx.unsupported("an operation on the bits of integers")
    return ne(ctx, x, 0.0)


@rule("aten.maximum.default")
def maximum(ctx: Context, a: Any, b: Any) -> Any:
    """``maximum(self, other)`` = other + relu(self - other)"""
    return ctx.add(b, ctx.apply("relu", ctx.add(a, ctx.negate(b))))


@rule("aten.minimum.default")
def minimum(ctx: Context, a: Any, b: Any) -> Any:
    """``minimum(self, other)`` = other - relu(other - self)"""
    return ctx.add(b, ctx.negate(ctx.apply("relu", ctx.add(b, ctx.negate(a)))))


@rule("aten.masked_fill.Scalar", "aten.masked_fill.Tensor")
def masked_fill(ctx: Context, x: Any, mask: Any, value: Any) -> Any:
    """``masked_fill(self, mask, value)`` with a mask of zeros and ones"""
    return where(ctx, mask, value, x)


@rule("aten.logaddexp.default")
def logaddexp(ctx: Context, a: Any, b: Any) -> Any:
    """``logaddexp(self, other)`` = other + softplus(self - other)"""
    return ctx.add(b, ctx.apply("softplus", ctx.add(a, ctx.negate(b)), beta=1.0, threshold=20.0))
