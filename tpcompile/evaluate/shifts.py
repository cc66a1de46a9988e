"""Sums of shifted entries along axes: the calls that they take, to be run or to be written down."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

SHIFTS = "shifts"  # the instruction of a tape


@dataclass(frozen=True)
class Stretch:
    """``count`` entries from ``start`` on in steps, added from ``to`` on."""

    to: int
    start: int
    step: int
    count: int


@dataclass(frozen=True)
class Group:
    """Axes that are read together: their new lengths, and for every value of what is summed their runs.

    Axes are counted after the two of pairs. Without offsets all entries are summed.
    """

    axes: tuple[int, ...]
    lengths: tuple[int, ...]
    offsets: tuple[tuple[tuple[Stretch, ...], ...], ...]


Box = tuple[tuple[int, int], ...]  # start and count on every axis of a group
Call = tuple[str, tuple[Tensor, ...], Tensor]  # an operation, its operands, and where its result goes


def shifted(group: Group, value: Tensor) -> Tensor:
    """The value with the group's axes read: entries added where there are offsets."""
    pieces = _pieces(group)
    if len(pieces) == 1 and pieces[0][0] == _whole(group):
        return _source(group, value, pieces[0][1])
    out = _shaped(group, value)
    for name, operands, target in calls(group, value, out):
        if name == "zero":
            target.zero_()
        elif name == "copy":
            target.copy_(operands[0])
        elif operands[0] is target:
            target.add_(operands[1])
        else:
            torch.add(*operands, out=target)
    return out


def calls(group: Group, value: Tensor, out: Tensor) -> Iterator[Call]:
    """What computes it into other memory."""
    pieces, whole = _pieces(group), _whole(group)
    base = next((runs for box, runs in pieces if box == whole), None)
    if base is None:
        yield "zero", (), out
    else:
        pieces.remove((whole, base))
        start = _source(group, value, base)
        if not pieces or value.requires_grad:
            yield "copy", (start,), out
        else:  # the first two in one pass
            box, runs = pieces.pop(0)
            yield "add", (_cut(group, start, box), _source(group, value, runs)), _cut(group, out, box)
            for rest in _around(box, whole):
                yield "copy", (_cut(group, start, rest),), _cut(group, out, rest)
    for box, runs in pieces:
        target = _cut(group, out, box)
        yield "add", (target, _source(group, value, runs)), target


def _pieces(group: Group) -> list[tuple[Box, tuple[Stretch, ...]]]:
    found = [runs for offset in group.offsets for runs in itertools.product(*offset)]
    return [(tuple((run.to, run.count) for run in runs), runs) for runs in found]


def _whole(group: Group) -> Box:
    return tuple((0, n) for n in group.lengths)


def _source(group: Group, value: Tensor, runs: Sequence[Stretch]) -> Tensor:
    for a, run in zip(group.axes, runs, strict=True):
        value = value.narrow(2 + a, run.start, run.step * (run.count - 1) + 1)
        if run.step > 1:
            value = value[(slice(None),) * (2 + a) + (slice(None, None, run.step),)]
    return value


def _cut(group: Group, value: Tensor, box: Box) -> Tensor:
    for a, (start, count) in zip(group.axes, box, strict=True):
        value = value.narrow(2 + a, start, count)
    return value


def _around(box: Box, whole: Box) -> Iterator[Box]:
    """What is left of the whole without a box, in boxes."""
    for d, ((start, count), (_, size)) in enumerate(zip(box, whole, strict=True)):
        for low, high in ((0, start), (start + count, size)):
            if low < high:
                yield (*box[:d], (low, high - low), *whole[d + 1 :])


def _shaped(group: Group, value: Tensor) -> Tensor:
    """Memory for the result, its axes in the order of the value's."""
    shape = list(value.shape)
    for a, n in zip(group.axes, group.lengths, strict=True):
        shape[2 + a] = n
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    if 0 in value.stride():
        order = list(range(value.dim()))
    return value.new_empty([shape[d] for d in order]).permute([order.index(d) for d in range(value.dim())])
