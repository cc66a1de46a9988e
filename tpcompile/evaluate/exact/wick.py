"""Polynomials in formal generators of a coordinate, and their exact expectations (Wick, Isserlis).

A generator is an initial value, the Gaussian part ``Ẑ^{W x}`` of a product, or an atom: a function that is no
polynomial, of one linear combination z of Gaussian generators. Generators are formal: two that are equal as random
variables may both occur. Covariances follow from the Master Theorem, on demand.

Random scalars (theory, section 5) are generators too. Expectations over coordinates are conditional on them, hence
polynomials in them; :meth:`Wick.average` takes the expectation over them as well.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from tpcompile import nonlin
from tpcompile.errors import EvaluationError
from tpcompile.evaluate.exact.functions import Function, Integral, expectation
from tpcompile.evaluate.exact.numbers import Number

Monomial = tuple[int, ...]  # generators in order, each as often as its power
Direction = tuple[tuple[int, Number], ...]  # a combination of Gaussian generators, the first with coefficient 1


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

    def __neg__(self) -> Polynomial:
        return self * -1

    def __sub__(self, other: Polynomial | Number) -> Polynomial:
        return self + -other

    def __rsub__(self, other: Polynomial | Number) -> Polynomial:
        return -self + other

    def generators(self) -> set[int]:
        """Those that occur."""
        return {g for m in self.terms for g in m}


def merged(a: Monomial, b: Monomial) -> Monomial:
    """The product of two monomials."""
    return tuple(sorted(a + b)) if a and b else a or b


def lifted(x: Polynomial | Number) -> Polynomial:
    """A number as a constant polynomial."""
    return x if isinstance(x, Polynomial) else Polynomial({(): x} if x != 0 else {})


def plain(x: Polynomial | Number) -> Polynomial | Number:
    """A polynomial without generators as a number."""
    return x if not isinstance(x, Polynomial) or any(x.terms) else x.terms.get((), 0)


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
class GaussianSum:
    """``n^(-1/2)`` times a sum of ``summand`` over the coordinates of ``axis``: one Gaussian number."""

    summand: Polynomial
    axis: Any


@dataclass(frozen=True)
class Atom:
    """The derivative of that order of a nonlinearity at ``inner``, the terms of a polynomial in z and in atoms of z."""

    fn: str
    order: int
    params: tuple[tuple[str, Any], ...]
    inner: tuple[tuple[Monomial, Number], ...]
    z: Direction
    function: Function = field(compare=False)


@dataclass
class Wick:
    """Generators of one evaluation, with every expectation computed once."""

    kinds: list[Initial | Product | GaussianSum | Atom] = field(default_factory=list)
    scalars: set[int] = field(default_factory=set)  # the random ones, which are no coordinates
    integral: Integral | None = None  # in place of float64 quadrature
    _atoms: dict[Atom, int] = field(default_factory=dict)
    _covariances: dict[tuple[int, int], Number] = field(default_factory=dict)
    _moments: dict[Monomial, Number] = field(default_factory=dict)
    _groups: dict[Monomial, _Groups] = field(default_factory=dict)  # by atoms
    _slopes: dict[tuple[int, Any], Number] = field(default_factory=dict)

    def fresh(self, kind: Initial | Product | GaussianSum, scalar: bool = False) -> Polynomial:
        """A new generator."""
        if scalar:
            self.scalars.add(len(self.kinds))
        self.kinds.append(kind)
        return Polynomial({(len(self.kinds) - 1,): 1})

    def atom(self, fn: str, order: int, params: tuple[tuple[str, Any], ...], x: Polynomial) -> Polynomial:
        """A function of x; EvaluationError unless x is a function of one linear combination of Gaussian generators."""
        if not x.generators():
            at = torch.tensor(float(x.terms.get((), 0)), dtype=torch.float64)
            return lifted(float(nonlin.evaluate(fn, at, order, **dict(params))))
        z = self._direction(x)
        if z is None:
            raise EvaluationError(
                f"{fn} is not polynomial, and its argument is not Gaussian: its expectations have no exact evaluation",
                advice="exact evaluation takes polynomials, and any function of a linear combination of products W v",
            )
        parts = []
        for m, c in x.terms.items():
            atoms = tuple(kind.function for g in m if isinstance(kind := self.kinds[g], Atom))
            if len(z) > 1 and len(m) > len(atoms) and m != (z[0][0],):
                continue  # a generator of z: the first stands for all
            parts.append((c, len(m) - len(atoms), atoms))
        return self._atom(
            Atom(fn, order, params, tuple(sorted(x.terms.items())), z, Function(fn, order, params, tuple(parts)))
        )

    def _direction(self, x: Polynomial) -> Direction | None:
        """The combination of Gaussian generators that x is a function of, if it is one."""
        atoms = [kind for g in x.generators() if isinstance(kind := self.kinds[g], Atom)]
        directions = {atom.z for atom in atoms}
        plain = {g for g in x.generators() if not isinstance(self.kinds[g], Atom)}
        if not all(self._is_gaussian(g) for g in plain):
            return None
        if len(plain) == 1:  # any polynomial of it
            directions.add(((next(iter(plain)), 1),))
        elif plain:
            linear = {m[0]: c for m, c in sorted(x.terms.items()) if len(m) == 1 and m[0] in plain}
            if any(len(m) > 1 and not plain.isdisjoint(m) for m in x.terms):
                return None
            first = next(iter(linear.values()))
            directions.add(tuple((g, 1 if i == 0 else c / first) for i, (g, c) in enumerate(linear.items())))
        return directions.pop() if len(directions) == 1 else None

    def _atom(self, atom: Atom) -> Polynomial:
        if atom not in self._atoms:
            self._atoms[atom] = len(self.kinds)
            self.kinds.append(atom)
        return Polynomial({(self._atoms[atom],): 1})

    def _is_gaussian(self, g: int) -> bool:
        kind = self.kinds[g]
        if g in self.scalars:
            return False
        return isinstance(kind, Product) or (isinstance(kind, Initial) and kind.variance is not None)

    # expectations --------------------------------------------------------------------------

    def mean(self, p: Polynomial) -> Number:
        """``E p``, given the random scalars."""
        return plain(sum((self.moment(m) * c for m, c in p.terms.items()), 0))

    def average(self, p: Polynomial | Number) -> Number:
        """The expectation of a number over the random scalars."""
        return sum((self._full(m) * c for m, c in p.terms.items()), 0) if isinstance(p, Polynomial) else p

    def inner(self, p: Polynomial, q: Polynomial) -> Number:
        """``E p q``, without forming the product."""
        total: Number = 0
        for m, c in p.terms.items():
            for k, b in q.terms.items():
                e = self.moment(merged(m, k))
                if e != 0:
                    total = total + e * (c * b)
        return plain(total)

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
            return self.inner(x.x, y.x) * x.factor if x.side == y.side else 0
        if isinstance(x, GaussianSum) and isinstance(y, GaussianSum):
            return self.inner(x.summand, y.summand) if x.axis == y.axis else 0
        return x.variance if a == b and isinstance(x, Initial) else 0

    def moment(self, m: Monomial) -> Number:
        """The expectation of a monomial, given the random scalars."""
        outside = tuple(g for g in m if g in self.scalars) if self.scalars else ()
        if not outside:
            return self._full(m)
        inside = self._full(tuple(g for g in m if g not in self.scalars))
        return Polynomial({outside: 1}) * inside if inside != 0 else 0

    def _full(self, m: Monomial) -> Number:
        """The expectation of a monomial in either coordinates or random scalars."""
        found = self._moments.get(m)
        if found is None:
            found = self._moments[m] = plain(self._moment(m))
        return found

    def _moment(self, m: Monomial) -> Number:
        if not m:
            return 1
        for g in dict.fromkeys(m):
            kind = self.kinds[g]
            if isinstance(kind, Initial) and kind.moment is not None:  # independent of everything else
                value = kind.moment(m.count(g))
                return self._full(tuple(h for h in m if h != g)) * value if value != 0 else 0
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
                total = total + self._full(others) * c * count
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
                elif isinstance(kind, Atom) and g in dict(kind.z):
                    (own,) = self._atom(_derived(kind)).terms
                    for inside, slope in self.derivative(Polynomial(dict(kind.inner)), g).terms.items():
                        key = merged(merged(own, inside), others)
                        total[key] = total.get(key, 0) + c * count * slope
        return Polynomial({m: c for m, c in total.items() if c != 0})

    def reach(self, p: Polynomial) -> set[int]:
        """Generators that a polynomial depends on, those of its atoms included."""
        found = p.generators()
        inside = {h for g in found if isinstance(kind := self.kinds[g], Atom) for h, _ in kind.z}
        return found | inside


def _derived(atom: Atom) -> Atom:
    """The derivative of its nonlinearity, at the same argument."""
    function = replace(atom.function, order=atom.order + 1)
    return replace(atom, order=atom.order + 1, function=function)


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
        self.functions: dict[Direction, list[Function]] = {}
        for g in atoms:
            kind = wick.kinds[g]
            assert isinstance(kind, Atom)
            self.functions.setdefault(kind.z, []).append(kind.function)
        self.names = list(self.functions)
        self.arguments = [Polynomial({(g,): c for g, c in z}) for z in self.functions]
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
        """The expectation of the atoms times powers of their arguments."""
        if powers not in self._functions:
            total: Number = 1
            for power, variance, functions in zip(powers, self.variances, self.functions.values(), strict=True):
                total = total * expectation(tuple(functions), power, variance, self.wick.integral)
                if total == 0:
                    break
            self._functions[powers] = 0 if total == 0 else total
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
