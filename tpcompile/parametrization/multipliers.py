"""Factors in front of parameters, wherever a model's forward pass uses them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode


def multiply(model: nn.Module, multipliers: Mapping[str, Sequence[Fraction]], ratio: float) -> None:
    """Make the model's forward put ``ratio**exponent`` in front of parameters.

    One exponent for each use of a parameter, in order, counted by the torch functions that take it as an argument;
    the last one holds for all that follow.
    """
    wanted = {
        name: tuple(ratio ** float(e) if e else None for e in exponents)
        for name, exponents in multipliers.items()
        if any(exponents)
    }
    if not wanted:
        return
    forward = model.forward

    def multiplied(*args: Any, **kwargs: Any) -> Any:
        with Multiplied(model, wanted):
            return forward(*args, **kwargs)

    model.forward = multiplied


def count_uses(model: nn.Module, inputs: Tensor) -> dict[str, int]:
    """How many torch functions take each parameter in one forward pass."""
    counter = Multiplied(model, {name: (None,) for name, _ in model.named_parameters()})
    with torch.no_grad(), counter:
        model(inputs)
    return {name: counter.used.get(id(p), 0) for name, p in model.named_parameters()}


class Multiplied(TorchFunctionMode):
    """Factors in front of the present parameters of a model."""

    def __init__(self, model: nn.Module, factors: Mapping[str, tuple[float | None, ...]]) -> None:
        super().__init__()
        self._factors = {id(p): factors[name] for name, p in model.named_parameters() if name in factors}
        self.used: dict[int, int] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", "") == "__get__":  # an attribute, such as the shape
            return func(*args, **kwargs)
        return func(*map(self._scaled, args), **{key: self._scaled(value) for key, value in kwargs.items()})

    def _scaled(self, value: Any) -> Any:
        factors = self._factors.get(id(value)) if isinstance(value, Tensor) else None
        if factors is None:
            return value
        use = self.used.get(id(value), 0)
        self.used[id(value)] = use + 1
        factor = factors[min(use, len(factors) - 1)]
        return value if factor is None else value * factor
