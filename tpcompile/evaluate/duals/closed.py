"""Closed-form Gaussian expectations of sums of atoms (:mod:`tpcompile.nonlin.atoms`) in one or two variables.

Three reductions, in this order: a bump (a normal density, or a delta) conditions on ``x + width noise = shift``; a
factor ``exp(r x)`` shifts the means by the covariance with ``r x``; a power is lowered by Stein's lemma, which
differentiates the gates to bumps. What is left is the expectation of gates: 1, ``Phi``, ``2/pi arcsin`` for two
centred ones, the bivariate normal distribution function for two others. Special cases are the arc-cosine
kernels (Cho & Saul 2009) and Williams' (1997) kernel of erf.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

from tpcompile.evaluate.duals.normal import bivariate_normal_cdf
from tpcompile.evaluate.duals.pair import Pair, inverse
from tpcompile.nonlin.atoms import SIGN, Atom, Bump, Expression, Gate, collect, real

Gates: TypeAlias = tuple[tuple[int, Gate], ...]
Value: TypeAlias = Any
"""A tensor, or a number that is the same for all pairs (0.0 in particular: nothing is computed for it)."""


def closable(f: Expression, g: Expression, centred: bool) -> bool:
    """Whether ``E f(u) g(v)`` is one of the closed forms here."""
    return all(_closable(a, b, centred) for a in signed(f) for b in signed(g))


def _closable(a: Atom, b: Atom, centred: bool) -> bool:
    gates = len(a.gates) + len(b.gates)
    complex_rate = any(isinstance(real(x.rate), complex) for x in (a, b))
    if complex_rate:
        return gates == 0 and not a.bumps and not b.bumps
    shifted = any(x.rate or any(o.shift for o in (*x.gates, *x.bumps)) for x in (a, b))
    return gates <= (3 if centred and not shifted else 2)


def signed(expression: Expression) -> Expression:
    """Unshifted gates as odd ones, whose centred expectations vanish unless there is an even number of them."""
    if any(atom.rate or any(o.shift for o in (*atom.gates, *atom.bumps)) for atom in expression):
        return expression
    out: list[Atom] = []
    for atom in expression:
        expanded = [replace(atom, gates=())]
        for gate in atom.gates:
            odd = replace(gate, direction=0)
            if gate.direction == 0:
                expanded = [replace(x, gates=(*x.gates, odd)) for x in expanded]
                continue
            halves = [replace(x, coefficient=x.coefficient / 2) for x in expanded]
            slope = gate.direction
            expanded = halves + [replace(x, coefficient=x.coefficient * slope, gates=(*x.gates, odd)) for x in halves]
        out += expanded
    return collect(out)


_FAR = 1e100


class State:
    """Two Gaussian variables during the reductions: covariances and means, and what was computed for them."""

    def __init__(
        self,
        cov: tuple[Value, Value, Value],
        det: Value,
        base: tuple[Value, Value],
        rates: tuple[complex, complex] = (0.0, 0.0),
        floor: tuple[Value, Value] = (0.0, 0.0),
        slopes: Callable[[int], Value] | None = None,
        near: float | None = None,
    ) -> None:
        self.cov, self.base, self.rates = cov, base, rates
        self.det = det
        """Determinant of the covariance, carried along: computed afresh it would cancel at high correlation."""
        self.floor = floor
        """Rounding error of the variances: a gate within that of a conditional mean stays half open."""
        self.slopes = slopes
        """``cov / var_u`` (0) and ``cov / var_v`` (1) where they are had with the rounding that the determinant has."""
        tilts = (_times(real(r), self.c(i, j)) for i in (0, 1) for j, r in enumerate(rates))
        first, second, third, fourth = tilts
        self.from_near = (_sum((base[0], first, second)), _sum((base[1], third, fourth)))
        self.near = near or 0.0
        """A number to which both means are close, given as their distances from it: kinks are there, too."""
        self.mean = (_sum((self.near, self.from_near[0])), _sum((self.near, self.from_near[1])))
        """Under the law with the density ``exp(rates . x)``, as all expectations here are."""
        self.memo: dict[Any, Any] = {}

    def c(self, i: int, j: int) -> Value:
        return self.cov[i + j]

    def tilt(self, rates: tuple[complex, complex]) -> tuple[Value, State]:
        """The expectation of ``exp(rates . x)`` as an exponent, and the variables under the law with that density."""
        squares = (rates[0] ** 2 / 2, rates[0] * rates[1], rates[1] ** 2 / 2)
        exponent = _sum(_times(real(s), c) for s, c in zip(squares, self.cov, strict=True))
        exponent = _sum((exponent, *(_times(real(r), m) for r, m in zip(rates, self.mean, strict=True))))
        return exponent, State(self.cov, self.det, self.base, rates, self.floor, self.slopes, self.near)

    def condition(self, i: int, bump: Bump) -> tuple[Value, State]:
        """A bump at variable i: the expectation of it, and the variables given that ``x_i + width noise = shift``."""
        key = ("condition", i, bump)
        if key in self.memo:
            return self.memo[key]
        j = 1 - i
        width2 = bump.width**2
        total = self.c(i, i) + width2
        inv = inverse(total) if torch.is_tensor(total) else 1 / total if total else 0.0
        away = _sum((bump.shift, _times(-1.0, self.mean[i])))
        weight = _sqrt(inv) / math.sqrt(2 * math.pi)
        if not _zero(away):
            weight = weight * torch.exp(-0.5 * away * away * inv) if torch.is_tensor(away * inv) else weight
        slope_i = 1.0 if not width2 else _times(self.c(i, i), inv)
        slope_j = self.slopes(i) if self.slopes and not width2 else _times(self.c(0, 1), inv)
        own = 0.0 if not width2 else _times(width2, slope_i)
        cross = 0.0 if not width2 else _times(width2, slope_j)
        other = _times(_sum((self.det, _times(width2, self.c(j, j)))), inv)
        floor: list[Value] = [0.0, 0.0]
        if torch.is_tensor(other):
            floor[j] = torch.finfo(other.dtype).eps * self.c(j, j)
        det = 0.0 if not width2 else _times(_times(width2, self.det), inv)
        cov = (own, cross, other) if i == 0 else (other, cross, own)
        if self.slopes and not width2 and not self.near and all(_zero(m) for m in self.base):
            from_shift = _times(bump.shift, slope_j - 1.0)
            base = (0.0, from_shift) if i == 0 else (from_shift, 0.0)
            given = State(cov, det, base, self.rates, (floor[0], floor[1]), near=bump.shift)
            self.memo[key] = weight, given
            return self.memo[key]
        away = _sum(
            (bump.shift - self.near, _times(-1.0, self.base[i]))
        )  # before the tilt: the means then get it afresh
        moved_i = bump.shift - self.near if not width2 else _sum((self.base[i], _times(slope_i, away)))
        moved_j = _sum((self.base[j], _times(slope_j, away)))
        base = (moved_i, moved_j) if i == 0 else (moved_j, moved_i)
        self.memo[key] = weight, State(cov, det, base, self.rates, (floor[0], floor[1]), near=self.near)
        return self.memo[key]

    def moment(self, powers: tuple[int, int], gates: Gates) -> Value:
        """``E u^p v^q prod gates`` by Stein's lemma."""
        key = (powers, gates)
        if key not in self.memo:
            self.memo[key] = self._moment(powers, gates)
        return self.memo[key]

    def _moment(self, powers: tuple[int, int], gates: Gates) -> Value:
        i = 0 if powers[0] else 1
        if not powers[i]:
            return self._gates(gates)
        if self._odd(sum(powers) + sum(g.direction == 0 for _, g in gates), gates):
            return 0.0
        lowered = _minus(powers, i)
        parts = [_times(self.mean[i], self.moment(lowered, gates))] if not _zero(self.mean[i]) else []
        for j in (0, 1):
            if lowered[j] and not _zero(self.c(i, j)):
                parts.append(_times(lowered[j] * self.c(i, j), self.moment(_minus(lowered, j), gates)))
        for n, (j, gate) in enumerate(gates):
            if not _zero(self.c(i, j)):
                weight, given = self.condition(j, Bump(gate.shift, gate.width))
                rest = given.moment(lowered, gates[:n] + gates[n + 1 :])
                parts.append(_times((gate.direction or 2) * self.c(i, j), _times(weight, rest)))
        return _sum(parts)

    def _odd(self, degree: int, gates: Gates) -> bool:
        """Whether the expectation vanishes by the symmetry of the centred law."""
        return bool(
            degree % 2 and all(_zero(m) for m in self.mean) and all(g.direction == 0 and not g.shift for _, g in gates)
        )

    def _gates(self, gates: Gates) -> Value:
        if not gates:
            return 1.0
        if self._odd(len(gates), gates):
            return 0.0
        means = [_sum((self.from_near[i], self.near - g.shift)) for i, g in gates]
        variances = [_at_least(_sum((self.c(i, i), g.width**2)), self.floor[i]) for i, g in gates]
        if len(gates) == 1:
            return _gate(gates[0][1].direction, _scaled(means[0], variances[0]))
        if len(gates) != 2:
            raise ValueError(f"no closed form of the expectation of {len(gates)} gates")
        cov = self.c(gates[0][0], gates[1][0])
        directions = (gates[0][1].direction, gates[1][1].direction)
        if all(_zero(m) for m in means):
            odd = _times(2 / math.pi, _atan2(cov, _sqrt(self._determinant(gates))))
            if directions == (0, 0):
                return odd
            if 0 in directions:
                return _times(0.5 * sum(directions), odd)
            return _sum((0.25, _times(0.25 * directions[0] * directions[1], odd)))
        rho = _clamp(_times(cov, _times(*(_inverse_sqrt(v) for v in variances))))
        scaled = [_scaled(m, v) for m, v in zip(means, variances, strict=True)]
        a, b = (d or 1 for d in directions)
        complement = _times(
            self._determinant(gates), _times(*(_times(_inverse_sqrt(v), _inverse_sqrt(v)) for v in variances))
        )
        near = [z.clamp(-40, 40) if torch.is_tensor(z) else min(max(z, -40.0), 40.0) for z in scaled]
        arguments = (_times(a, near[0]), _times(b, near[1]), _times(a * b, rho), complement)
        both = bivariate_normal_cdf(*_tensors(*arguments))
        if directions[0] == 0 and directions[1] == 0:
            return 4 * both - 2 * _gate(1, scaled[0]) - 2 * _gate(1, scaled[1]) + 1
        if 0 in directions:
            fixed = 1 if directions[0] == 0 else 0
            return 2 * both - _gate(directions[fixed], scaled[fixed])
        return both

    def _determinant(self, gates: Gates) -> Value:
        """Of the covariance of the two gates' noisy arguments."""
        (i, a), (j, b) = gates
        s, t = a.width**2, b.width**2
        own = 0.0 if i == j else self.det
        return _sum((own, _times(t, self.c(i, i)), _times(s, self.c(j, j)), s * t))


def two_variables(f: Expression, g: Expression, pair: Pair) -> Tensor:
    """``E f(u) g(v)``, of the shape of ``pair.cov``."""
    state = pair.memo.get("state")
    if state is None:
        det = (pair.std_u * pair.std_v * pair.root).square()
        stds = (pair.std_u, pair.std_v)

        def slopes(i: int) -> Value:
            ratio = stds[1 - i] / stds[i]  # divided, so that it is one for equal ones
            return pair.rho * torch.where(stds[i] > 0, ratio, torch.zeros_like(ratio))

        means = tuple(0.0 if m is None else m for m in (pair.mean_u, pair.mean_v))
        state = pair.memo["state"] = State((pair.var_u, pair.cov, pair.var_v), det, means, slopes=slopes)  # type: ignore[arg-type]
    total = _sum(_atoms(a, b, state) for a in _basis(f, pair.centred) for b in _basis(g, pair.centred))
    return _like(total, pair.cov)


def one_variable(f: Expression, var: Tensor, mean: Tensor | None = None) -> Tensor:
    """``E f(u)``, of the shape of ``var``."""
    state = State((var, 0.0, 0.0), 0.0, (0.0 if mean is None else mean, 0.0))
    return _like(_sum(_atoms(a, Atom(1.0), state) for a in _basis(f, mean is None)), var)


def _basis(f: Expression, centred: bool) -> Expression:
    return signed(f) if centred else f


def _atoms(a: Atom, b: Atom, state: State) -> Value:
    weight: Value = a.coefficient * b.coefficient
    for i, atom in enumerate((a, b)):
        for bump in atom.bumps:
            factor, state = state.condition(i, bump)
            weight = _times(weight, factor)
    exponent: Value = 0.0
    if a.rate or b.rate:
        exponent, state = state.tilt((a.rate, b.rate))
    gates: Gates = tuple((0, g) for g in a.gates) + tuple((1, g) for g in b.gates)
    if len(gates) == 1 and not a.power + b.power and not _zero(exponent) and gates[0][1].direction:
        # exp(large) * Phi(very negative): as one exponential
        ((i, gate),) = gates
        scaled = _scaled(_sum((state.mean[i], -gate.shift)), _sum((state.c(i, i), gate.width**2)))
        if torch.is_tensor(scaled) and torch.is_tensor(exponent) and not exponent.is_complex():
            return _times(weight, torch.exp(exponent + torch.special.log_ndtr(gate.direction * scaled)))
    value = _times(weight, state.moment((a.power, b.power), gates))
    if not _zero(exponent):
        value = _times(value, torch.exp(exponent) if torch.is_tensor(exponent) else math.e**exponent)
    return value


def _minus(powers: tuple[int, int], i: int) -> tuple[int, int]:
    return (powers[0] - 1, powers[1]) if i == 0 else (powers[0], powers[1] - 1)


def _gate(direction: int, z: Value) -> Value:
    if not torch.is_tensor(z):
        odd = math.erf(z / math.sqrt(2))
        return odd if direction == 0 else (1 + direction * odd) / 2
    return torch.erf(z / math.sqrt(2)) if direction == 0 else torch.special.ndtr(direction * z)


def _zero(x: Value) -> bool:
    return not torch.is_tensor(x) and x == 0


def _times(a: Value, b: Value) -> Value:
    return 0.0 if _zero(a) or _zero(b) else a if not torch.is_tensor(b) and b == 1 else a * b


def _sum(parts: Any) -> Value:
    total: Value = 0.0
    for part in parts:
        if not _zero(part):
            total = part if _zero(total) else total + part
    return total


def _sqrt(x: Value) -> Value:
    return x.sqrt() if torch.is_tensor(x) else math.sqrt(x)


def _inverse_sqrt(x: Value) -> Value:
    return inverse(x.clamp(min=0).sqrt()) if torch.is_tensor(x) else 1 / math.sqrt(x) if x else 0.0


def _scaled(mean: Value, var: Value) -> Value:
    """Mean in standard deviations; far out where the deviation is zero and the mean is not."""
    if _zero(mean):
        return 0.0
    if not torch.is_tensor(var):
        return mean * _inverse_sqrt(var) if var else _far(mean)
    far = torch.sign(mean) if torch.is_tensor(mean) else math.copysign(1.0, mean)
    return torch.where(var > 0, mean * _inverse_sqrt(var), _FAR * far)


def _atan2(y: Value, x: Value) -> Value:
    like = next((v for v in (x, y) if torch.is_tensor(v)), None)
    if like is None:
        return math.atan2(y, x)
    return torch.atan2(*(v if torch.is_tensor(v) else torch.full_like(like, v) for v in (y, x)))


def _at_least(var: Value, floor: Value) -> Value:
    return torch.maximum(var, floor) if torch.is_tensor(var) and torch.is_tensor(floor) else var


def _far(mean: Value) -> Value:
    return _FAR * (torch.sign(mean) if torch.is_tensor(mean) else math.copysign(1.0, mean))


def _clamp(x: Value) -> Value:
    return x.clamp(-1, 1) if torch.is_tensor(x) else min(max(x, -1.0), 1.0)


def _tensors(*values: Value) -> list[Tensor]:
    like = next(v for v in values if torch.is_tensor(v))
    return list(torch.broadcast_tensors(*(v if torch.is_tensor(v) else torch.full_like(like, v) for v in values)))


def _like(value: Value, like: Tensor) -> Tensor:
    if not torch.is_tensor(value):
        return torch.full_like(like, value.real)
    value = value.real if value.is_complex() else value
    return value.expand(np.broadcast_shapes(value.shape, like.shape))


__all__ = ["SIGN", "closable", "one_variable", "signed", "two_variables"]
