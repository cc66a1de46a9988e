"""Matrix products: each is an Einstein sum."""

from __future__ import annotations

from typing import Any

from tpcompile.lowering.context import Context
from tpcompile.lowering.registry import rule


@rule("aten.mm.default")
def mm(ctx: Context, a: Any, b: Any) -> Any:
    """``mm(self, mat2)``"""
    return ctx.einsum(a, "ij", b, "jk", "ik")


@rule("aten.bmm.default")
def bmm(ctx: Context, a: Any, b: Any) -> Any:
    """``bmm(self, mat2)``"""
    return ctx.einsum(a, "bij", b, "bjk", "bik")


@rule("aten.mv.default")
def mv(ctx: Context, a: Any, b: Any) -> Any:
    """``mv(self, vec)``"""
    return ctx.einsum(a, "ij", b, "j", "i")


@rule("aten.dot.default", "aten.vdot.default")
def dot(ctx: Context, a: Any, b: Any) -> Any:
    """``dot(self, tensor)``"""
    return ctx.einsum(a, "i", b, "i", "")


@rule("aten.addmm.default", "aten.addmv.default", "aten.baddbmm.default")
def addmm(ctx: Context, c: Any, a: Any, b: Any, beta: Any = 1, alpha: Any = 1) -> Any:
    """``addmm(self, mat1, mat2, *, beta=1, alpha=1)`` and its relatives for vectors and batches"""
    product = {2: mm if len(b.axes) == 2 else mv, 3: bmm}[len(a.axes)](ctx, a, b)
    return ctx.add(ctx.times(c, beta), ctx.times(product, alpha))
