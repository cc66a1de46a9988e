"""Tensors filled with one number."""

from __future__ import annotations

from typing import Any

from tpcompile.lowering.context import Context
from tpcompile.lowering.registry import rule


@rule(
    "aten.zeros_like.default",
    "aten.zeros.default",
    "aten.new_zeros.default",
    "aten.new_empty.default",
    "aten.empty_like.default",
    "aten._new_zeros_with_same_feature_meta.default",
)
def zeros(ctx: Context, *args: Any, **kwargs: Any) -> Any:
    """``zeros_like(self)``, ``zeros(size)``, ``new_zeros(self, size)``; of ``empty`` only the shape counts

    Forward-mode derivatives make theirs by ``_new_zeros_with_same_feature_meta(self, other)``, of the shape of other.
    """
    return ctx.filled(0)


@rule("aten.ones_like.default", "aten.ones.default", "aten.new_ones.default")
def ones(ctx: Context, *args: Any, **kwargs: Any) -> Any:
    """``ones_like(self)``, ``ones(size)``, ``new_ones(self, size)``"""
    return ctx.filled(1)


@rule("aten.full_like.default", "aten.full.default")
def full(ctx: Context, like: Any, value: Any, **kwargs: Any) -> Any:
    """``full_like(self, fill_value)``, ``full(size, fill_value)``"""
    return ctx.filled(value)


@rule("aten.new_full.default")
def new_full(ctx: Context, like: Any, size: Any, value: Any, **kwargs: Any) -> Any:
    """``new_full(self, size, fill_value)``"""
    return ctx.filled(value)


@rule("aten.scalar_tensor.default")
def scalar_tensor(ctx: Context, value: Any, **kwargs: Any) -> Any:
    """``scalar_tensor(s)``"""
    return ctx.filled(value)


@rule("aten.fill.Scalar")
def fill(ctx: Context, like: Any, value: Any) -> Any:
    """``fill(self, value)``"""
    return ctx.filled(value)
