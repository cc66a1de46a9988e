"""Sums of products rewritten for evaluation: what occurs in several terms is multiplied once, and read once.

Planning multiplies out what recursion over layers would keep nested. Here contractions inside a term become arrays of
their own, equal arrays become one, and a factor that several terms share is taken out of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

from torch import Tensor

from tpcompile.evaluate.gaussian import placed, reads
from tpcompile.evaluate.gaussian.terms import (
    Array,
    DualArray,
    EyeArray,
    GatherArray,
    IntegralArray,
    Label,
    ReshapeArray,
    ScalarArray,
    SingleArray,
    SumArray,
    Term,
    Use,
    VarianceArray,
    resolved,
)
from tpcompile.ir import Node


@dataclass
class Factoring:
    """Rewrites arrays; what is equal is the same array afterwards."""

    constant: Callable[[Node], Tensor | None]
    """The value of a number that does not depend on the inputs."""
    done: dict[Array, Array] = field(default_factory=dict)
    known: dict[object, Array] = field(default_factory=dict)
    steps: dict[Array, reads.ReadArray] = field(default_factory=dict)
    serials: dict[Array, int] = field(default_factory=dict)

    def __call__(self, array: Array) -> Array:
        """The same values in fewer operations."""
        found = self.done.get(array)
        if found is None:
            found = self.done[array] = self._rewritten(array)
        return found

    def _rewritten(self, array: Array) -> Array:
        if isinstance(array, SumArray):
            return self._sum([self._parts(term, array) for term in array.terms], array.out, array.lengths, array.sizes)
        if isinstance(array, ScalarArray):
            return self._number(array)
        if isinstance(array, EyeArray):
            return self.known.setdefault((EyeArray, array.sizes), array)
        if isinstance(array, DualArray | SingleArray | GatherArray | ReshapeArray):
            names = [f.name for f in fields(array) if isinstance(getattr(array, f.name), Array)]
            inner = {name: self(getattr(array, name)) for name in names}
            array = replace(array, **inner)
            key = (type(array), *(_hashable(getattr(array, f.name)) for f in fields(array)))
            if key not in self.known:
                self.known[key] = self._moved(array)
            return self.known[key]
        if isinstance(array, IntegralArray):
            rows = tuple(tuple(self(x) for x in row) for row in array.covariances)
            return replace(array, covariances=rows, means=tuple(None if x is None else self(x) for x in array.means))
        return array

    def _number(self, array: ScalarArray) -> Array:
        """A number of the program, with the numbers whose entries it moves as a step."""
        found = self.known.setdefault((ScalarArray, array.node, array.copy), array)
        if found is array:
            moved = placed.moved(array.node, self.constant)
            if moved is not None:
                node, places = moved
                sizes = tuple(d for d in node.dims if isinstance(d, int) and d != 1) or (1,)
                source = self._number(ScalarArray(sizes, node, array.copy))
                read = reads.placed(source, places, range(len(array.sizes)), dict(enumerate(array.sizes)))
                if read is not None:
                    self.steps[array] = read
        return found

    def _moved(self, array: Array) -> Array:
        """A move at constant places as a read."""
        found = None
        if isinstance(array, ReshapeArray):
            found = reads.reshaped(array, self._step(array.source))
        elif isinstance(array, GatherArray):
            index = array.index if isinstance(array.index, Tensor) else self.constant(array.index)
            found = None if index is None else reads.gathered(array, index, self._step(array.source))
        return self._kept(found, array)

    def _step(self, array: Array) -> Array:
        return self.steps.get(array, array)

    def _kept(self, read: reads.ReadArray | None, array: Array) -> Array:
        """The read in place of an array if it can be computed, otherwise as a step to others."""
        if read is None:
            return array
        if read.groups is not None:
            return self._canonical(read) if read.summed else read
        if not read.summed:
            self.steps[array] = read
        return array

    def _canonical(self, read: reads.ReadArray) -> Array:
        """A sum with its axes in the order of the source's; another order is a read of that."""
        straight, order = reads.straightened(read)
        if straight is None or straight.groups is None:
            return read
        key = (read.source, straight.sizes, straight.lengths, tuple((_hashable(i), k) for i, k in straight.places))
        straight = self.known.setdefault(("read", key), straight)
        labels = tuple(range(len(order)))
        if order == labels:
            return straight
        found = reads.summed(straight, order, labels, dict(enumerate(read.lengths)))
        return read if found is None else found[0]

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
            inner = self._sorted([self._alone(use, inner, summed, array.lengths) for use in inner])
            out = tuple(dict.fromkeys(x for _, labels in inner for x in labels if x in array.out))
            through = self._through(inner, out, array.lengths)
            found.append((through or self._array((Term(1.0, tuple(inner)),), out, array.lengths, None), out))
        return Term(term.coefficient * times, tuple(found))

    def _sorted(self, uses: Sequence[Use]) -> list[Use]:
        """The factors of a product in one order: equal products are then the same."""
        return sorted(uses, key=lambda use: self.serials.setdefault(use[0], len(self.serials)))

    def _alone(self, use: Use, among: Sequence[Use], summed: set[Label], lengths: Mapping[Label, int]) -> Use:
        """A read summed over what no other factor depends on."""
        array, labels = use
        others = {x for other in among if other is not use for x in other[1]}
        out = tuple(x for x in dict.fromkeys(labels) if x not in summed or x in others)
        if not isinstance(self._step(array), reads.ReadArray) or len(among) == 1 or len(out) == len(set(labels)):
            return use
        return self._array((Term(1.0, (use,)),), out, lengths, None), out

    def _through(self, uses: Sequence[Use], out: tuple[Label, ...], lengths: Mapping[Label, int]) -> Array | None:
        """A sum over products of moved numbers as the sum of the moved product, where that is less work.

        Windows of two inputs are multiplied and summed: their entries are multiplied once, and the products summed.
        """
        if len(uses) < 2 or not any(isinstance(self._step(a), reads.ReadArray) for a, _ in uses):
            return None
        names: dict[object, Label] = {}
        places: dict[Label, reads.Place] = {}
        inner: list[Use] = []
        for array, labels in uses:
            source, own = reads.opened(self._step(array), labels, lengths)
            axes = []
            for index, where in own:
                name = names.setdefault((_hashable(index), where), len(names))
                places[name] = index, where
                axes.append(name)
            inner.append((source, tuple(axes)))
        sizes = {x: n for a, axes in inner for x, n in zip(axes, a.sizes, strict=True)}
        summed = [k for k in dict.fromkeys(x for _, labels in uses for x in labels) if k not in out]
        for k in summed:  # what is read in place by one axis alone is summed inside
            readers = [x for x, (_, where) in places.items() if k in where]
            if len(readers) == 1 and reads.whole(places[readers[0]], sizes[readers[0]]):
                del places[readers[0]]
        if not places:
            return None
        product = self._array((Term(1.0, tuple(inner)),), tuple(places), sizes, None)
        found = reads.placed(product, list(places.values()), out, lengths)
        if found is None or not found.groups:
            return None
        shared = set.intersection(*(set(labels) for _, labels in uses)) & set(out)
        direct = math.prod(lengths[x] for x in {x for _, labels in uses for x in labels})
        direct //= 1 if shared else 4  # a matrix product does four additions in the time of one
        if math.prod(sizes.values()) + reads.effort(found) > direct:
            return None
        return self._canonical(found) if found.summed else found

    def _sum(
        self, terms: Sequence[Term], out: tuple[Label, ...], lengths: Mapping[Label, int], sizes: tuple[int, ...] | None
    ) -> Array:
        """A sum of products without sums inside, with common factors taken out."""
        terms = self._moved_together(_collected(terms), out, lengths)
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

    def _moved_together(
        self, terms: Sequence[Term], out: tuple[Label, ...], lengths: Mapping[Label, int]
    ) -> Sequence[Term]:
        """Arrays that are moved alike added first and moved once: what moves the sum in turn then sees the move."""
        alike: dict[object, list[tuple[Term, reads.ReadArray, tuple[Label, ...]]]] = {}
        kept: list[Term] = []
        for term in terms:
            moved = [(a, labels) for a, labels in term.uses if labels]
            read, labels = moved[0] if len(moved) == 1 else (None, ())
            if not isinstance(read, reads.ReadArray) or read.summed:
                kept.append(term)
                continue
            order = sorted(range(len(read.places)), key=lambda i, r=read: r.places[i][1])
            places = tuple((_hashable(index), where) for index, where in (read.places[i] for i in order))
            key = (labels, read.sizes, places, tuple(read.source.sizes[i] for i in order))
            names = tuple(-1 - order.index(i) for i in range(len(order)))  # of the source's axes, alike in all of them
            alike.setdefault(key, []).append((term, read, names))
        for key, found in alike.items():
            if len(found) < 2:
                kept += [term for term, _, _ in found]
                continue
            first, read, names = found[0]
            inner = [Term(t.coefficient, (*(u for u in t.uses if not u[1]), (r.source, n))) for t, r, n in found]
            source = self._sum(inner, names, dict(zip(names, read.source.sizes, strict=True)), read.source.sizes)
            (labels,) = (x for _, x in first.uses if x)
            key = ("move", source, names, key)
            kept.append(Term(1.0, ((self.known.setdefault(key, replace(read, source=source)), labels),)))
        return kept

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
        order = _common_order(terms, out)
        if order != out:  # computed in the order of its factors: then they are read straight
            array = self._array(terms, order, lengths, None)
            return self._array((Term(1.0, ((array, order),)),), out, lengths, sizes)
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
        if key not in self.known:
            self.known[key] = self._read(SumArray(sizes, terms, out, lengths))
        return self.known[key]

    def _read(self, array: SumArray) -> Array:
        """A sum of one array as a read, if that is one of moved entries or moves them."""
        if len(array.terms) != 1 or len(array.terms[0].uses) != 1 or array.terms[0].coefficient != 1:
            return array
        ((source, labels),) = array.terms[0].uses
        source = self._step(source)
        moved = isinstance(source, reads.ReadArray) and not source.summed
        if not moved and set(labels) != set(array.out):
            return array
        found = reads.summed(source, labels, array.out, array.lengths)
        if found is None or found[1] == 1 or found[0].groups is None:
            return self._kept(None if found is None or found[1] != 1 else found[0], array)
        read, times = found
        return SumArray(read.sizes, (Term(times, ((read, array.out),)),), array.out, array.lengths)


def _collected(terms: Sequence[Term]) -> list[Term]:
    """Equal products added."""
    found: dict[tuple[Use, ...], float] = {}
    for term in terms:
        found[term.uses] = found.get(term.uses, 0.0) + term.coefficient
    return [Term(c, uses) for uses, c in found.items() if c]


def _without(term: Term, use: Use) -> Term:
    at = term.uses.index(use)
    return replace(term, uses=term.uses[:at] + term.uses[at + 1 :])


def _common_order(terms: tuple[Term, ...], out: tuple[Label, ...]) -> tuple[Label, ...]:
    """The order that the larger factors have their labels in, where they agree; out otherwise."""
    orders = {labels for term in terms for _, labels in term.uses if len(labels) > 1}
    if len(orders) != 1 or sum(len(term.uses) for term in terms) < 2:
        return out
    (order,) = orders
    return order if set(order) == set(out) else out


def _depth(array: Array) -> int:
    """Expectations are larger than numbers: they are taken out first."""
    return int(isinstance(array, DualArray)) * 2 + int(isinstance(array, SumArray))


def _hashable(x: object) -> object:
    if isinstance(x, Tensor):
        return tuple(x.shape), tuple(x.reshape(-1).tolist())
    try:
        hash(x)
    except TypeError:
        return id(x)
    return x
