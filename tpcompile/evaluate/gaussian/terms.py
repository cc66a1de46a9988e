"""What the plan of a kernel is made of: arrays over pairs of inputs, and sums of products of them.

An array has two pair axes (inputs of the first and of the second set; length 1 where it depends on one set only) and
then finite axes such as positions. Sums of products name the finite axes by labels.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from tpcompile.evaluate.duals import Dual, Single
from tpcompile.ir import Node

Label = int


@dataclass(frozen=True, eq=False)
class Array:
    """Base of all arrays; ``sizes`` are the lengths of the finite axes. Equal arrays are made once: identity counts."""

    sizes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class ScalarArray(Array):
    """A deterministic scalar of the program on the inputs of one copy; axes of length 1 are dropped."""

    node: Node
    copy: int


@dataclass(frozen=True, eq=False)
class VarianceArray(Array):
    """Variance of the entries of an initial value, without its power of n: a number that the user may replace."""

    name: str
    value: float


@dataclass(frozen=True, eq=False)
class EyeArray(Array):
    """Kronecker delta of two axes."""


@dataclass(frozen=True, eq=False)
class SumArray(Array):
    """A sum of products over the labels ``out``; all other labels are summed."""

    terms: tuple[Term, ...]
    out: tuple[Label, ...]
    lengths: Mapping[Label, int]


@dataclass(frozen=True, eq=False)
class DualArray(Array):
    """``E[f(u) g(v)]`` of two jointly Gaussian variables; mean None is zero."""

    dual: Dual
    cov: Array
    var_u: Array
    var_v: Array
    mean_u: Array | None
    mean_v: Array | None


@dataclass(frozen=True, eq=False)
class SingleArray(Array):
    """``E[f(u)]`` or, of a dual, ``E[f(u) g(u)]``."""

    of: Dual | Single
    var: Array
    mean: Array | None


@dataclass(frozen=True, eq=False)
class IntegralArray(Array):
    """``E`` of a product of any functions of up to three Gaussian variables, by quadrature."""

    integrand: Any
    covariances: tuple[tuple[Array, ...], ...]
    means: tuple[Array | None, ...]
    form: int  # its place in the list of forms, where its error is kept


@dataclass(frozen=True, eq=False)
class GatherArray(Array):
    """An array whose axis is read at the places of an index array (-1: zero); the index's axes take its place."""

    source: Array
    axis: int
    index: Node | Tensor
    copy: int


@dataclass(frozen=True, eq=False)
class OneHotArray(Array):
    """One where the index equals the place on the last axis."""

    index: Node | Tensor
    copy: int


@dataclass(frozen=True, eq=False)
class ReshapeArray(Array):
    """Finite axes split and merged: the last axes of the source, expanded to ``before``."""

    source: Array
    before: tuple[int, ...]


Use = tuple[Array, tuple[Label, ...]]
Delta = tuple[Label, Label]


@dataclass(frozen=True)
class Term:
    """``coefficient * product of arrays * product of Kronecker deltas``."""

    coefficient: float
    uses: tuple[Use, ...] = ()
    deltas: tuple[Delta, ...] = ()

    def __mul__(self, other: Term) -> Term:
        return Term(self.coefficient * other.coefficient, self.uses + other.uses, self.deltas + other.deltas)

    def labels(self) -> set[Label]:
        """All labels that it speaks of."""
        return {x for _, names in self.uses for x in names} | {x for pair in self.deltas for x in pair}

    def under(self, names: Mapping[Label, Label]) -> Term:
        """The same term with labels renamed."""
        uses = tuple((array, tuple(names.get(x, x) for x in labels)) for array, labels in self.uses)
        return Term(self.coefficient, uses, tuple((names.get(p, p), names.get(q, q)) for p, q in self.deltas))


Poly = tuple[Term, ...]


def product(first: Poly, second: Poly) -> Poly:
    """All products of a term of each."""
    return tuple(a * b for a in first for b in second)


def matched(first: Sequence[Label | None], second: Sequence[Label | None]) -> tuple[Delta, ...]:
    """Kronecker deltas of the axes of two equal generators."""
    return tuple((p, q) for p, q in zip(first, second, strict=True) if p is not None and q is not None and p != q)


def unified(deltas: Sequence[tuple[Label, Label]]) -> dict[Label, Label]:
    """Which label stands for which, given Kronecker deltas."""
    names: dict[Label, Label] = {}

    def root(x: Label) -> Label:
        while x in names:
            x = names[x]
        return x

    for a, b in deltas:
        a, b = root(a), root(b)
        if a != b:
            names[max(a, b)] = min(a, b)
    return {x: root(x) for x in names}


def resolved(term: Term, array: SumArray) -> tuple[list[Use], int]:
    """Uses with the deltas worked in: a delta of two wanted labels is an identity matrix, any other a renaming.

    The number counts the values of summed labels on which nothing depends.
    """
    if not term.deltas:
        return list(term.uses), 1
    out = array.out
    uses = list(term.uses)
    names: dict[int, int] = {}
    for group in _classes(term.deltas):
        wanted = [x for x in out if x in group]
        keep = wanted[0] if wanted else min(group)
        names |= {x: keep for x in group}
        for other in wanted[1:]:
            uses.append((EyeArray((array.lengths[keep], array.lengths[other])), (keep, other)))
    protected = len(term.uses)
    renamed = [(a, tuple(names.get(x, x) for x in labels)) for a, labels in uses[:protected]]
    lonely = {names[a] for a, _ in term.deltas if names[a] not in out}
    carried = {x for _, labels in renamed for x in labels}
    times = math.prod(array.lengths[x] for x in lonely - carried)
    return renamed + uses[protected:], times


def _classes(deltas: Sequence[tuple[int, int]]) -> list[set[int]]:
    names = unified(deltas)
    classes: dict[int, set[int]] = {}
    for x in {y for pair in deltas for y in pair}:
        classes.setdefault(names.get(x, x), set()).add(x)
    return list(classes.values())
