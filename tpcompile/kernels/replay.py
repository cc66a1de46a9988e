"""Blocks of pairs by a tape: recorded once for a kernel, run on every block."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tpcompile.evaluate.gaussian.moments import Moments
from tpcompile.evaluate.gaussian.terms import Array, ScalarArray
from tpcompile.evaluate.tapes import Input, Refused, Side, Tape, Workspace, recorded
from tpcompile.evaluate.tapes.steps import layout

Sides = Mapping[Array, tuple[Tensor, int]]
_LENGTHS = ((5, 7), (7, 11), (11, 13), (17, 19), (23, 29), (31, 37), (41, 43), (53, 59), (67, 71), (101, 103))
_FEW, _LARGE = 8, 2**14  # rows that are recorded at least, and entries of a pair from which on fewer are
_WHOLE = 2**25  # bytes of what depends on one side, up to which it is computed for all blocks at once


def tape(
    cross: Callable[[Tensor, Tensor, Mapping[Array, Tensor]], list[Tensor]],
    moments: Moments,
    x1: Tensor,
    x2: Tensor,
    sides: Sides,
    arrays: Sequence[Array],
) -> Tape | None:
    """The evaluation of a block as a tape; None where it is not a fixed list of operations.

    ``cross`` evaluates a block of inputs, given what depends on one side of it, and ``arrays`` are what it computes.
    """
    sizes = {n for x in (x1, x2, *moments.program.data.values()) for n in (*x.shape[1:], x.shape[1:].numel())}
    sizes |= {n for array in (*arrays, *sides) if not isinstance(array, ScalarArray) for n in array.sizes}
    large = any(math.prod(array.sizes) >= _LARGE for array in arrays if not isinstance(array, ScalarArray))
    lengths = [k for k in _LENGTHS if large or k[0] > _FEW]
    found = next((k for k in lengths if not any(n and n % q == 0 for n in sizes for q in k)), None)
    if found is None:
        return None
    rows, columns = torch.arange(found[0]), -1 - torch.arange(found[1])  # not the same inputs, if there are enough
    first, second = x1[rows % len(x1)], x2[columns % len(x2)]
    known = {}
    for array, (value, copy) in sides.items():
        at = (rows, columns)[copy] % value.shape[copy]
        known[array] = _cut(value, copy, at)
    inputs = [Input(first, 0), Input(second, 1)]
    inputs += [Input(value, sides[array][1]) for array, value in known.items()]
    try:
        recording = recorded(lambda: cross(first, second, known), inputs, moments.program.data)
        made = Tape(recording, found)
        made.check([x.value for x in inputs], recording.values)
        return made
    except Refused:
        return None


class Replay:
    """One job of a tape; ``run`` maps, maybe on several threads."""

    def __init__(
        self, made: Tape, x1: Tensor, x2: Tensor, sides: Sides, most: tuple[int, int], run: Callable[..., Any]
    ) -> None:
        self.tape = made
        self.most = most
        self.values = [(x1, 0), (x2.unsqueeze(0), 1), *sides.values()]
        self.free: list[Workspace] = []
        self.whole: list[Side | None] = list(run(self._whole, (0, 1), (len(x1), len(x2))))

    def _whole(self, copy: int, length: int) -> Side | None:
        """A side for all blocks, unless it is large or takes other decisions than some blocks may."""
        if self.tape.bytes(copy) * length > _WHOLE:
            return None
        side = self._side(copy, slice(0, length))
        return side if side.possible else None

    def __call__(self, rows: slice, columns: slice, use: Callable[[Sequence[Tensor]], None]) -> bool:
        """Compute a block and use it, in memory that is taken again afterwards; False if that takes another tape."""
        try:
            workspace = self.free.pop()
        except IndexError:
            workspace = self.tape.workspace(self.most)
        block = workspace.at((rows.stop - rows.start, columns.stop - columns.start))
        possible = True
        for copy, where in enumerate((rows, columns)):
            whole = self.whole[copy]
            source = self._side(copy, where) if whole is None else whole
            possible &= source.possible
            block.load(copy, source, 0 if whole is None else where.start)
        if possible:
            use(block.run())
        self.free.append(workspace)
        return possible

    def _side(self, copy: int, where: slice) -> Side:
        def values(i: int) -> Tensor:
            value, own = self.values[i]
            return part(value, own, where)

        return Side(self.tape, copy, where.stop - where.start, values)

    def close(self) -> None:
        """Give the memory back to the tape."""
        for workspace in self.free:
            self.tape.back(workspace)


def part(value: Tensor, copy: int, where: slice) -> Tensor:
    """What depends on one set of inputs, at some of them."""
    return value if value.shape[copy] == 1 else value[(slice(None),) * copy + (where,)]


def _cut(value: Tensor, copy: int, at: Tensor) -> Tensor:
    """The same at some inputs, its axes in the same order in memory."""
    order = layout(value) or tuple(range(value.dim()))
    found = value if value.shape[copy] == 1 else value.index_select(copy, at)
    return found.permute(order).contiguous().permute([order.index(d) for d in range(value.dim())])
