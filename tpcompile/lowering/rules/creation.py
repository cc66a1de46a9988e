"""Memory that a model makes to write into."""

from __future__ import annotations

from typing import Any

from tpcompile.lowering.context import Context
from tpcompile.lowering.registry import rule


@rule("aten.empty_like.default", "aten.new_empty.default", "aten.empty.memory_format")
def empty(ctx: Context, *args: Any, **kwargs: Any) -> Any:
    """``empty_like(self)``, ``new_empty(self, size)``, ``empty(size)``: all written over, or capture has refused it"""
    return ctx.filled(0)
