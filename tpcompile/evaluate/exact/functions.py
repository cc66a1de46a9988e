"""Functions of one centred Gaussian variable that are no polynomials, and expectations of their products.

Positively homogeneous ones (relu, its derivative, their compositions) have exact expectations wherever the total degree
is even: ``E f(v) = (f(1) + f(-1)) / 2 (d - 1)!! Var(v)^(d/2)``. All others are integrated numerically.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss

from tpcompile import nonlin
from tpcompile.errors import EvaluationError
from tpcompile.evaluate.exact.numbers import Number, recognised

Array = np.ndarray[Any, Any]
Part = tuple[Number, int, tuple["Function", ...]]  # coefficient, power of v, functions of v

_REACH, _PANELS, _NODES = 12.0, 96, 16  # of the quadrature, in standard deviations


@dataclass(frozen=True)
class Function:
    """``f^(order)(w)`` of a nonlinearity f, where w is a sum of ``parts``: polynomial in v and in functions of v."""

    fn: str
    order: int
    params: tuple[tuple[str, Any], ...]
    parts: tuple[Part, ...]

    @property
    def values(self) -> dict[str, Any]:
        """All parameters."""
        return {**nonlin.lookup(self.fn).defaults, **dict(self.params)}

    def outer(self, w: Array) -> Array:
        """``f^(order)`` alone."""
        return nonlin.evaluate(self.fn, torch.from_numpy(w), self.order, **dict(self.params)).numpy()

    def inner(self, v: Array) -> Array:
        """w at points."""
        total = np.zeros_like(v)
        for c, power, functions in self.parts:
            total += float(c) * v**power * math.prod((f(v) for f in functions), start=np.ones_like(v))
        return total

    def __call__(self, v: Array) -> Array:
        return self.outer(self.inner(v))

    def check_smooth(self) -> None:
        """EvaluationError if the derivative is no ordinary function."""
        if self.order > nonlin.lookup(self.fn).smoothness(**self.values):
            raise EvaluationError(
                f"derivative {self.order} of {self.fn} is no ordinary function: the response through it has no exact "
                "evaluation",
                advice="the particle evaluator needs no derivative",
            )

    def kinks(self, reach: float) -> set[float]:
        """Points up to ``reach`` where it is not smooth: kinks inside, and where w crosses a kink of f."""
        found = {k for _, _, functions in self.parts for f in functions for k in f.kinks(reach)}
        own = nonlin.lookup(self.fn).kinks(**self.values)
        if own and [p[1:] for p in self.parts] == [(1, ())]:
            return found | {k / float(self.parts[0][0]) for k in own}
        from scipy.optimize import brentq

        v = np.linspace(-reach, reach, 4001)
        for k in own:
            w = self.inner(v) - k
            found |= {float(x) for x in v[w == 0.0][:1]}
            for i in np.nonzero(w[:-1] * w[1:] < 0)[0]:
                root: Any = brentq(lambda x, k=k: float(self.inner(np.array([x]))[0]) - k, v[i], v[i + 1])
                found.add(float(root))
        return found

    def parity(self) -> int | None:
        """0 if it is even in v, 1 if it is odd, None if neither."""
        inside = {_parity_of(power, functions) for _, power, functions in self.parts}
        if inside == {0}:
            return 0
        outer = nonlin.lookup(self.fn).parity(**self.values)
        return None if inside != {1} or outer is None else (self.order + (outer == "odd")) % 2

    def sides(self) -> tuple[int, Number, Number] | None:
        """(degree, f(1), f(-1)) where it is positively homogeneous in v of a whole degree."""
        degree = nonlin.lookup(self.fn).homogeneity(**self.values)
        if degree is None or degree != int(degree) or degree < self.order or len(self.parts) != 1:
            return None
        own = int(degree) - self.order
        ((c, power, functions),) = self.parts
        inside = [f.sides() for f in functions]
        total, ends = power, [c, c * (-1) ** power]
        for known in inside:
            if known is None:
                return None
            total += known[0]
            ends = [e * side for e, side in zip(ends, known[1:], strict=True)]
        left, zero, right = (recognised(float(x)) for x in self.outer(np.array([-1.0, 0.0, 1.0])))
        if zero != 0 and own != 0:
            return None
        at = [zero if e == 0 else (right if float(e) > 0 else left * (-1) ** own) * _power(e, own) for e in ends]
        return own * total, at[0], at[1]


def _parity_of(power: int, functions: tuple[Function, ...]) -> int | None:
    inside = [f.parity() for f in functions]
    return None if None in inside else (power + sum(p for p in inside if p is not None)) % 2


def _power(x: Number, k: int) -> Number:
    return math.prod([x] * k, start=1)


Integral = Callable[[tuple[Function, ...], int, Number], Number]


def expectation(
    functions: tuple[Function, ...],
    power: int,
    variance: Number,
    integral: Integral | None = None,
) -> Number:
    """``E v^power prod_i f_i(v)`` for v ~ N(0, variance); ``integral`` in place of float64 quadrature."""
    for f in functions:
        f.check_smooth()
    parity = _parity_of(power, functions)
    if parity == 1:
        return 0
    known = [f.sides() for f in functions]
    if all(k is not None for k in known):
        degree = power + sum(k[0] for k in known if k is not None)
        right = math.prod((k[1] for k in known if k is not None), start=1)
        left = math.prod((k[2] for k in known if k is not None), start=1) * (-1) ** power
        if degree % 2 == 0:
            return (right + left) * Fraction(1, 2) * math.prod(range(1, degree, 2)) * _power(variance, degree // 2)
    if integral is not None:
        return integral(functions, power, variance)
    return _integral(functions, power, math.sqrt(float(variance)))


@cache
def _integral(functions: tuple[Function, ...], power: int, std: float) -> float:
    kinks = tuple(sorted({k / std for f in functions for k in f.kinks(_REACH * std)}))
    t, weights = _quadrature(kinks)
    total = weights * (std * t) ** power
    for f in functions:
        total = total * _values(f, std, kinks)
    return float(total.sum())


@cache
def _quadrature(kinks: tuple[float, ...]) -> tuple[Array, Array]:
    """Nodes and weights against the standard normal density, on panels split at the kinks."""
    breaks = np.unique([*np.linspace(-_REACH, _REACH, _PANELS + 1), *(k for k in kinks if abs(k) < _REACH)])
    x, w = leggauss(_NODES)
    width = np.diff(breaks)[:, None] / 2
    t = (breaks[:-1, None] + width * (1 + x)).ravel()
    return t, (width * w).ravel() * np.exp(-t * t / 2) / math.sqrt(2 * math.pi)


@lru_cache(maxsize=64)
def _values(f: Function, std: float, kinks: tuple[float, ...]) -> Array:
    """A function on the nodes."""
    return f(std * _quadrature(kinks)[0])
