"""Polynomials in formal generators of a coordinate, and their exact expectations (Wick, Isserlis).

A generator is an initial value, the Gaussian part ``Ẑ^{W x}`` of a product, or an atom ``f(z)``: a function that is no
polynomial, of a linear combination z of Gaussian generators. Generators are formal: two that are equal as random
variables may both occur. Covariances follow from the Master Theorem, on demand.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from typing import Any

import numpy as np
import torch
from numpy.polynomial.legendre import leggauss

from tpcompile import nonlin
from tpcompile.errors import EvaluationError
from tpcompile.evaluate.exact.numbers import Number

Array = np.ndarray[Any, Any]
Factor = tuple[str, int, tuple[tuple[str, Any], ...]]  # a nonlinearity, its derivative's order, its parameters
Monomial = tuple[int, ...]  # generators in order, each as often as its power

_REACH, _PANELS, _NODES = 12.0, 96, 16  # of the quadrature of an atom's expectation, in standard deviations


class Polynomial:
    """A polynomial in generators; a coefficient for each monomial, none of them zero."""

    __slots__ = ("terms",)

    def __init__(self, terms: dict[Monomial, Number]) -> None:
        self.terms = terms

    def __add__(self, other: Polynomial | Number) -> Polynomial:
        total = dict(self.terms)
        for m, c in lifted(other).terms.items():
            c = total.pop(m, 0) + c
            if c != 0:
                total[m] = c
        return Polynomial(total)

    def __mul__(self, other: Polynomial | Number) -> Polynomial:
        if not isinstance(other, Polynomial):
            return Polynomial({m: c * other for m, c in self.terms.items()} if other != 0 else {})
        total: dict[Monomial, Number] = {}
        for m, c in self.terms.items():
            for k, b in other.terms.items():
                key = merged(m, k)
                total[key] = total.get(key, 0) + c * b
        return Polynomial({m: c for m, c in total.items() if c != 0})

    __radd__ = __add__
    __rmul__ = __mul__

    def generators(self) -> set[int]:
        """Those that occur."""
        return {g for m in self.terms for g in m}


def merged(a: Monomial, b: Monomial) -> Monomial:
    """The product of two monomials."""
    return tuple(sorted(a + b)) if a and b else a or b


def lifted(x: Polynomial | Number) -> Polynomial:
    """A number as a constant polynomial."""
    return x if isinstance(x, Polynomial) else Polynomial({(): x} if x != 0 else {})


@dataclass(frozen=True)
class Initial:
    """An entry of an initial vector: raw moments by order, or a centred normal of that variance."""

    variance: Number | None = None
    moment: Callable[[int], Number] | None = None


@dataclass(frozen=True)
class Product:
    """``Ẑ^{W x}``; ``side`` names the matrix and whether it is transposed, ``factor`` is its variance over E[x^2]."""

    side: Any
    factor: Number
    x: Polynomial


@dataclass(frozen=True)
class Atom:
    """The derivative of that order of a nonlinearity at z = ``mean`` + a combination of Gaussian generators."""

    fn: str
    order: int
    params: tuple[tuple[str, Any], ...]
    mean: Number
    z: tuple[tuple[int, Number], ...]


@dataclass
class Wick:
    """Generators of one evaluation, with every expectation computed once."""

    kinds: list[Initial | Product | Atom] = field(default_factory=list)
    _atoms: dict[Atom, int] = field(default_factory=dict)
    _covariances: dict[tuple[int, int], Number] = field(default_factory=dict)
    _moments: dict[Monomial, Number] = field(default_factory=dict)
    _groups: dict[Monomial, _Groups] = field(default_factory=dict)  # by atoms
    _slopes: dict[tuple[int, Any], Number] = field(default_factory=dict)

    def fresh(self, kind: Initial | Product) -> Polynomial:
        """A new generator."""
        self.kinds.append(kind)
        return Polynomial({(len(self.kinds) - 1,): 1})

    def atom(self, fn: str, order: int, params: tuple[tuple[str, Any], ...], x: Polynomial) -> Polynomial:
        """A function of a Gaussian vector; EvaluationError if x is not Gaussian."""
        linear = [(m[0], c) for m, c in sorted(x.terms.items()) if len(m) == 1]
        gaussian = all(self._is_gaussian(g) for g, _ in linear)
        if len(linear) + (() in x.terms) < len(x.terms) or not gaussian:
            raise EvaluationError(
                f"{fn} is not polynomial, and its argument is not Gaussian: its expectations have no exact evaluation",
                advice="exact evaluation takes polynomials, and any function of a linear combination of products W v",
            )
        if not linear:
            at = torch.tensor(float(x.terms.get((), 0)), dtype=torch.float64)
            return lifted(float(nonlin.evaluate(fn, at, order, **dict(params))))
        return self._atom(Atom(fn, order, params, x.terms.get((), 0), tuple(linear)))

    def _atom(self, atom: Atom) -> Polynomial:
        if atom not in self._atoms:
            self._atoms[atom] = len(self.kinds)
            self.kinds.append(atom)
        return Polynomial({(self._atoms[atom],): 1})

    def _is_gaussian(self, g: int) -> bool:
        kind = self.kinds[g]
        return isinstance(kind, Product) or (isinstance(kind, Initial) and kind.variance is not None)

    # expectations --------------------------------------------------------------------------

    def mean(self, p: Polynomial) -> Number:
        """``E p``."""
        return sum((c * self.moment(m) for m, c in p.terms.items()), 0)

    def inner(self, p: Polynomial, q: Polynomial) -> Number:
        """``E p q``, without forming the product."""
        total: Number = 0
        for m, c in p.terms.items():
            for k, b in q.terms.items():
                e = self.moment(merged(m, k))
                if e != 0:
                    total = total + c * b * e
        return total

    def covariance(self, a: int, b: int) -> Number:
        """Covariance of two Gaussian generators."""
        key = (a, b) if a <= b else (b, a)
        found = self._covariances.get(key)
        if found is None:
            found = self._covariances[key] = self._covariance(*key)
        return found

    def _covariance(self, a: int, b: int) -> Number:
        x, y = self.kinds[a], self.kinds[b]
        if isinstance(x, Product) and isinstance(y, Product):
            return x.factor * self.inner(x.x, y.x) if x.side == y.side else 0
        return x.variance if a == b and isinstance(x, Initial) else 0

    def moment(self, m: Monomial) -> Number:
        """The expectation of a monomial."""
        found = self._moments.get(m)
        if found is None:
            found = self._moments[m] = self._moment(m)
        return found

    def _moment(self, m: Monomial) -> Number:
        if not m:
            return 1
        for g in dict.fromkeys(m):
            kind = self.kinds[g]
            if isinstance(kind, Initial) and kind.moment is not None:  # independent of everything else
                value = kind.moment(m.count(g))
                return value * self.moment(tuple(h for h in m if h != g)) if value != 0 else 0
        atoms = tuple(g for g in m if isinstance(self.kinds[g], Atom))
        if atoms:
            if atoms not in self._groups:
                self._groups[atoms] = _Groups(self, atoms)
            return self._groups[atoms].moment(tuple(g for g in m if not isinstance(self.kinds[g], Atom)))
        first, rest = m[0], m[1:]
        total: Number = 0
        for g, count, others in _without_one(rest):
            c = self.covariance(first, g)
            if c != 0:
                total = total + count * c * self.moment(others)
        return total

    # derivatives ---------------------------------------------------------------------------

    def derivative(self, p: Polynomial, g: int) -> Polynomial:
        """The formal partial derivative by a generator, through atoms."""
        total: dict[Monomial, Number] = {}
        for m, c in p.terms.items():
            for h, count, others in _without_one(m):
                kind = self.kinds[h]
                if h == g:
                    total[others] = total.get(others, 0) + c * count
                elif isinstance(kind, Atom) and (slope := dict(kind.z).get(g, 0)) != 0:
                    (own,) = self._atom(Atom(kind.fn, kind.order + 1, kind.params, kind.mean, kind.z)).terms
                    key = merged(own, others)
                    total[key] = total.get(key, 0) + c * count * slope
        return Polynomial({m: c for m, c in total.items() if c != 0})

    def reach(self, p: Polynomial) -> set[int]:
        """Generators that a polynomial depends on, those of its atoms included."""
        found = p.generators()
        inside = {h for g in found if isinstance(kind := self.kinds[g], Atom) for h, _ in kind.z}
        return found | inside


def _without_one(m: Monomial) -> Iterator[tuple[int, int, Monomial]]:
    """Every generator of a monomial with its power and the monomial with one fewer of it."""
    for g, count in Counter(m).items():
        i = m.index(g)
        yield g, count, m[:i] + m[i + 1 :]


class _Groups:
    """Atoms by their argument: independent Gaussian variables z, to which generators are regressed.

    A Gaussian generator is ``sum_z b_z z + r`` with r independent of all z.
    """

    def __init__(self, wick: Wick, atoms: Iterable[int]) -> None:
        self.wick = wick
        self.atoms: dict[tuple[Any, ...], list[Atom]] = {}
        for g in atoms:
            kind = wick.kinds[g]
            assert isinstance(kind, Atom)
            self.atoms.setdefault((kind.mean, kind.z), []).append(kind)
        self.names = [z for _, z in self.atoms]
        self.arguments = [Polynomial({(g,): c for g, c in z}) for _, z in self.atoms]
        self.variances = [wick.inner(z, z) for z in self.arguments]
        for i, z in enumerate(self.arguments):
            if any(abs(float(wick.inner(z, y))) > 1e-14 for y in self.arguments[:i]):
                raise EvaluationError(
                    "an expectation of functions of two correlated Gaussian variables, none of them a polynomial",
                    advice="exact evaluation takes functions of independent Gaussian variables",
                )

        self._functions: dict[tuple[int, ...], Number] = {}

    def moment(self, gaussian: Monomial) -> Number:
        """The expectation of the atoms times a Gaussian monomial."""
        powers = (0,) * len(self.arguments)
        if all(self._slope(g, z) == 0 for g in gaussian for z in range(len(powers))):
            value = self.wick.moment(gaussian)
            return value * self._function(powers) if value != 0 else 0
        return self._moment(gaussian, powers)

    def _slope(self, g: int, z: int) -> Number:
        """``b_z`` of a generator."""
        key = (g, self.names[z])
        found = self.wick._slopes.get(key)
        if found is None:
            c = self.wick.inner(Polynomial({(g,): 1}), self.arguments[z])
            found = self.wick._slopes[key] = 0 if c == 0 else c / self.variances[z]
        return found

    def _function(self, powers: tuple[int, ...]) -> Number:
        """The expectation of the atoms times powers of their centred arguments."""
        if powers not in self._functions:
            total: Number = 1.0
            for power, variance, ((mean, _), atoms) in zip(powers, self.variances, self.atoms.items(), strict=True):
                factors = tuple(sorted((a.fn, a.order, a.params) for a in atoms))
                total *= expectation(factors, power, float(mean), math.sqrt(float(variance)))
                if total == 0:
                    break
            self._functions[powers] = total or 0
        return self._functions[powers]

    def _moment(self, gaussian: Monomial, powers: tuple[int, ...]) -> Number:
        if not gaussian:
            return self._function(powers)
        first, rest = gaussian[0], gaussian[1:]
        slopes = [self._slope(first, z) for z in range(len(powers))]
        total: Number = 0
        for z, b in enumerate(slopes):
            if b != 0:
                total = total + b * self._moment(rest, (*powers[:z], powers[z] + 1, *powers[z + 1 :]))
        for g, count, others in _without_one(rest):
            shared = sum(b * self._slope(g, z) * v for z, (b, v) in enumerate(zip(slopes, self.variances, strict=True)))
            c = self.wick.covariance(first, g) - shared
            if c != 0:
                total = total + count * c * self._moment(others, powers)
        return total


@cache
def _quadrature(kinks: tuple[float, ...]) -> tuple[Array, Array]:
    """Nodes and weights against the standard normal density, on panels split at the kinks."""
    breaks = np.unique([*np.linspace(-_REACH, _REACH, _PANELS + 1), *(k for k in kinks if abs(k) < _REACH)])
    x, w = leggauss(_NODES)
    width = np.diff(breaks)[:, None] / 2
    t = (breaks[:-1, None] + width * (1 + x)).ravel()
    return t, (width * w).ravel() * np.exp(-t * t / 2) / math.sqrt(2 * math.pi)


@lru_cache(maxsize=64)
def _values(factor: Factor, mean: float, std: float, kinks: tuple[float, ...]) -> Array:
    """A function on the nodes."""
    fn, order, params = factor
    t, _ = _quadrature(kinks)
    return nonlin.evaluate(fn, torch.from_numpy(mean + std * t), order, **dict(params)).numpy()


@cache
def expectation(factors: tuple[Factor, ...], power: int, mean: float, std: float) -> float:
    """``E (std t)^power prod_i f_i(mean + std t)`` for a standard normal t, by quadrature between the kinks."""
    kinks: set[float] = set()
    odd = power
    even = mean == 0.0
    for fn, order, params in factors:
        record = nonlin.lookup(fn)
        values = {**record.defaults, **dict(params)}
        if order > record.smoothness(**values):
            raise EvaluationError(
                f"derivative {order} of {fn} is no ordinary function: the response through it has no exact evaluation",
                advice="the particle evaluator needs no derivative",
            )
        kinks.update((k - mean) / std for k in record.kinks(**values))
        parity = record.parity(**values)
        even = even and parity is not None
        odd += order + (parity == "odd")
    if even and odd % 2:
        return 0.0
    t, weights = _quadrature(tuple(sorted(kinks)))
    total = weights * (std * t) ** power
    for factor in factors:
        total = total * _values(factor, mean, std, tuple(sorted(kinks)))
    return float(total.sum())
