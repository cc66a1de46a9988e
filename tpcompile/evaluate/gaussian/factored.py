"""Sums of products rewritten for evaluation: what occurs in several terms is multiplied once, and read once.

Planning multiplies out what recursion over layers would keep nested. Here contractions inside a term become arrays of
their own, equal arrays become one, and a factor that several terms share is taken out of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from tpcompile.evaluate.gaussian.terms import (
    Array,
    DualArray,
    EyeArray,
    GatherArray,
    IntegralArray,
    Label,
    ReshapeArray,
    SingleArray,
    SumArray,
    Term,
    Use,
    VarianceArray,
    resolved,
)


@dataclass
class Factoring:
    """Rewrites arrays; what is equal is the same array afterwards."""

    done: dict[Array, Array] = field(default_factory=dict)
    known: dict[object, Array] = field(default_factory=dict)

    def __call__(self, array: Array) -> Array:
        """The same values in fewer operations."""
        found = self.done.get(array)
        if found is None:
            found = self.done[array] = self._rewritten(array)
        return found

    def _rewritten(self, array: Array) -> Array:
        if isinstance(array, SumArray):
            return self._sum([self._parts(term, array) for term in array.terms], array.out, array.lengths, array.sizes)
        if isinstance(array, EyeArray):
            return self.known.setdefault((EyeArray, array.sizes), array)
        if isinstance(array, DualArray | SingleArray | GatherArray | ReshapeArray):
            names = [f.name for f in fields(array) if isinstance(getattr(array, f.name), Array)]
            inner = {name: self(getattr(array, name)) for name in names}
            array = replace(array, **inner)
            key = (type(array), *(_hashable(getattr(array, f.name)) for f in fields(array)))
            return self.known.setdefault(key, array)
        if isinstance(array, IntegralArray):
            rows = tuple(tuple(self(x) for x in row) for row in array.covariances)
            return replace(array, covariances=rows, means=tuple(None if x is None else self(x) for x in array.means))
        return array

    def _parts(self, term: Term, array: SumArray) -> Term:
        """A term whose sums over labels are arrays of their own."""
        uses, times = resolved(term, array)
        groups: list[tuple[set[Label], list[Use]]] = []
        for x, labels in uses:
            use = (self(x), labels)
            summed = set(labels) - set(array.out)
            joined = [g for g in groups if g[0] & summed]
            rest = [g for g in groups if not g[0] & summed]
            merged = (summed.union(*(g[0] for g in joined)), [u for g in joined for u in g[1]] + [use])
            groups = [*rest, merged]
        found: list[Use] = []
        for summed, inner in groups:
            if not summed and all(len(set(labels)) == len(labels) for _, labels in inner):
                found += inner
                continue
            have = {x for _, labels in inner for x in labels}
            out = tuple(x for x in array.out if x in have)
            found.append((self._array((Term(1.0, tuple(inner)),), out, array.lengths, None), out))
        return Term(term.coefficient * times, tuple(found))

    def _sum(
        self, terms: Sequence[Term], out: tuple[Label, ...], lengths: Mapping[Label, int], sizes: tuple[int, ...] | None
    ) -> Array:
        """A sum of products without sums inside, with common factors taken out."""
        terms = _collected(terms)
        counts: dict[Use, int] = {}
        for term in terms:
            for use in dict.fromkeys(x for x in term.uses if not isinstance(x[0], VarianceArray)):
                counts[use] = counts.get(use, 0) + 1
        shared = max(counts, key=lambda use: (counts[use], _depth(use[0])), default=None)
        if shared is None or counts[shared] < 2 or len(terms) < 2:
            return self._array(tuple(terms), out, lengths, sizes)
        inside = [_without(term, shared) for term in terms if shared in term.uses]
        outside = [term for term in terms if shared not in term.uses]
        have = {x for term in inside for _, labels in term.uses for x in labels}
        own = tuple(x for x in out if x in have)
        inner = self._sum(inside, own, lengths, None)
        return self._sum([*outside, Term(1.0, (shared, (inner, own)))], out, lengths, sizes)

    def _array(
        self,
        terms: tuple[Term, ...],
        out: tuple[Label, ...],
        lengths: Mapping[Label, int],
        sizes: tuple[int, ...] | None,
    ) -> Array:
        """One array for equal sums, whatever their labels are called."""
        if len(terms) == 1 and terms[0].coefficient == 1 and [labels for _, labels in terms[0].uses] == [out]:
            return terms[0].uses[0][0]
        used = {x for term in terms for _, labels in term.uses for x in labels}
        if sizes is None:
            sizes = tuple(lengths[x] if x in used else 1 for x in out)
        names: dict[Label, int] = {x: i for i, x in enumerate(out)}
        for term in terms:
            for _, labels in term.uses:
                for x in labels:
                    names.setdefault(x, len(names))
        renamed = tuple(
            (t.coefficient, tuple((a, tuple(names[x] for x in labels)) for a, labels in t.uses)) for t in terms
        )
        key = (renamed, sizes, tuple(lengths[x] for x in names))
        return self.known.setdefault(key, SumArray(sizes, terms, out, lengths))


def _collected(terms: Sequence[Term]) -> list[Term]:
    """Equal products added."""
    found: dict[tuple[Use, ...], float] = {}
    for term in terms:
        found[term.uses] = found.get(term.uses, 0.0) + term.coefficient
    return [Term(c, uses) for uses, c in found.items() if c]


def _without(term: Term, use: Use) -> Term:
    at = term.uses.index(use)
    return replace(term, uses=term.uses[:at] + term.uses[at + 1 :])


def _depth(array: Array) -> int:
    """Expectations are larger than numbers: they are taken out first."""
    return int(isinstance(array, DualArray)) * 2 + int(isinstance(array, SumArray))


def _hashable(x: object) -> object:
    try:
        hash(x)
    except TypeError:
        return id(x)
    return x
