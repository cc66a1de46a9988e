"""Sums and means over axes."""

from __future__ import annotations

from typing import Any

from tpcompile.lowering.context import Context
from tpcompile.lowering.registry import rule


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
    return ctx.apply("sqrt", ctx.sum(ctx.times(x, x), dim, keepdim))
