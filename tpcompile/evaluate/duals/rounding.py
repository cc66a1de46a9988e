"""Where a closed form loses its digits: sums of exponentials, or of pieces far smaller than the spread.

The terms of a closed form are bounded by products of a number a row and a number a column, the size of the result by
the functions' norms: their ratio bounds the relative rounding error.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from tpcompile.evaluate.duals import closed
from tpcompile.evaluate.duals.pair import Pair
from tpcompile.nonlin.atoms import ONE, Expression, multiply

_SAFETY = 4.0


def delicate(f: Expression) -> bool:
    """Whether the closed forms of f can cancel: it has exponentials, or kinks away from zero."""
    return any(
        (isinstance(atom.rate, int | float) and atom.rate != 0) or any(o.shift for o in (*atom.gates, *atom.bumps))
        for atom in f
    )


def lost(f: Expression, g: Expression, pair: Pair, tolerance: float) -> Tensor | None:
    """Where ``E f(u) g(v)`` is not certain to ``tolerance`` relative to ``sqrt(E f^2 E g^2)``; None if nowhere."""
    rows = _amplification(f, pair.var_u, pair.mean_u)
    columns = _amplification(g, pair.var_v, pair.mean_v)
    limit = tolerance / (_SAFETY * torch.finfo(torch.float64).eps)
    if float(rows.max()) * float(columns.max()) <= limit:
        return None
    bad = ~(rows * columns <= limit)  # NaN is bad
    return bad.expand(pair.cov.shape) if bool(bad.any()) else None


def lost_single(f: Expression, var: Tensor, mean: Tensor | None, tolerance: float) -> Tensor | None:
    """The same of ``E f(u)``, relative to the bound itself: only what overflows or cancels below it is bad."""
    size = _bound(f, var, mean)
    value = closed.one_variable(f, var, mean).abs()
    bad = ~(_SAFETY * torch.finfo(var.dtype).eps * size <= tolerance * value)
    return bad if bool(bad.any()) else None


def _bound(f: Expression, var: Tensor, mean: Tensor | None) -> Tensor:
    """A bound of the terms of f's closed forms, for its share of any pair."""
    std = var.clamp(min=0).sqrt()
    at = torch.zeros_like(std) if mean is None else mean
    total = torch.zeros_like(std)
    for atom in f:
        rate = abs(complex(atom.rate).real)
        size = (at.abs() + std + rate * var).pow(atom.power) if atom.power else torch.ones_like(std)
        for bump in atom.bumps:
            size = size / (math.sqrt(2 * math.pi) * (var + bump.width**2).sqrt())
        if not rate:  # E|x^p gate| is at most (E x^4p)^(1/4) P(gate)^(1/4), twice over
            for gate in atom.gates:
                if gate.direction:
                    away = (at - gate.shift) / (var + gate.width**2).sqrt().clamp(min=torch.finfo(var.dtype).tiny)
                    size = size * torch.special.ndtr(gate.direction * away).pow(0.25)
        if rate:
            # half of twice the exponent of the pair: rate_u rate_v cov is at most the mean of both squares
            size = size * torch.exp(rate**2 * var + complex(atom.rate).real * at)
        total = total + abs(atom.coefficient) * size
    return total


def _amplification(f: Expression, var: Tensor, mean: Tensor | None) -> Tensor:
    """The bound of the terms over the root of ``E f^2``, infinite where that is not known."""
    square = multiply(f, f)
    norm = closed.one_variable(square, var, mean) if closed.closable(square, ONE, False) else torch.zeros_like(var)
    certain = norm > 1e3 * torch.finfo(var.dtype).eps * _bound(square, var, mean)
    return torch.where(certain, _bound(f, var, mean) / norm.clamp(min=0).sqrt(), math.inf)
