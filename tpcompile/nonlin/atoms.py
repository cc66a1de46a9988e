"""Closed algebra of pointwise functions whose Gaussian expectations are known.

A nonlinearity that is a sum of atoms ``c x^p e^(r x) gates bumps`` (a gate is a step or a smoothed step, a bump a
Gaussian density or a Dirac delta) says so in its record, and all its dual activations and their derivatives follow:
the algebra is closed under products and under differentiation, and Gaussian expectations of atoms reduce to those of
gates by completing squares (bumps, exponentials) and by Stein's lemma (powers). `tpcompile.evaluate.duals` does that.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TypeAlias


@dataclass(frozen=True, order=True)
class Gate:
    """``Phi(direction (x - shift) / width)``; with direction 0 the odd one, ``erf((x - shift) / (sqrt(2) width))``.

    ``Phi`` is the normal distribution function; width 0 is the step, or the sign.
    """

    direction: int
    shift: float = 0.0
    width: float = 0.0


@dataclass(frozen=True, order=True)
class Bump:
    """The normal density of mean ``shift`` and standard deviation ``width`` at x; width 0 is the Dirac delta."""

    shift: float = 0.0
    width: float = 0.0


@dataclass(frozen=True)
class Atom:
    """``coefficient x^power exp(rate x) prod gates prod bumps``."""

    coefficient: complex
    power: int = 0
    rate: complex = 0.0
    gates: tuple[Gate, ...] = ()
    bumps: tuple[Bump, ...] = ()


Expression: TypeAlias = tuple[Atom, ...]
"""A sum of atoms."""

SIGN = Gate(0)
UP = Gate(1)
ONE: Expression = (Atom(1.0),)
X: Expression = (Atom(1.0, power=1),)


def collect(atoms: Iterable[Atom]) -> Expression:
    """The same sum with sharp gates multiplied out, like terms added, and zeros left out."""
    found: dict[Atom, complex] = {}
    for raw in atoms:
        for atom in _simplify(raw):
            key = replace(atom, coefficient=1.0, gates=tuple(sorted(atom.gates)), bumps=tuple(sorted(atom.bumps)))
            found[key] = found.get(key, 0.0) + atom.coefficient
    return tuple(replace(key, coefficient=real(c)) for key, c in found.items() if c != 0)


def real(value: complex) -> complex:
    """A float where the imaginary part is zero."""
    return value.real if isinstance(value, complex) and value.imag == 0 else value


def _simplify(atom: Atom) -> Expression:
    """Dirac deltas applied to the other factors, and at most one sharp gate left."""
    delta = next((bump for bump in atom.bumps if bump.width == 0), None)
    if delta is not None and (atom.power or atom.rate or atom.gates or len(atom.bumps) > 1):
        value = atom.coefficient * delta.shift**atom.power * math.e ** (atom.rate * delta.shift)
        for gate in atom.gates:
            value *= gate_at(gate, delta.shift)
        for bump in atom.bumps:
            if bump is not delta:
                value *= density_at(bump, delta.shift)
        return (Atom(value, bumps=(delta,)),) if value else ()
    sharp = sorted((g for g in atom.gates if g.width == 0), key=lambda g: g.shift)
    if len(sharp) < 2:
        return (atom,)
    rest = replace(atom, gates=tuple(g for g in atom.gates if g.width != 0) + tuple(sharp[2:]))
    return tuple(
        out
        for gate, factor in _two_sharp(sharp[0], sharp[1])
        for out in _simplify(
            replace(rest, coefficient=rest.coefficient * factor, gates=rest.gates + ((gate,) if gate else ()))
        )
    )


def _two_sharp(a: Gate, b: Gate) -> tuple[tuple[Gate | None, float], ...]:
    """The product of two sharp gates, ``a.shift <= b.shift``, as a sum of one gate or none."""
    if a.direction == 0 and b.direction == 0 and a.shift == b.shift:
        return ((None, 1.0),)
    if a.direction == 0:  # sign = 2 step - 1
        return (*((g, 2 * c) for g, c in _two_sharp(replace(a, direction=1), b)), (b, -1.0))
    if b.direction == 0:
        return (*((g, 2 * c) for g, c in _two_sharp(a, replace(b, direction=1))), (a, -1.0))
    if a.direction == b.direction:
        return ((b if a.direction == 1 else a, 1.0),)
    if a.direction == -1 or a.shift == b.shift:
        return ()
    return ((a, 1.0), (replace(b, direction=1), -1.0))


def gate_at(gate: Gate, x: float) -> float:
    """The value of a gate; half way at a jump."""
    z = x - gate.shift
    odd = math.copysign(1.0, z) if gate.width == 0 and z else math.erf(z / (math.sqrt(2) * gate.width)) if z else 0.0
    return odd if gate.direction == 0 else (1 + gate.direction * odd) / 2


def density_at(bump: Bump, x: float) -> float:
    """The value of a bump that is no delta (zero away from a delta)."""
    if bump.width == 0:
        if x == bump.shift:
            raise ValueError("the product of two deltas at one point is no measure")
        return 0.0
    return math.exp(-(((x - bump.shift) / bump.width) ** 2) / 2) / (bump.width * math.sqrt(2 * math.pi))


def scale(expression: Expression, factor: complex) -> Expression:
    """``factor * expression``."""
    return collect(replace(atom, coefficient=atom.coefficient * factor) for atom in expression)


def add(*expressions: Expression) -> Expression:
    """The sum."""
    return collect(atom for expression in expressions for atom in expression)


def multiply(*expressions: Expression) -> Expression:
    """The product, multiplied out."""
    out = ONE
    for expression in expressions:
        out = collect(
            Atom(
                a.coefficient * b.coefficient, a.power + b.power, a.rate + b.rate, a.gates + b.gates, a.bumps + b.bumps
            )
            for a in out
            for b in expression
        )
    return out


def differentiate(expression: Expression, order: int = 1) -> Expression:
    """The derivative as a measure: a step becomes a Dirac delta. ValueError where it is no measure (delta')."""
    for _ in range(order):
        expression = collect(term for atom in expression for term in _derivative(atom))
    return expression


def _derivative(atom: Atom) -> Iterable[Atom]:
    if atom.power:
        yield replace(atom, coefficient=atom.coefficient * atom.power, power=atom.power - 1)
    if atom.rate:
        yield replace(atom, coefficient=atom.coefficient * atom.rate)
    for i, gate in enumerate(atom.gates):
        rest = atom.gates[:i] + atom.gates[i + 1 :]
        slope = 2 if gate.direction == 0 else gate.direction
        bump = Bump(gate.shift, gate.width)
        yield replace(atom, coefficient=atom.coefficient * slope, gates=rest, bumps=(*atom.bumps, bump))
    for bump in atom.bumps:
        if bump.width == 0:
            raise ValueError("the derivative of a delta is no measure")
        precision = bump.width**-2
        yield replace(atom, coefficient=-atom.coefficient * precision, power=atom.power + 1)
        yield replace(atom, coefficient=atom.coefficient * precision * bump.shift)


def polynomial(*coefficients: float) -> Expression:
    """``sum_k coefficients[k] x^k``."""
    return collect(Atom(c, power=k) for k, c in enumerate(coefficients))


def exponential(rate: complex, factor: complex = 1.0) -> Expression:
    """``factor * exp(rate x)``."""
    return collect((Atom(factor, rate=rate),))


def gaussian(precision: float) -> Expression:
    """``exp(-precision x^2)``."""
    width = 1 / math.sqrt(2 * precision)
    return (Atom(width * math.sqrt(2 * math.pi), bumps=(Bump(0.0, width),)),)


def error_function(rate: float = 1.0) -> Expression:
    """``erf(rate x)``."""
    return (Atom(1.0, gates=(Gate(0, 0.0, 1 / (math.sqrt(2) * rate)),)),)


def normal_distribution(rate: float = 1.0) -> Expression:
    """``Phi(rate x)``."""
    return collect((Atom(0.5), Atom(0.5, gates=(Gate(0, 0.0, 1 / rate),))))


def pieces(breaks: tuple[float, ...], parts: tuple[Expression, ...]) -> Expression:
    """``parts[i]`` between ``breaks[i-1]`` and ``breaks[i]``: one part more than breaks."""
    if len(breaks) == 1:
        gates: tuple[tuple[Gate, ...], ...] = ((Gate(-1, breaks[0]),), (Gate(1, breaks[0]),))
    else:
        inner = tuple((Gate(1, a), Gate(-1, b)) for a, b in itertools.pairwise(breaks))
        gates = ((Gate(-1, breaks[0]),), *inner, (Gate(1, breaks[-1]),))
    return add(*(multiply((Atom(1.0, gates=g),), part) for g, part in zip(gates, parts, strict=True)))
