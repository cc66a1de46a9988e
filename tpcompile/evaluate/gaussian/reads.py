"""Moves along finite axes as one array: padding, windows and strides composed, and summed along diagonals.

A convolution's covariance between positions p and q is a sum over the offsets of its filter, ``sum_s C[p + s, q + s]``.
Traced, that is a chain of gathers and views which holds every offset at both positions. Composed to one index an axis
it is known which axes belong together (rows with rows, columns with columns), and each of these is summed by itself,
offset by offset, without the others: the box filter, separable.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tpcompile.evaluate.gaussian.terms import Array, GatherArray, Label, ReshapeArray
from tpcompile.evaluate.shifts import SHIFTS, Group, Stretch, shifted
from tpcompile.evaluate.tapes.record import as_one

MOST_OFFSETS = 128  # of which the entries are added one after the other
MOST_RUNS = 8  # in which an index may fall before it is taken as it is

Place = tuple[Tensor, tuple[Label, ...]]
"""Where an axis of the source is read (-1: zero), over labels."""


@dataclass(frozen=True, eq=False)
class ReadArray(Array):
    """``sum_s source[i_0, i_1, ..]``, every index over labels: those of the axes (0, 1, ..), then summed ones."""

    source: Array
    places: tuple[Place, ...]
    lengths: tuple[int, ...]  # of all labels
    groups: tuple[Group, ...] | None  # None where it can only be a step of another read

    @property
    def summed(self) -> bool:
        """True if there is anything to sum."""
        return len(self.lengths) > len(self.sizes)


def gathered(array: GatherArray, index: Tensor, source: Array) -> ReadArray | None:
    """A gather at constant places."""
    sizes = array.source.sizes
    rank = len(array.sizes) - len(sizes) + 1
    index = index.reshape(array.sizes[array.axis : array.axis + rank])
    places = []
    for i, size in enumerate(sizes):
        if i == array.axis:
            places.append((index, tuple(range(i, i + rank))))
        else:
            places.append((torch.arange(size), (i if i < array.axis else i + rank - 1,)))
    return _read(source, places, array.sizes, array.sizes)


def reshaped(array: ReshapeArray, source: Array) -> ReadArray | None:
    """Axes split and merged."""
    sizes = array.source.sizes
    kept = len(sizes) - len(array.before)
    target = array.sizes[kept:]
    if math.prod(target) != math.prod(array.before):
        return None
    flat = torch.arange(math.prod(target)).reshape(target)
    labels = tuple(range(kept, kept + len(target)))
    places: list[Place] = [(torch.arange(size), (i,)) for i, size in enumerate(sizes[:kept])]
    inner = math.prod(array.before)
    for size in array.before:
        inner //= size
        places.append((flat // inner % size, labels))
    return _read(source, places, array.sizes, array.sizes)


def summed(
    array: Array, labels: Sequence[Label], out: Sequence[Label], lengths: Mapping[Label, int]
) -> tuple[ReadArray, int] | None:
    """``sum array(labels)`` over labels that are not in ``out``, and how many of their values nothing depends on."""
    names = {x: i for i, x in enumerate(dict.fromkeys([*out, *labels]))}
    counts = [lengths[x] for x in names]
    places: list[Place] = [(torch.arange(lengths[x]), (names[x],)) for x in labels]
    found = _read(array, places, counts[: len(out)], counts)
    if found is None:
        return None
    used = {k for _, where in found.places for k in where}
    times = math.prod(n for k, n in enumerate(counts) if k >= len(out) and k not in used)
    return found, times


def placed(
    source: Array, places: Sequence[Place], out: Sequence[Label], lengths: Mapping[Label, int]
) -> ReadArray | None:
    """``sum source[i_0, i_1, ..]``, indices over any labels, summed over those that are not in ``out``."""
    names = {x: i for i, x in enumerate(dict.fromkeys([*out, *(k for _, where in places for k in where)]))}
    counts = [lengths[x] for x in names]
    own: list[Place] = [(index, tuple(names[k] for k in where)) for index, where in places]
    return _read(source, own, counts[: len(out)], counts)


def opened(array: Array, labels: Sequence[Label], lengths: Mapping[Label, int]) -> tuple[Array, list[Place]]:
    """The source of an array under labels, and where its axes are read; of an array that is no read, in place."""
    if not isinstance(array, ReadArray) or array.summed:
        own = [(torch.arange(lengths[x]), (x,)) for x in labels]
        return array, [_reduced(place, n) for place, n in zip(own, array.sizes, strict=True)]
    return array.source, [_diagonal((index, tuple(labels[k] for k in where))) for index, where in array.places]


def whole(place: Place, size: int) -> bool:
    """True if an axis is read entry by entry under one label."""
    index, where = place
    return len(where) == 1 and torch.equal(index, torch.arange(size))


def effort(read: ReadArray) -> int:
    """Additions for a pair of inputs."""
    size = math.prod(read.source.sizes)
    total = 0
    for group in read.groups or ():
        before = math.prod(read.source.sizes[a] for a in group.axes)
        size = size // before * math.prod(group.lengths)
        total += size * max(1, len(group.offsets) - 1)
    return total


def straightened(read: ReadArray) -> tuple[ReadArray | None, tuple[Label, ...]]:
    """The same with the axes in the order in which the source's axes depend on them, and the old label of each."""
    rank = len(read.sizes)
    found = dict.fromkeys(k for _, where in read.places for k in sorted(where) if k < rank)
    order = (*found, *(k for k in range(rank) if k not in found))
    names = {old: new for new, old in enumerate(order)}
    sums = dict.fromkeys(k for _, where in read.places for k in where if k >= rank)
    names |= {k: rank + i for i, k in enumerate(sums)}
    places = [(index, tuple(names[k] for k in where)) for index, where in read.places]
    lengths = [read.lengths[k] for k in (*order, *sums)]
    return _read(read.source, places, lengths[:rank], lengths), order


def _read(source: Array, places: Sequence[Place], sizes: Sequence[int], lengths: Sequence[int]) -> ReadArray | None:
    """A read in its simplest form: through the source where that is one, without labels that nothing depends on."""
    if isinstance(source, ReadArray) and not source.summed:
        composed = [_composed(inner, places) for inner in source.places]
        read = {k for _, where in source.places for k in where}
        if any(bool((index < 0).any()) for k, (index, _) in enumerate(places) if k not in read):
            return None
        source, places = source.source, composed
    simple = [_reduced(_diagonal(place), n) for place, n in zip(places, source.sizes, strict=True)]
    axes = [k for _, where in simple for k in where if k < len(sizes)]
    # a diagonal of the source may still be summed, and is a read then
    groups = _groups(simple, source.sizes, len(sizes), lengths) if len(set(axes)) == len(axes) else None
    own = tuple(n if k in axes else 1 for k, n in enumerate(sizes))
    used = {k for _, where in simple for k in where}
    extra = [k for k in range(len(sizes), len(lengths)) if k in used]
    names = {**{k: k for k in range(len(sizes))}, **{k: len(sizes) + i for i, k in enumerate(extra)}}
    renamed = tuple((index, tuple(names[k] for k in where)) for index, where in simple)
    return ReadArray(own, source, renamed, (*sizes, *(lengths[k] for k in extra)), groups)


def _composed(inner: Place, outer: Sequence[Place]) -> Place:
    """An index over the axes of a read whose axes are read in turn."""
    index, where = inner
    labels = tuple(dict.fromkeys(x for k in where for x in outer[k][1]))
    at, bad = [], torch.zeros((), dtype=torch.bool)
    for k in where:
        own, names = outer[k]
        order = sorted(range(len(names)), key=lambda d: labels.index(names[d]))
        shape = [own.shape[names.index(x)] if x in names else 1 for x in labels]
        spread = own.permute(order).reshape(shape)
        at.append(spread.clamp(min=0))
        bad = bad | (spread < 0)
    value = index[tuple(at)] if at else index
    return torch.where(bad, -1, value), labels


def _diagonal(place: Place) -> Place:
    index, where = place
    while len(set(where)) < len(where):
        j = next(j for j, k in enumerate(where) if k in where[:j])
        i = where.index(where[j])
        index = index.diagonal(0, i, j).movedim(-1, i)
        where = where[:j] + where[j + 1 :]
    return index, where


def _reduced(place: Place, size: int) -> Place:
    """Without labels on which the index does not depend; an axis of length one is read at zero."""
    index, where = place
    if size == 1:
        index = index.clamp(max=0)
    for d in reversed(range(len(where))):
        if bool((index == index.narrow(d, 0, 1)).all()):
            index, where = index.select(d, 0), where[:d] + where[d + 1 :]
    return index, where


def _everything(places: Sequence[Place], sums: Sequence[Label], rank: int, sizes: Sequence[int]) -> bool:
    """True if every entry of the axes is summed exactly once."""
    if not sums or any(k < rank for _, where in places for k in where):
        return False
    flat, labels = torch.zeros((), dtype=torch.long), tuple(sums)
    for (index, where), size in zip(places, sizes, strict=True):
        order = sorted(range(len(where)), key=lambda d: labels.index(where[d]))
        shape = [index.shape[where.index(k)] if k in where else 1 for k in labels]
        if bool((index < 0).any()):
            return False
        flat = flat * size + index.permute(order).reshape(shape)
    return flat.numel() == math.prod(sizes) and len(flat.unique()) == flat.numel()


def _groups(
    places: Sequence[Place], sizes: Sequence[int], rank: int, lengths: Sequence[int]
) -> tuple[Group, ...] | None:
    """Axes joined where they share what is summed; None where an index has no regular steps."""
    parts: list[tuple[set[Label], list[int]]] = []
    for axis, (_, where) in enumerate(places):
        own = {k for k in where if k >= rank}
        joined = [p for p in parts if p[0] & own]
        parts = [p for p in parts if not p[0] & own]
        parts.append((own.union(*(p[0] for p in joined)), sorted([a for p in joined for a in p[1]] + [axis])))
    groups = []
    for own, axes in parts:
        sums = sorted(own)
        after = tuple(math.prod(lengths[k] for k in places[a][1] if k < rank) for a in axes)
        if _everything([places[a] for a in axes], sums, rank, [sizes[a] for a in axes]):
            groups.append(Group(tuple(axes), (1,) * len(axes), ()))
            continue
        if math.prod(lengths[k] for k in sums) > MOST_OFFSETS:
            return None
        offsets = []
        for values in itertools.product(*(range(lengths[k]) for k in sums)):
            chosen = dict(zip(sums, values, strict=True))
            runs = [_runs(_at(places[a], chosen)) for a in axes]
            if any(len(r) > MOST_RUNS for r in runs):
                return None
            offsets.append(tuple(runs))
        groups.append(Group(tuple(axes), after, tuple(offsets)))
    return tuple(groups)


def _at(place: Place, chosen: Mapping[Label, int]) -> list[int]:
    index, where = place
    return index[tuple(chosen.get(k, slice(None)) for k in where)].reshape(-1).tolist()


def _runs(index: Sequence[int]) -> tuple[Stretch, ...]:
    runs: list[Stretch] = []
    for to, start in enumerate(index):
        if start < 0:
            continue
        last = runs[-1] if runs else None
        if last is not None and last.to + last.count == to:
            step = start - last.start if last.count == 1 else last.step
            if step > 0 and last.start + step * last.count == start:
                runs[-1] = Stretch(last.to, last.start, step, last.count + 1)
                continue
        runs.append(Stretch(to, start, 1, 1))
    return tuple(runs)


def evaluate_read(array: ReadArray, source: Tensor) -> Tensor:
    """The value of a read, group after group."""
    value = source.expand(*source.shape[:2], *array.source.sizes)
    assert array.groups is not None
    for group in array.groups:
        axes = [2 + a for a in group.axes]
        value = as_one(SHIFTS, shifted, group, value) if group.offsets else value.sum(axes, keepdim=True)
    rank = len(array.sizes)
    labels = [k for _, where in array.places for k in where if k < rank]
    value = value.reshape(*value.shape[:2], *(array.lengths[k] for k in labels))
    order = sorted(range(len(labels)), key=labels.__getitem__)
    return value.permute(0, 1, *(2 + d for d in order)).reshape(*value.shape[:2], *array.sizes)
