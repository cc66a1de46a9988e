"""Derivatives of the registered nonlinearities, and how they inherit parity and homogeneity."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import sympy as sp
from torch import Tensor

from tpcompile.errors import UnsupportedOperationError
from tpcompile.nonlin.functions import torch_function
from tpcompile.nonlin.record import Parity
from tpcompile.nonlin.registry import complete, lookup


def evaluate(name: str, x: Tensor, order: int = 0, **parameters: Any) -> Tensor:
    """The derivative of that order of a nonlinearity at x, entry by entry; order 0 is the function.

    A derivative that is no ordinary function raises UnsupportedOperationError: automatic
    differentiation would silently drop its delta (relu'', theory section 6).
    """
    return derivative(name, order, **parameters)(x)


def derivative(name: str, order: int = 0, **parameters: Any) -> Callable[[Tensor], Tensor]:
    """The torch function that :func:`evaluate` applies."""
    return _derivative(name, order, tuple(sorted(parameters.items())))


@lru_cache(maxsize=4096)
def _derivative(name: str, order: int, given: tuple[tuple[str, Any], ...]) -> Callable[[Tensor], Tensor]:
    record = lookup(name)
    parameters = complete(record, dict(given))
    if order == 0:
        return partial(record.fn, **parameters)
    if order > record.smoothness(**parameters):
        points = ", ".join(f"{kink:g}" for kink in record.kinks(**parameters))
        raise UnsupportedOperationError(
            f"the derivative of order {order} of '{name}' is not an ordinary function: it has a delta at {points}",
            advice="take the expected derivative by Stein's lemma, which needs no derivative",
        )
    explicit = record.derivatives(**parameters)
    if order <= len(explicit):
        return explicit[order - 1]
    if record.sympy is None:
        raise UnsupportedOperationError(
            f"'{name}' declares {len(explicit)} derivatives and no sympy form to derive number {order} from"
        )
    x = sp.Symbol("x", real=True)
    return torch_function(sp.diff(record.sympy(x, **parameters), x, order), x)


def has_derivative(name: str, order: int, **parameters: Any) -> bool:
    """Whether :func:`evaluate` has the derivative of that order."""
    record = lookup(name)
    return order <= record.smoothness(**complete(record, parameters))


def parity(name: str, order: int = 0, **parameters: Any) -> Parity:
    """Parity of the derivative of that order: each derivative turns it round."""
    record = lookup(name)
    own = record.parity(**complete(record, parameters))
    if own is None or order % 2 == 0:
        return own
    return "odd" if own == "even" else "even"


def homogeneity(name: str, order: int = 0, **parameters: Any) -> float | None:
    """Degree of positive homogeneity of the derivative of that order: each derivative lowers it by one."""
    record = lookup(name)
    degree = record.homogeneity(**complete(record, parameters))
    return None if degree is None else degree - order


def kinks(name: str, **parameters: Any) -> tuple[float, ...]:
    """Points where the function or some derivative of it jumps."""
    record = lookup(name)
    return record.kinks(**complete(record, parameters))


def smoothness(name: str, order: int = 0, **parameters: Any) -> float:
    """Smoothness of the derivative of that order."""
    record = lookup(name)
    own = record.smoothness(**complete(record, parameters))
    return own if math.isinf(own) else own - order
