"""Expectations of functions of one Gaussian variable to many digits.

Moments of a spectrum determine its recurrence coefficients with a condition number that grows by a factor of about 30 a
coefficient: rounding to float64 leaves eight of them. Integrals here are rounded to 50, by the trapezoidal
rule (whole line, analytic functions) or the double-exponential one between kinks (Takahasi & Mori, 1974), the step
halved until nothing changes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

import mpmath
import numpy as np
import sympy as sp

from tpcompile import nonlin
from tpcompile.errors import EvaluationError
from tpcompile.evaluate.exact.functions import Function
from tpcompile.evaluate.exact.numbers import Number, recognised
from tpcompile.evaluate.exact.real import Real

_KEPT = 50  # digits of an integral
_REACH = 17  # standard deviations, beyond which a density is below 10^-62
_FIRST, _LEVELS = 3, 7  # steps are 2^-level
_BITS = 270  # behind the point, of values at nodes: integers, which are ten times as fast as floats of many digits

Array = np.ndarray[Any, Any]


def precise_number(value: float | Fraction) -> Number:
    """The rational or root that a float stands for, else the float itself in many digits."""
    found = recognised(value)
    return Real.of(found) if isinstance(found, float) else found


def integral(functions: tuple[Function, ...], power: int, variance: Number) -> Real:
    """``E v^power prod_i f_i(v)`` for v ~ N(0, variance)."""
    std = mpmath.sqrt(Real.of(variance).value)
    kinks = tuple(sorted({mpmath.mpf(k) / std for f in functions for k in f.kinks(_REACH * float(std))}))
    ordered = tuple(sorted(functions, key=hash))
    total, before = mpmath.mpf(0), None
    for level in range(_FIRST, _FIRST + _LEVELS):
        grid = (std, kinks, level)
        terms = _times(_powers(power, *grid), _product(ordered, *grid)) if ordered else _powers(power, *grid)
        step = mpmath.mpf(2) ** -level
        part = step * _real(sum(terms.tolist()))
        total = total / 2 + part if before is not None else part
        size = max(abs(total), step * _real(max(map(abs, terms.tolist()))))
        if before is not None and abs(total - before) <= mpmath.mpf(10) ** -_KEPT * size:
            return Real(total)
        before = total
    raise EvaluationError(f"an integral over {', '.join(f.fn for f in functions)} does not converge to {_KEPT} digits")


def _real(x: int) -> Any:
    return mpmath.ldexp(mpmath.mpf(x), -_BITS)


def _fixed(x: Sequence[Any]) -> Array:
    return np.array([int(mpmath.ldexp(v, _BITS)) for v in x], dtype=object)


def _times(x: Array, y: Array) -> Array:
    return (x * y) >> _BITS


@cache
def _nodes(std: Any, kinks: tuple[Any, ...], level: int) -> tuple[Array, Array]:
    """Points that a level adds, times the standard deviation, and their weights with the normal density."""
    step = mpmath.mpf(2) ** -level
    places, weights = [], []
    root = mpmath.sqrt(2 * mpmath.pi)
    ends = [mpmath.mpf(-_REACH), *(k for k in kinks if abs(k) < _REACH), mpmath.mpf(_REACH)]
    count = int((5 if kinks else _REACH) / step)
    for low, high in pairwise(ends):
        half = (high - low) / 2
        for k in range(-count, count + 1):
            if level > _FIRST and k % 2 == 0:
                continue
            t, weight = k * step, mpmath.mpf(1)
            if kinks:
                inner = mpmath.pi / 2 * mpmath.sinh(k * step)
                near = 2 * half / (1 + mpmath.exp(2 * abs(inner)))  # distance from the nearer end
                t = low + near if k < 0 else high - near
                weight = half * mpmath.pi / 2 * mpmath.cosh(k * step) / mpmath.cosh(inner) ** 2
            places.append(std * t)
            weights.append(weight * mpmath.exp(-t * t / 2) / root)
    return _fixed(places), _fixed(weights)


@lru_cache(maxsize=512)
def _powers(power: int, std: Any, kinks: tuple[Any, ...], level: int) -> Array:
    """Weights times powers of the points."""
    places, weights = _nodes(std, kinks, level)
    return weights if power == 0 else _times(_powers(power - 1, std, kinks, level), places)


@lru_cache(maxsize=512)
def _product(functions: tuple[Function, ...], std: Any, kinks: tuple[Any, ...], level: int) -> Array:
    """A product of functions on the nodes of a level."""
    last = _values(functions[-1], std, kinks, level)
    return last if len(functions) == 1 else _times(_product(functions[:-1], std, kinks, level), last)


@cache
def _values(f: Function, std: Any, kinks: tuple[Any, ...], level: int) -> Array:
    """A function on the nodes of a level."""
    places, _ = _nodes(std, kinks, level)
    inside = np.zeros(len(places), dtype=object)
    for c, power, functions in f.parts:
        term = _fixed([Real.of(c).value] * len(places))
        for factor in [places] * power + [_values(g, std, kinks, level) for g in functions]:
            term = _times(term, factor)
        inside = inside + term
    outer = _outer(f.fn, f.order, f.params)
    return _fixed([outer(_real(x)) for x in inside])


@cache
def _outer(fn: str, order: int, params: Sequence[tuple[str, Any]]) -> Callable[[Any], Any]:
    """``f^(order)`` in many digits, from its sympy form."""
    record = nonlin.lookup(fn)
    if record.sympy is None:
        raise EvaluationError(f"{fn} has no formula, and so no digits beyond those of a float")
    x = sp.Symbol("x", real=True)
    expression = sp.diff(record.sympy(x, **{**record.defaults, **dict(params)}), x, order)
    own = {"sigmoid": lambda v: 1 / (1 + mpmath.exp(-v)), "softplus": lambda v: mpmath.log1p(mpmath.exp(v))}
    return sp.lambdify(x, expression, modules=[own, "mpmath"], cse=True)
