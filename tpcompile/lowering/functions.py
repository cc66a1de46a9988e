"""Pointwise functions of asymptotic series (theory, section 3): Taylor expansion, homogeneity, and kinks.

Where the leading term is random with a density, a kink is met with probability zero. Where it is a constant
(an output that vanishes, a target), or has atoms (relu is 0 half of the time), it may sit on the kink: then the
expansion is one-sided, or stops.
"""

from __future__ import annotations

import math
from dataclasses import replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tpcompile import nonlin
from tpcompile.analysis.semantics import constant_value
from tpcompile.errors import UnstableError, UnsupportedOperationError
from tpcompile.ir import Const, Expand, Gather, Map, Mul, Node, Op, Permute, Scatter, Slice, Sum, View
from tpcompile.lowering.algebra import Algebra
from tpcompile.lowering.infinity import at_infinity
from tpcompile.lowering.value import HALF, Axes, Value, flat

Key = tuple[tuple[str, Any], ...]

_MOST_ORDERS = 12  # of a Taylor expansion
UNKNOWN = Fraction(10**6)  # remainder of a value of which nothing is known; no power of n undoes it
_MOVES = (View, Permute, Expand, Slice, Gather)  # each entry of the result is one of the operand
_SIDE = 1e-9  # how far from a kink its two sides are looked at


class Functions:
    """Nonlinearities on values."""

    def __init__(self, algebra: Algebra, beyond: bool = False) -> None:
        self.a = algebra
        # Sizes are asked for, not values: functions go on to infinity where values grow, and where a leading term
        # is zero with positive probability (behind a relu) the lower ones are taken to be zero with it.
        self.beyond = beyond

    def apply(self, name: str, value: Value, order: int = 0, /, **params: Any) -> Value:
        """The derivative of that order of a nonlinearity, of a series."""
        return replace(self._apply(name, value, order, params), touches=value.touches)

    def _apply(self, name: str, value: Value, order: int, params: dict[str, Any]) -> Value:
        a, key = self.a, tuple(params.items())
        if a.width is not None:
            node = a.limit(value)
            return a.collect(value.axes, [(Fraction(0), 1.0, self.map(name, order, key, node))], None)
        lead = value.lead
        if lead is None:
            return self._at(name, order, key, [], value.axes)
        degree = nonlin.homogeneity(name, order, **params)
        if not value.terms:
            return self._of_remainder(name, order, key, degree, lead, value.axes)
        if lead != 0 and degree is not None:
            shift = Fraction(degree).limit_denominator(64) * lead
            return a.scale(self._expand(name, order, key, a.scale(value, 1.0, -lead)), 1.0, shift)
        if lead > 0 and self.beyond:
            return at_infinity(self, name, order, params, value)
        if lead > 0:
            raise UnstableError(
                f"{name} of a value of size n^{lead}: the limit does not exist",
                value=name,
                step=None,
                exponent=lead,
                where=a.place,
            )
        return self._expand(name, order, key, value)

    def _of_remainder(self, name: str, order: int, key: Key, degree: float | None, lead: Fraction, axes: Axes) -> Value:
        """Of a value of which only the size is known."""
        if degree is not None and degree > 0:
            return Value(axes, (), Fraction(degree).limit_denominator(64) * lead)
        if lead >= 0 or self._jumps(name, order, key, torch.zeros(())):
            return Value(axes, (), UNKNOWN)  # deeper series will tell
        return self.a.cut(self._at(name, order, key, [], axes), lead)

    # expansion -----------------------------------------------------------------------------

    def _expand(self, name: str, order: int, key: Key, value: Value) -> Value:
        a = self.a
        leads = [node for e, node in value.terms if e == 0]
        small = Value(value.axes, tuple(t for t in value.terms if t[0] < 0), value.remainder)
        step = small.lead
        if step is None:
            return self._at(name, order, key, leads, value.axes)
        if step >= 0:  # the remainder is as large as the leading term: nothing is known
            return Value(value.axes, (), UNKNOWN)
        kinks = nonlin.lookup(name).kinks(**dict(key))
        known = constant_value(leads[0], self.a.builder.data) if leads else torch.zeros((), dtype=torch.float64)
        if kinks and known is not None:
            if _meets(known, kinks):
                return self._one_sided(name, order, key, value.axes, known, small, step)
        elif not self.beyond and kinks and leads and self.has_atoms(leads[0]) and not _silent_on_atoms(leads[0], small):
            start = self._at(name, order, key, leads, value.axes)
            jumps = not nonlin.has_derivative(name, order + 1, **dict(key))
            return Value(value.axes, (), UNKNOWN) if jumps else a.cut(start, step)
        return self._taylor(name, order, key, leads, small, step)

    def _taylor(self, name: str, order: int, key: Key, leads: list[Node], small: Value, step: Fraction) -> Value:
        a = self.a
        out = self._at(name, order, key, leads, small.axes)
        power = a.number(1.0)
        for k in range(1, _MOST_ORDERS + 1):
            if not nonlin.has_derivative(name, order + k, **dict(key)):
                # a jump moves few coordinates by a lot: n^step in the mean, n^(step/2) in root mean square
                return a.cut(out, step * HALF if k == 1 else k * step)
            if out.terms and k * step <= out.terms[0][0] - a.depth:
                return a.cut(out, k * step)
            power = a.mul(power, small)
            factor = self._at(name, order + k, key, leads, small.axes)
            out = a.add((1.0, out), (1.0 / math.factorial(k), a.mul(factor, power)))
            if small.remainder is not None and (k + 1) * step <= small.remainder:
                return a.cut(out, (k + 1) * step)
        return a.cut(out, (_MOST_ORDERS + 1) * step)

    def _one_sided(
        self, name: str, order: int, key: Key, axes: Axes, known: Tensor, small: Value, step: Fraction
    ) -> Value:
        """About a constant that is a kink in some entries: the two sides by the sign of what is added."""
        a = self.a
        middle, right, left = (self._near(name, order, key, known, side) for side in (0.0, _SIDE, -_SIDE))
        back = a.scale(small, -1.0)
        if self._jumps(name, order, key, known):
            up, down = self.apply("heaviside", small), self.apply("heaviside", back)
            parts = [(right - middle, up), (left - middle, down)]
            rest = step
        elif nonlin.has_derivative(name, order + 1, **dict(key)):
            slopes = [self._near(name, order + 1, key, known, side) for side in (_SIDE, -_SIDE)]
            parts = [(slopes[0], self.apply("relu", small)), (-slopes[1], self.apply("relu", back))]
            rest = 2 * step
        else:
            return a.cut(self._constant(middle, axes), step)
        out = self._constant(middle, axes)
        for factor, value in parts:
            out = a.add((1.0, out), (1.0, a.mul(self._constant(factor, axes), value)))
        return a.cut(out, rest)

    def _near(self, name: str, order: int, key: Key, known: Tensor, side: float) -> Tensor:
        return nonlin.evaluate(name, known + side * (1 + known.abs()), order, **dict(key))

    def _jumps(self, name: str, order: int, key: Key, known: Tensor) -> bool:
        sides = [self._near(name, order, key, known.double(), s) for s in (-_SIDE, 0.0, _SIDE)]
        return any(float((x - sides[1]).abs().max()) > 1e-6 for x in (sides[0], sides[2]))

    def _constant(self, x: Tensor, axes: Axes) -> Value:
        a = self.a
        if x.ndim == 0 or bool((x == x.flatten()[0]).all()):
            return a.number(float(x.flatten()[0]), axes=axes)
        node = a.nodes.expand(a.builder.constant(x), flat(axes))
        return Value(axes, ((Fraction(0), node),))

    # single nodes --------------------------------------------------------------------------

    def _at(self, name: str, order: int, key: Key, leads: list[Node], axes: Axes) -> Value:
        """The function at the leading term, or at zero if there is none."""
        if leads:
            return Value(axes, ((Fraction(0), self.map(name, order, key, leads[0])),))
        value = float(nonlin.evaluate(name, torch.zeros((), dtype=torch.float64), order, **dict(key)))
        if not math.isfinite(value):
            raise UnsupportedOperationError(
                f"{name} is not finite at 0, where its argument tends to", where=self.a.place
            )
        return self.a.number(value, axes=axes)

    def map(self, name: str, order: int, key: Key, node: Node) -> Node:
        """The pointwise function on a node; constants are folded."""
        a = self.a
        inner = node.operands[0] if isinstance(node.op, Expand) else node
        if isinstance(inner.op, Const):
            x = torch.tensor(inner.op.value, dtype=torch.float64)
            folded = float(nonlin.evaluate(name, x, order, **dict(key)))
            return a.nodes.expand(a.builder.node(Const(folded)), node.dims)
        return a.builder.node(Map(name, order, key), node)

    def has_atoms(self, node: Node) -> bool:
        """True if a vector may take single values with positive probability: a flat piece of some function is in it."""
        if node.kind != "vector":
            return False
        if isinstance(node.op, Map):
            record = nonlin.lookup(node.op.fn)
            params = dict(node.op.params)
            flat_piece = node.op.order > 0 and bool(record.kinks(**params))
            x = torch.linspace(-20, 20, 81, dtype=torch.float64)
            y = nonlin.evaluate(node.op.fn, x, node.op.order, **params)
            smooth = nonlin.smoothness(node.op.fn, node.op.order, **params) == math.inf
            return flat_piece or (not smooth and bool((y[1:] == y[:-1]).any()))
        if isinstance(node.op, Mul | Sum):
            check = any if isinstance(node.op, Mul) else all
            return check(self.has_atoms(x) for x in node.operands if x.kind == "vector")
        if isinstance(node.op, Gather | Scatter):
            index = constant_value(node.operands[1], self.a.builder.data)
            places = range(node.op.size) if isinstance(node.op, Scatter) else [-1]
            zeros = index is None or isinstance(node.op, Gather) == bool(torch.isin(torch.tensor(places), index).all())
            return zeros or self.has_atoms(node.operands[0])
        return len(node.operands) == 1 and self.has_atoms(node.operands[0])


def _meets(known: Tensor, kinks: tuple[float, ...]) -> bool:
    return any(bool(((known - kink).abs() <= 1e-12 * (1 + abs(kink))).any()) for kink in kinks)


_Place = tuple[tuple[Any, ...], Op, tuple[Node, ...]]  # how it was moved, a function, its argument


def _silent_on_atoms(lead: Node, small: Value) -> bool:
    """True if every lower term vanishes where the leading one sits on an atom.

    A sum sits on an atom where all its summands are on flat pieces of their functions, so that all their derivatives
    vanish; a lower term is silent if it carries one of these.
    """
    flat_pieces = _flat_pieces(lead, ())
    if flat_pieces is None or (small.remainder is None and not small.terms):
        return False

    def carries(node: Node, path: tuple[Any, ...]) -> bool:
        if isinstance(node.op, Sum):
            return all(carries(x, path) for x in node.operands)
        if isinstance(node.op, Mul):
            return any(carries(x, path) for x in node.operands)
        if isinstance(node.op, Map):
            return (path, node.op, node.operands) in flat_pieces
        return isinstance(node.op, _MOVES) and carries(node.operands[0], (*path, (node.op, node.operands[1:])))

    return all(carries(node, ()) for _, node in small.terms)


def _flat_pieces(node: Node, path: tuple[Any, ...]) -> set[_Place] | None:
    """The derivatives that vanish where a value sits on an atom; None where that is not known."""
    if isinstance(node.op, Sum):
        parts = [_flat_pieces(x, path) for x in node.operands if x.kind == "vector"]
        return None if None in parts else set().union(*(p for p in parts if p is not None))
    if isinstance(node.op, Map):
        return {(path, Map(node.op.fn, node.op.order + 1, node.op.params), node.operands)}
    if isinstance(node.op, _MOVES):
        return _flat_pieces(node.operands[0], (*path, (node.op, node.operands[1:])))
    return None
