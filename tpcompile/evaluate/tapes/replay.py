"""Running a recorded evaluation on blocks of any shape, without asking for memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from tpcompile.evaluate.tapes.bound import Side, Workspace
from tpcompile.evaluate.tapes.record import Recording, Refused
from tpcompile.evaluate.tapes.simplify import live, simplified
from tpcompile.evaluate.tapes.steps import CUT, FIXED, INPUT, POINTWISE, VIEWS, Step, root

_SMALL = 8  # times less than a block is what is computed once for all blocks of the same rows or columns
_KEPT = 2**24  # bytes of one thread that are kept from one evaluation to the next


class Tape:
    """The instructions of a block: those that depend on its rows or on its columns only, and the others.

    ``lengths`` are the numbers of rows and columns that it was recorded with: no other axis may have a multiple of
    them. Raises Refused if it cannot be run on other blocks.
    """

    def __init__(self, recording: Recording, lengths: tuple[int, int]) -> None:
        self.lengths = lengths
        self.inputs = recording.inputs
        self.dtype = recording.results[0].dtype
        found = list(recording.results)
        decided = [step for step, _ in recording.decisions]
        order, new = simplified(recording.order, [*found, *decided])
        self.decisions = [(new[step], value) for step, value in recording.decisions]
        block = max((x.size for x in order), default=1)
        self.stage: dict[Step, int | None] = {}  # FIXED; 0: rows; 1: columns; None: block
        for step in live([new[x] for x in (*found, *decided)]):
            self.stage[step] = self._stage(step, block)
        if any(x.name in CUT and self._varies(x.args[0].shape[x.args[1]]) for x in self.stage):
            raise Refused("a part of the rows or columns")
        if any(self.stage[x] is None for x, _ in self.decisions):
            raise Refused("a decision that depends on rows and columns")
        results: list[Step] = [new[x] for x in found]
        reads: Counter[Step] = Counter(results)
        copies = {
            i: Step("clone", (x,), (), x.shape, x.dtype, x.sides)
            for i, x in enumerate(results)
            if reads[x] > 1 or self.stage[x] is not None
        }
        self.stage.update((x, None) for x in copies.values())
        self.results = [copies.get(i, x) for i, x in enumerate(results)]
        self.order = [*order, *copies.values()]
        self.slots, self.capacity = self._laid_out()
        self.read = [self._read(side) for side in (0, 1)]
        self.idle: dict[tuple[int, int], list[Workspace]] = {}

    def _varies(self, size: int) -> bool:
        return size > 0 and any(size % n == 0 for n in self.lengths)

    def _stage(self, x: Step, block: int) -> int | None:
        if not x.sides:
            return FIXED
        if len(x.sides) > 1:
            return None
        (side,) = x.sides
        inner = [self.stage[y] for y in x.operands if y.sides]
        split = all(n % self.lengths[side] or n == self.lengths[side] for n in x.shape)  # it can be cut into blocks
        small = x.name in (INPUT, *VIEWS) or (x.size * _SMALL <= block and split)
        return side if small and all(y is not None for y in inner) else None

    def bytes(self, side: int) -> int:
        """What a :class:`Side` takes for each of its inputs."""
        own = [x for x in self.stage if self.stage[x] == side and x.name not in VIEWS]
        return sum(x.size * x.dtype.itemsize for x in own) // self.lengths[side]

    def size(self, shape: Sequence[int], lengths: tuple[int, int]) -> tuple[int, ...]:
        """A recorded shape for other numbers of rows and columns."""
        out = []
        for n in shape:
            times = 1
            for old, new in zip(self.lengths, lengths, strict=True):
                if n > 0 and n % old == 0:
                    n, times = n // old, times * new
            out.append(n * times)
        return tuple(out)

    def _read(self, side: int) -> tuple[list[Step], list[tuple[Step, int | None]]]:
        """What blocks read of a side: one number for each of its inputs, and other arrays with the axis of those."""
        body = [x for x in self.order if self.stage[x] is None]
        found = dict.fromkeys(root(y) for x in body for y in x.operands)
        length = self.lengths[side]
        vectors, others = [], []
        for x in found:
            if self.stage.get(x) == side and x.size == length and x.dtype == self.dtype:
                vectors.append(x)
            elif self.stage.get(x) == side:
                others.append((x, x.shape.index(length) if length in x.shape else None))
        return vectors, others

    def _laid_out(self) -> tuple[dict[Step, int], list[tuple[tuple[int, ...], torch.dtype]]]:
        """Which memory each step of the block writes to: that of a step that nothing reads any more."""
        last: dict[Step, int] = {}
        body = [x for x in self.order if self.stage[x] is None]
        for i, x in enumerate(body):
            for y in x.operands:
                last[root(y)] = i
        kept = {root(x) for x in self.results}
        slots: dict[Step, int] = {}
        capacity: list[tuple[tuple[int, ...], torch.dtype]] = []
        free: list[int] = []
        for i, x in enumerate(body):
            if x.name in VIEWS or x.value is not None:
                continue
            over = [root(y) for y in x.operands if x.name in POINTWISE and _kind(y) == _kind(x)]
            once = Counter(root(y) for y in set(x.operands))
            over = [y for y in over if y in slots and last[y] == i and y not in kept and once[y] == 1]
            if over:
                slots[x] = slots[over[0]]
            else:
                fits = [s for s in free if capacity[s] == (x.shape, x.dtype)]
                if fits:
                    free.remove(fits[-1])
                else:
                    capacity.append((x.shape, x.dtype))
                slots[x] = fits[-1] if fits else len(capacity) - 1
            ended = {root(y) for y in x.operands}
            free += [slots[y] for y in ended if y in slots and last[y] == i and y not in kept and y not in over[:1]]
        return slots, capacity

    def check(self, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """Refused unless it gives what was recorded."""
        try:
            bound = Workspace(self, self.lengths).at(self.lengths)
        except (RuntimeError, TypeError, KeyError) as error:  # an axis that cannot be split or called that way
            raise Refused(str(error)) from error
        for side in (0, 1):
            bound.load(side, Side(self, side, self.lengths[side], inputs.__getitem__), 0)
        for found, wanted in zip(bound.run(), expected, strict=True):
            scale = wanted.abs().max() * torch.finfo(wanted.dtype).eps ** 0.5
            if not bool(((found - wanted).abs() <= scale).all() | ~wanted.isfinite().all()):
                raise Refused("the tape does not repeat its recording")

    def workspace(self, most: tuple[int, int]) -> Workspace:
        """Memory for blocks of at most so many rows and columns; to be given back by :meth:`back`."""
        idle = self.idle.setdefault(most, [])
        try:
            return idle.pop()
        except IndexError:
            return Workspace(self, most)

    def back(self, workspace: Workspace) -> None:
        """Keep memory for the next evaluation, unless it is large."""
        workspace.forget()
        if sum(x.nbytes for x in workspace.slots) <= _KEPT:
            self.idle[workspace.most].append(workspace)


def _kind(x: Step) -> tuple[object, ...]:
    """What memory of one step needs to be that of another."""
    return x.shape, x.dtype, x.layout, x.name in VIEWS
