"""Running a recorded evaluation on blocks of any shape, without asking for memory."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tpcompile.evaluate.tapes.record import Recording, Refused
from tpcompile.evaluate.tapes.simplify import live, simplified
from tpcompile.evaluate.tapes.steps import INPUT, NUMPY, OUT, POINTWISE, SIZED, VIEWS, Step

FIXED = -1  # the stage of what does not depend on the inputs
_SMALL = 8  # times less than a block is what is computed once for all blocks of the same rows or columns
_KEPT = 2**24  # bytes of one thread that are kept from one evaluation to the next
Call = Callable[[], Any]


class Tape:
    """The instructions of a block: those that depend on its rows or on its columns only, and the others.

    ``lengths`` are the numbers of rows and columns that it was recorded with: no other axis may have a multiple of
    them. Raises Refused if it cannot be run on other blocks.
    """

    def __init__(self, recording: Recording, lengths: tuple[int, int]) -> None:
        self.lengths = lengths
        self.inputs = recording.inputs
        found = list(recording.results)
        decided = [step for step, _ in recording.decisions]
        order, new = simplified(recording.order, [*found, *decided])
        self.decisions = [(new[step], value) for step, value in recording.decisions]
        block = max((x.size for x in order), default=1)
        self.stage: dict[Step, int | None] = {}  # FIXED; 0: rows; 1: columns; None: block
        for step in live([new[x] for x in (*found, *decided)]):
            self.stage[step] = self._stage(step, block)
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
        self.idle: dict[tuple[int, int], list[Workspace]] = {}

    def _stage(self, x: Step, block: int) -> int | None:
        if not x.sides:
            return FIXED
        if len(x.sides) > 1:
            return None
        (side,) = x.sides
        inner = [self.stage[y] for y in x.operands if y.sides]
        small = x.name in (INPUT, *VIEWS) or x.size * _SMALL <= block
        return side if small and all(y is not None for y in inner) else None

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

    def _laid_out(self) -> tuple[dict[Step, int], list[tuple[tuple[int, ...], torch.dtype]]]:
        """Which memory each step of the block writes to: that of a step that nothing reads any more."""
        last: dict[Step, int] = {}
        body = [x for x in self.order if self.stage[x] is None]
        for i, x in enumerate(body):
            for y in x.operands:
                last[_root(y)] = i
        kept = {_root(x) for x in self.results}
        slots: dict[Step, int] = {}
        capacity: list[tuple[tuple[int, ...], torch.dtype]] = []
        free: list[int] = []
        for i, x in enumerate(body):
            if x.name in VIEWS or x.value is not None:
                continue
            over = [
                _root(y)
                for y in x.operands
                if x.name in POINTWISE and (y.shape, y.dtype, y.name in VIEWS) == (x.shape, x.dtype, False)
            ]
            once = Counter(_root(y) for y in set(x.operands))
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
            ended = {_root(y) for y in x.operands}
            free += [slots[y] for y in ended if y in slots and last[y] == i and y not in kept and y not in over[:1]]
        return slots, capacity

    def check(self, inputs: Sequence[Tensor], expected: Sequence[Tensor]) -> None:
        """Refused unless it gives what was recorded."""
        try:
            bound = Workspace(self, self.lengths).at(self.lengths)
        except (RuntimeError, TypeError) as error:  # an axis that cannot be split or called that way
            raise Refused(str(error)) from error
        for side in (0, 1):
            bound.load(side, "recorded", lambda i: inputs[i], None)
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


class Workspace:
    """Memory of one thread, with the instructions bound to it for each shape of blocks."""

    def __init__(self, tape: Tape, most: tuple[int, int]) -> None:
        self.tape = tape
        self.most = most
        self.slots = [torch.empty(math.prod(tape.size(shape, most)), dtype=dtype) for shape, dtype in tape.capacity]
        self.bound: dict[tuple[int, int], Bound] = {}

    def at(self, lengths: tuple[int, int]) -> Bound:
        """The instructions for blocks of so many rows and columns."""
        if lengths not in self.bound:
            self.bound[lengths] = Bound(self.tape, self.slots, lengths)
        return self.bound[lengths]

    def forget(self) -> None:
        """Nothing is known of the inputs any more."""
        for bound in self.bound.values():
            bound.loaded = [None, None]


class Bound:
    """Instructions on fixed memory."""

    def __init__(self, tape: Tape, slots: list[Tensor], lengths: tuple[int, int]) -> None:
        self.tape, self.lengths = tape, lengths
        self.slots = slots
        self.tensors: dict[Step, Tensor] = {}
        self.loaded: list[Any] = [None, None]
        self.calls: dict[int | None, list[Call]] = {0: [], 1: [], None: []}
        read = {y for x in tape.order if tape.stage[x] is None for y in x.operands}
        read |= {x for x, _ in tape.decisions}
        self.inputs = [(i, x, next(iter(x.sides))) for i, x in enumerate(tape.inputs) if x in tape.stage]
        self.calls[FIXED] = []
        for x in tape.order:
            if tape.stage[x] == FIXED:
                size = math.prod(tape.size(x.shape, lengths))
                self._bind(x, None if x.name in VIEWS else torch.empty(size, dtype=x.dtype))
        for call in self.calls[FIXED]:
            call()
        for side in (0, 1):
            self._side(side, read)
        for x in tape.order:
            if tape.stage[x] is None:
                self._bind(x, slots[tape.slots[x]] if x in tape.slots else None)
        self.results = [self._tensor(x) for x in tape.results]
        self.decisions = {
            side: [(self.tensors[x], value) for x, value in tape.decisions if tape.stage[x] == side] for side in (0, 1)
        }

    def _side(self, side: int, read: set[Step]) -> None:
        """What depends on one side: the part of it that blocks read lies together."""
        tape = self.tape
        own = [x for _, x, copy in self.inputs if copy == side]
        own += [x for x in tape.order if tape.stage[x] == side]
        read = {_root(x) for x in read}
        wanted = [x for x in own if x.name not in VIEWS and x in read]
        common = wanted[0].dtype if wanted else torch.float32
        together = [x for x in wanted if x.dtype == common and x not in {y for y, _ in tape.decisions}]
        sizes = [math.prod(tape.size(x.shape, self.lengths)) for x in together]
        flat = torch.empty(sum(sizes), dtype=common)
        parts = dict(zip(together, flat.split(sizes), strict=True))
        for x in own:
            memory = parts.get(x)
            if memory is None and x.name not in VIEWS and x.value is None:
                memory = torch.empty(math.prod(tape.size(x.shape, self.lengths)), dtype=x.dtype)
            self._bind(x, memory)
        self.flat = {**getattr(self, "flat", {}), side: flat}

    def _tensor(self, x: Step) -> Tensor:
        if x.value is not None:
            return x.value
        return self.tensors[x]

    def _bind(self, x: Step, memory: Tensor | None) -> None:
        tape = self.tape
        shape = tape.size(x.shape, self.lengths)
        if x.value is not None:
            return
        if x.name in VIEWS:
            base = self._tensor(x.args[0])
            rest = [tape.size(a, self.lengths) if x.name in SIZED else a for a in x.args[1:]]
            self.tensors[x] = VIEWS[x.name](base, *rest)
            return
        assert memory is not None
        out = self.tensors[x] = self._over(x, memory, shape)
        if x.name == INPUT:
            return
        args = [self._tensor(a) if isinstance(a, Step) else a for a in x.args]
        calls = self.calls[tape.stage[x]]
        if x.name in NUMPY and x.dtype in (torch.float32, torch.float64) and args[0].dtype == x.dtype:
            calls.append(NUMPY[x.name](*args, out=out))
        elif x.name == "amax":
            calls.append(partial(torch.amax, args[0], tuple(range(args[0].dim())), out=out))
        else:
            calls.append(partial(OUT[x.name], *args, **dict(x.options), out=out))

    def _over(self, x: Step, memory: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Memory in its shape: the operand's own tensor where that is overwritten."""
        for y in x.operands:
            found = self.tensors.get(y)
            if found is not None and found.data_ptr() == memory.data_ptr() and found.shape == shape:
                return found
        return memory[: math.prod(shape)].view(shape)

    def load(self, side: int, key: Any, values: Callable[[int], Tensor], cache: dict[Any, Tensor] | None) -> bool:
        """Take in the inputs of some rows or columns; False if a decision would be another one there."""
        if self.loaded[side] == key:
            return True
        self.loaded[side] = None
        flat = self.flat[side]
        found = None if cache is None else cache.get((side, key))
        if found is not None:
            flat.copy_(found)
        else:
            for i, x, copy in self.inputs:
                if copy == side:
                    self.tensors[x].copy_(values(i))
            for call in self.calls[side]:
                call()
            if any(bool(x) != value for x, value in self.decisions[side]):
                return False
            if cache is not None:
                cache[side, key] = flat.clone()
        self.loaded[side] = key
        return True

    def run(self) -> list[Tensor]:
        """The results for what is loaded: memory that the next run overwrites."""
        for call in self.calls[None]:
            call()
        return self.results


def _root(x: Step) -> Step:
    """The step on whose memory a view is."""
    while x.name in VIEWS:
        x = x.args[0]
    return x
