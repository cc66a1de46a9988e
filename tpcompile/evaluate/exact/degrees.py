"""Degrees of a program's values as polynomials: whether, and where not, it can be evaluated exactly.

Two degrees count. That of a vector in the Gaussian generators of its coordinates decides between linear algebra,
polynomials and neither. That of any value in the random scalars of the program (theory, section 5) decides whether an
average over them is exact: the mean of a value of degree 2, and the covariance of values of degree 1, are functions
of the covariance of the scalars alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from typing import Any

import sympy as sp

from tpcompile import nonlin
from tpcompile.ir import (
    Contract,
    Finite,
    Fluctuation,
    Gaussian,
    Init,
    Map,
    MatMul,
    MergeWidth,
    Mul,
    Node,
    Program,
    SplitWidth,
)

# Finite operations: degree of the result from those of the operands; any other is taken for not polynomial.
_LINEAR: Callable[[Sequence[float]], float] = max
_FINITE: dict[str, Callable[[Sequence[float]], float]] = {
    "aten.mse_loss.default": lambda d: 2 * max(d),
    "aten.mse_loss_backward.default": lambda d: d[0] + max(d[1:]),  # the incoming gradient times a difference
    "aten.mean.default": _LINEAR,
    "aten.mean.dim": _LINEAR,
    "aten.sum.default": _LINEAR,
    "aten.sum.dim_IntList": _LINEAR,
    "aten.neg.default": _LINEAR,
}


@dataclass(frozen=True)
class Obstacle:
    """The first instruction that stands against a way of evaluation, in words and by its place in the model."""

    what: str
    where: str | None = None

    def __str__(self) -> str:
        return self.what + (f" at {self.where}" if self.where else "")


@dataclass(frozen=True)
class Degrees:
    """Degrees of all values; an :class:`Obstacle` for linear and for polynomial evaluation, None where there is none.

    ``vectors`` bounds the degree of every vector in its generators, ``scalars`` that of every value in the random
    scalars; infinity is not polynomial.
    """

    vectors: Mapping[Node, float]
    scalars: Mapping[Node, float]
    linear: Obstacle | None
    polynomial: Obstacle | None

    def random(self, nodes: Sequence[Node]) -> float:
        """The largest degree in the random scalars."""
        return max((self.scalars[x] for x in nodes), default=0)


def degrees(program: Program, zero: frozenset[Node] = frozenset()) -> Degrees:
    """Degrees of every value of a program, which stay with it. ``zero`` are random scalars that count as zero."""
    known: dict[frozenset[Node], Degrees] = vars(program).setdefault("_degrees", {})
    if zero not in known:
        known[zero] = _Pass(program, zero).run()
    return known[zero]


def beyond_moments(program: Program, found: Degrees, covariances: tuple[str, ...]) -> str | None:
    """The first output whose mean over the random scalars is no function of their covariance alone.

    Of those named in ``covariances``, whose mean or whose covariance is none.
    """
    for name, out in program.outputs.items():
        if out.limit is not None and found.scalars[out.limit] > (1 if name in covariances else 2):
            return name
    return None


@cache
def coefficients(fn: str, order: int, params: tuple[tuple[str, Any], ...]) -> tuple[Fraction, ...] | None:
    """Coefficients (constant first) of the derivative of a nonlinearity, None if it is no polynomial."""
    record = nonlin.lookup(fn)
    if record.sympy is None:
        return None
    x = sp.Symbol("x", real=True)
    expression = sp.diff(record.sympy(x, **{**record.defaults, **dict(params)}), x, order)
    if not expression.is_polynomial(x):
        return None
    found = sp.Poly(expression, x).all_coeffs()[::-1]
    if not all(c.is_Rational for c in found):
        return None
    return tuple(Fraction(int(c.p), int(c.q)) for c in found)  # type: ignore[attr-defined]


class _Pass:
    """One walk over the program."""

    def __init__(self, program: Program, zero: frozenset[Node]) -> None:
        self.program = program
        self.zero = zero
        self.vectors: dict[Node, float] = {}
        self.scalars: dict[Node, float] = {}
        self.linear: Obstacle | None = None
        self.polynomial: Obstacle | None = None
        self.sides: dict[tuple[Node, bool], float] = {}  # largest degree of what a matrix was multiplied with

    def run(self) -> Degrees:
        for node in self.program.nodes:
            if node.kind == "matrix":
                continue
            self.scalars[node] = self._scalar_degree(node)
            if node.kind == "vector":
                self.vectors[node] = self._vector_degree(node)
            elif isinstance(node.op, Contract) and sum(self._moving(node)) > 2:
                self._not_linear("a moment of a product of three vectors or more", node)
        return Degrees(self.vectors, self.scalars, self.linear, self.polynomial)

    def _moving(self, node: Node) -> list[bool]:
        """By operand, whether it is a vector that is not constant over its coordinates."""
        return [x.kind == "vector" and self.vectors[x] > 0 for x in node.operands]

    def _vector_degree(self, node: Node) -> float:
        op, operands = node.op, node.operands
        match op:
            case Init():
                return 1.0
            case MatMul(transpose=transpose):
                matrix, x = operands
                key = (matrix, transpose)
                self.sides[key] = max(self.sides.get(key, 0.0), self.vectors[x])
                return max(1.0, self.sides.get((matrix, not transpose), 0.0))
            case SplitWidth() | MergeWidth():
                self._not_polynomial("blocks of a growing axis", node)
            case Mul() | Contract():
                found = [self.vectors[x] for x in operands if x.kind == "vector"]
                if sum(d > 0 for d in found) > 1:
                    self._not_linear("a product of two vectors", node)
                return sum(found)
            case Map():
                before = self.vectors[operands[0]]
                return self._composed(op, before, node) if before else 0.0
        return max((self.vectors[x] for x in operands if x.kind == "vector"), default=0.0)

    def _composed(self, op: Map, before: float, node: Node) -> float:
        power = _power(op)
        name = op.fn if not op.order else f"derivative {op.order} of {op.fn}"
        if math.isinf(power):
            self._not_polynomial(name, node)
        elif power > 1:
            self._not_linear(name, node)
        return power * before if power else 0.0

    def _scalar_degree(self, node: Node) -> float:
        op = node.op
        found = [self.scalars[x] for x in node.operands if x.kind != "matrix"]
        match op:
            case Init() | Gaussian() if node.kind == "scalar":
                if node in self.zero:
                    return 0.0
                return math.inf if any(found) else 1.0  # its law depends on earlier ones
            case Fluctuation():
                return math.inf
            case Mul() | Contract():
                return sum(found)
            case Map():
                power = _power(op) if found[0] else 0.0
                return power * found[0] if power else 0.0
            case Finite(target=target):
                known = _FINITE.get(target)
                return 0.0 if not any(found) else math.inf if known is None else known(found)
        return max(found, default=0.0)

    def _not_linear(self, what: str, node: Node) -> None:
        self.linear = self.linear or Obstacle(what, self.program.origins.get(node))

    def _not_polynomial(self, what: str, node: Node) -> None:
        self._not_linear(what, node)
        self.polynomial = self.polynomial or Obstacle(what, self.program.origins.get(node))


def _power(op: Map) -> float:
    found = coefficients(op.fn, op.order, op.params)
    return math.inf if found is None else max((i for i, c in enumerate(found) if c), default=0)
