"""Sums and means over axes."""

from __future__ import annotations

import string
from fractions import Fraction
from typing import Any

import torch

from tpcompile.capture.graph import Scaled
from tpcompile.ir import Width
from tpcompile.lowering.context import Context, length
from tpcompile.lowering.registry import rule
from tpcompile.lowering.value import MatrixValue, has_width, is_width


@rule("aten.sum.default", "aten.sum.dim_IntList")
def sum_(ctx: Context, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """``sum(self, dim=None, keepdim=False, *, dtype=None)``"""
    return ctx.sum(x, dim, keepdim)


@rule("aten.mean.default", "aten.mean.dim")
def mean(ctx: Context, x: Any, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """``mean(self, dim=None, keepdim=False, *, dtype=None)``"""
    total = ctx.sum(x, dim, keepdim)
    rank = len(x.axes)
    dims = range(rank) if dim is None or dim == [] or dim == () else [d % rank for d in dim]
    for d in dims:
        total = ctx.divide_by_length(total, x.axes[d])
    return total


@rule("aten.linalg_vector_norm.default")
def vector_norm(ctx: Context, x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, dtype: Any = None) -> Any:
    """``linalg_vector_norm(self, ord=2, dim=None, keepdim=False)``"""
    if ord != 2:
        raise ctx.unsupported(f"a norm of order {ord}")
    whole = dim is None or len(dim) in (0, len(x.axes))
    if whole and not keepdim and isinstance(x, MatrixValue) and ctx.algebra.width is None and not x.finite:
        labels = string.ascii_letters[: len(x.axes)]  # by the inner products of its parts
        return ctx.apply("sqrt", ctx.einsum(x, labels, x, labels, ""))
    return ctx.apply("sqrt", ctx.sum(ctx.times(x, x), dim, keepdim))


@rule("aten.var.correction")
def var(ctx: Context, x: Any, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Any:
    """``var(self, dim=None, *, correction=1, keepdim=False)``"""
    return _variance(ctx, x, dim, correction, keepdim)[0]


@rule("aten.std.correction")
def std(ctx: Context, x: Any, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Any:
    """``std(self, dim=None, *, correction=1, keepdim=False)``"""
    return ctx.apply("sqrt", _variance(ctx, x, dim, correction, keepdim)[0])


@rule("aten.var_mean.correction")
def var_mean(ctx: Context, x: Any, dim: Any = None, correction: Any = None, keepdim: bool = False) -> Any:
    """``var_mean(self, dim=None, *, correction=1, keepdim=False)``"""
    return _variance(ctx, x, dim, correction, keepdim)


def _variance(ctx: Context, x: Any, dim: Any, correction: Any, keepdim: bool) -> list[Any]:
    """Sum of squares about the mean over ``length - correction``, and the mean."""
    x = ctx.value(x)
    dims = sorted({d % len(x.axes) for d in dim} if dim else range(len(x.axes)))
    centre = mean(ctx, x, dims, keepdim=True)
    apart = ctx.add(x, ctx.negate(centre))
    spread = ctx.sum(ctx.times(apart, apart), dims, keepdim)
    count: Any = ctx.number(1)
    for i in dims:
        for d in x.axes[i]:
            count = ctx.times(count, Scaled(float(d.ratio), Fraction(1)) if isinstance(d, Width) else d)
    free = ctx.add(count, ctx.number(-(1 if correction is None else correction)))
    if not keepdim:
        centre = ctx.with_axes(centre, tuple(a for i, a in enumerate(x.axes) if i not in dims))
    return [ctx.times(spread, ctx.reciprocal(free)), centre]


@rule("aten.logsumexp.default")
def logsumexp(ctx: Context, x: Any, dim: Any, keepdim: bool = False) -> Any:
    """``logsumexp(self, dim, keepdim=False)``, of vectors over axes that do not grow"""
    if not has_width(x.axes):
        return ctx.finite(str(ctx.current.target), [x, dim, keepdim], {}, None, ctx.current.shape)
    if any(is_width(x.axes[d]) for d in dim):
        raise ctx.unsupported("a logarithm of a sum of exponentials over an axis that grows")
    return ctx.apply("log", ctx.sum(ctx.apply("exp", x), dim, keepdim))


@rule("aten.cumsum.default")
def cumsum(ctx: Context, x: Any, dim: int, dtype: Any = None) -> Any:
    """``cumsum(self, dim)`` along an axis that does not grow"""
    dim %= len(x.axes)
    if is_width(x.axes[dim]):
        raise ctx.unsupported("a running sum along an axis that grows with the width")
    size = length(x.axes[dim])
    labels, summed = string.ascii_letters[: len(x.axes)], string.ascii_letters[len(x.axes)]
    source = labels[:dim] + summed + labels[dim + 1 :]
    before = ctx.data(torch.ones(size, size, dtype=torch.float64).tril())
    return ctx.einsum(before, labels[dim] + summed, x, source, labels)
