"""Pointwise functions of one Gaussian variable: products of registered nonlinearities, and sums of these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, TypeAlias

import torch
from torch import Tensor

from tpcompile import nonlin
from tpcompile.nonlin import atoms
from tpcompile.nonlin.atoms import Expression

Part: TypeAlias = tuple[str, int, tuple[tuple[str, Any], ...]]
"""Name of a nonlinearity's record, order of the derivative, parameters, as in :class:`tpcompile.ir.Map`."""

LINEAR: Part = ("linear", 0, ())
"""The pseudo-nonlinearity x itself."""


@dataclass(frozen=True)
class Factor:
    """``coefficient * prod_i d^{order_i} fn_i(x)``; without parts the constant."""

    parts: tuple[Part, ...] = ()
    coefficient: float = 1.0


Function: TypeAlias = Factor | tuple[Factor, ...]
"""A factor, or a sum of factors."""


def terms(function: Function) -> tuple[Factor, ...]:
    """The summands."""
    return (function,) if isinstance(function, Factor) else tuple(function)


@lru_cache(maxsize=1024)
def expression(function: Function) -> Expression | None:
    """The function in the closed algebra of atoms; None if it is not in it."""
    summands = []
    for factor in terms(function):
        product: Expression = (atoms.Atom(factor.coefficient),) if factor.coefficient else ()
        for part in factor.parts:
            known = _part_expression(part)
            if known is None:
                return None
            product = atoms.multiply(product, known)
        summands.append(product)
    return atoms.add(*summands)


def _part_expression(part: Part) -> Expression | None:
    name, order, parameters = part
    if name == LINEAR[0]:
        return atoms.differentiate(atoms.X, order)
    record = nonlin.lookup(name)
    known = record.atoms(**nonlin.complete(record, dict(parameters)))
    try:
        return None if known is None else atoms.differentiate(known, order)
    except ValueError:
        return None


def pointwise(function: Function) -> Callable[[Tensor], Tensor]:
    """The torch function. UnsupportedOperationError if a derivative is no ordinary function."""
    compiled = [(factor.coefficient, [_part_function(part) for part in factor.parts]) for factor in terms(function)]

    def evaluate(x: Tensor) -> Tensor:
        total: Tensor | None = None
        for coefficient, parts in compiled:
            value = torch.full_like(x, coefficient) if not parts else parts[0](x)
            for part in parts[1:]:
                value = value * part(x)
            if parts and coefficient != 1:
                value = value * coefficient
            total = value if total is None else total + value
        return torch.zeros_like(x) if total is None else total

    return evaluate


def _part_function(part: Part) -> Callable[[Tensor], Tensor]:
    name, order, parameters = part
    if name == LINEAR[0]:
        return (lambda x: x) if order == 0 else torch.ones_like if order == 1 else torch.zeros_like
    return nonlin.derivative(name, order, **dict(parameters))


def kinks(function: Function) -> tuple[float, ...]:
    """Points where the function or a derivative may jump."""
    points: set[float] = set()
    for factor in terms(function):
        for name, _, parameters in factor.parts:
            if name != LINEAR[0]:
                record = nonlin.lookup(name)
                points.update(record.kinks(**nonlin.complete(record, dict(parameters))))
    return tuple(sorted(points))


def smoothness(function: Function) -> float:
    """Highest derivative that is an ordinary function."""
    return min(
        (
            nonlin.smoothness(name, order, **dict(parameters))
            for factor in terms(function)
            for name, order, parameters in factor.parts
            if name != LINEAR[0]
        ),
        default=math.inf,
    )


def derivative(function: Function) -> tuple[Factor, ...]:
    """The derivative by the product rule; like terms are added."""
    found: dict[tuple[Part, ...], float] = {}
    for factor in terms(function):
        for i, (name, order, parameters) in enumerate(factor.parts):
            if name == LINEAR[0]:
                if order > 0:
                    continue
                parts = factor.parts[:i] + factor.parts[i + 1 :]
            else:
                parts = (*factor.parts[:i], (name, order + 1, parameters), *factor.parts[i + 1 :])
            key = tuple(sorted(parts, key=repr))
            found[key] = found.get(key, 0.0) + factor.coefficient
    return tuple(Factor(parts, c) for parts, c in found.items() if c)


def times(f: Function, g: Function) -> tuple[Factor, ...]:
    """The product, multiplied out."""
    return tuple(
        replace(a, parts=a.parts + b.parts, coefficient=a.coefficient * b.coefficient)
        for a in terms(f)
        for b in terms(g)
    )
