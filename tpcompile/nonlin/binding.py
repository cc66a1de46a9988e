"""From a call of an ATen operation to the nonlinearity, its argument and its parameters.

Arguments may be of any kind (tensors, references to graph nodes, abstract values): they are
sorted by the operation's schema only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from tpcompile.errors import UnsupportedOperationError
from tpcompile.nonlin.record import Apply, Backward, Nonlinearity
from tpcompile.nonlin.registry import backward_by_target, by_target, complete


@dataclass(frozen=True)
class ForwardCall:
    """``nonlinearity(x, **parameters)``, all parameters given."""

    nonlinearity: Nonlinearity
    x: Any
    parameters: dict[str, Any]


@dataclass(frozen=True)
class BackwardCall:
    """``grad * backward.factor(saved, apply, **scalars)``."""

    nonlinearity: Nonlinearity
    backward: Backward
    grad: Any
    saved: Any
    scalars: dict[str, Any]

    def factor(self, apply: Apply) -> Any:
        """The derivative at the saved value, built with ``apply`` and arithmetic."""
        return self.backward.factor(self.saved, apply, **self.scalars)


@cache
def _schema(target: str) -> tuple[tuple[str, bool, Any], ...]:
    """Name, whether it is a tensor, and default of every argument of an ATen overload."""
    namespace, packet, overload = target.split(".")
    operation = getattr(getattr(getattr(torch.ops, namespace), packet), overload)
    return tuple(
        (argument.name, "Tensor" in str(argument.type), argument.default_value)
        for argument in operation._schema.arguments
    )


def _arguments(target: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """The tensor arguments in order, and the others by name with defaults filled in."""
    tensors, others = [], {}
    for position, (name, is_tensor, default) in enumerate(_schema(target)):
        value = args[position] if position < len(args) else kwargs.get(name, default)
        if is_tensor:
            tensors.append(value)
        else:
            others[name] = value
    return tensors, others


def bind(target: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> ForwardCall | None:
    """The nonlinearity that a call computes; None if the operation is no registered one.

    An argument is the parameter of its name; an argument whose name is none (the base of
    ``pow.Scalar`` is called ``self``) is the parameter at its place.
    """
    record = by_target(target)
    if record is None:
        return None
    tensors, others = _arguments(target, args, kwargs or {})
    names = [name for name, _ in record.parameters]
    given = {name if name in names else names[place]: value for place, (name, value) in enumerate(others.items())}
    return ForwardCall(record, tensors[0], complete(record, given))


def bind_backward(target: str, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> BackwardCall | None:
    """The derivative that a call of a backward operation multiplies by; None if it is no registered one.

    Its first tensor is the gradient and its second the saved tensor; further tensors are buffers
    (``log_sigmoid_backward``) that the factor does not need.
    """
    variants = backward_by_target(target)
    if not variants:
        return None
    tensors, others = _arguments(target, args, kwargs or {})
    for record, backward in variants:
        scalars = dict(others)
        if backward.flag is None or bool(scalars.pop(backward.flag[0])) == backward.flag[1]:
            return BackwardCall(record, backward, tensors[0], tensors[1], scalars)
    raise UnsupportedOperationError(f"no registered variant of '{target}' has the arguments {others}")
