"""The table of lowering rules: one function for each ATen operation."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from functools import cache
from typing import Any

Rule = Callable[..., Any]
_RULES: dict[str, Rule] = {}


def rule(*targets: str) -> Callable[[Rule], Rule]:
    """Register ``f(ctx, *args, **kwargs) -> value`` for ATen overloads ("aten.mm.default")."""

    def register(f: Rule) -> Rule:
        for target in targets:
            if target in _RULES:
                raise ValueError(f"two rules for {target}")
            _RULES[target] = f
        return f

    return register


@cache
def rules() -> dict[str, Rule]:
    """Every rule, after importing each module of ``tpcompile.lowering.rules``."""
    package = importlib.import_module("tpcompile.lowering.rules")
    for info in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{info.name}")
    return dict(_RULES)
