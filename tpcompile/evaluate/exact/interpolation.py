"""Numbers of a program as polynomials in hyperparameters, from their values where these are traced.

A traced program holds floats. Traced at several values of a hyperparameter, a number in it such as ``1 - lr wd`` is a
polynomial through its values, and the coefficients, which stand for rationals or roots of them, are recognised.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction
from itertools import product

from tpcompile.errors import EvaluationError
from tpcompile.evaluate.exact.numbers import Number, recognised

Point = tuple[Fraction, ...]
Powers = tuple[int, ...]
Sample = Callable[[Point], Sequence[float]]
"""The numbers of a program at factors of the hyperparameters."""

# exact as floats, of both signs, and none of them such that 1 - lr wd or 1 - momentum vanishes at common values
NODES = tuple(map(Fraction, ("3/4", "-5/8", "9/8", "-11/8", "3/8", "13/8", "-7/8", "-15/8", "7/16")))
ROUNDING = 1e-11
_DECIMALS = 10


def polynomials(sample: Sample, names: Sequence[str]) -> list[dict[Powers, Number]]:
    """Coefficients by powers of the hyperparameters, for every number; EvaluationError for one that is no polynomial.

    ``names`` are those of the hyperparameters. Degrees are found one hyperparameter at a time; values at the nodes and
    at one further point confirm the result.
    """
    base = tuple(NODES[i % len(NODES)] for i in range(1, len(names) + 1))
    degrees = [_degree(sample, base, axis, name) for axis, name in enumerate(names)]
    grid = list(product(*(NODES[: d + 1] for d in degrees)))
    values = {point: sample(point) for point in grid}
    inverses = [_inverse_vandermonde(NODES[: d + 1]) for d in degrees]
    further = tuple(NODES[d + 1] for d in degrees)
    check = sample(further)
    powers = list(product(*(range(d + 1) for d in degrees)))
    out = []
    for slot in range(len(check)):
        seen = [values[point][slot] for point in grid]
        size = max(map(abs, [*seen, check[slot]]))
        if len(set(seen)) == 1 and check[slot] == seen[0]:
            out.append({(0,) * len(names): recognised(seen[0])} if seen[0] else {})
            continue
        found = {}
        for power in powers:
            weights = (
                math.prod(m[k][j] for m, k, j in zip(inverses, power, at, strict=True)) for at in _places(degrees)
            )
            c = float(sum(w * Fraction(v) for w, v in zip(weights, seen, strict=True)))
            if abs(c) > ROUNDING * size:
                found[power] = _coefficient(c)
        for point, value in [*zip(grid, seen, strict=True), (further, check[slot])]:
            if abs(_at(found, point) - value) > ROUNDING * size:
                raise EvaluationError(f"a number that is no polynomial in {', '.join(names)}: {value!r} at {point}")
        out.append(found)
    return out


def _degree(sample: Sample, base: Point, axis: int, name: str) -> int:
    """The least degree in one hyperparameter at which the next value is foretold, for all numbers."""
    values: list[Sequence[float]] = []
    for d, node in enumerate(NODES):
        values.append(sample((*base[:axis], node, *base[axis + 1 :])))
        if d and all(_foretold(column) for column in zip(*values, strict=True)):
            return d - 1
    raise EvaluationError(f"a number of the program is no polynomial of degree {len(NODES) - 2} in {name}")


def _foretold(column: Sequence[float]) -> bool:
    *known, last = column
    nodes, at = NODES[: len(known)], NODES[len(known)]
    total = Fraction(0)
    for i, (s, v) in enumerate(zip(nodes, known, strict=True)):
        total += Fraction(v) * math.prod((at - r) / (s - r) for j, r in enumerate(nodes) if j != i)
    return abs(float(total) - last) <= ROUNDING * max(map(abs, column))


def _inverse_vandermonde(nodes: Sequence[Fraction]) -> list[list[Fraction]]:
    """Row k holds what every value contributes to the coefficient of power k."""
    columns = []
    for i, s in enumerate(nodes):
        basis = [Fraction(1)]  # of the polynomial that is one at s and zero at the others
        for j, r in enumerate(nodes):
            if j != i:
                shifted = [Fraction(0), *basis]
                basis = [(a - r * b) / (s - r) for a, b in zip(shifted, [*basis, Fraction(0)], strict=True)]
        columns.append(basis)
    return [list(row) for row in zip(*columns, strict=True)]


def _places(degrees: Sequence[int]) -> list[tuple[int, ...]]:
    return list(product(*(range(d + 1) for d in degrees)))


def _coefficient(c: float) -> Number:
    """The rational, decimal or root that a fitted coefficient stands for; else the float itself."""
    found = recognised(c, ROUNDING / 8)
    if not isinstance(found, float):
        return found
    for digits in range(1, _DECIMALS + 1):
        scaled = c * 10**digits
        if abs(scaled) > 1e6:
            break
        if round(scaled) and abs(scaled - round(scaled)) <= ROUNDING * abs(scaled):
            return Fraction(round(scaled), 10**digits)
    return c


def _at(found: dict[Powers, Number], point: Point) -> float:
    terms = (float(c) * math.prod(float(x) ** k for x, k in zip(point, p, strict=True)) for p, c in found.items())
    return math.fsum(terms)
