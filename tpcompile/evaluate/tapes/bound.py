"""Instructions of a tape on fixed memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpcompile.evaluate import shifts
from tpcompile.evaluate.shifts import SHIFTS
from tpcompile.evaluate.tapes.script import Script, loading, unoptimized
from tpcompile.evaluate.tapes.steps import FIXED, INPUT, NUMPY, OUT, SIZED, SNAP, VIEWS, Step, root

if TYPE_CHECKING:
    from tpcompile.evaluate.tapes.replay import Tape

Call = Callable[[], Any]


class Bound:
    """Steps with their tensors for some numbers of rows and columns, and the calls that compute them."""

    def __init__(self, tape: Tape, lengths: tuple[int, int]) -> None:
        self.tape, self.lengths = tape, lengths
        self.tensors: dict[Step, Tensor] = {}
        self.calls: list[Call] = []
        self._all(FIXED)
        self._run()
        self.calls.clear()

    def _run(self) -> None:
        for call in self.calls:
            call()

    def _all(self, stage: int | None, memory: dict[Step, Tensor] | None = None) -> None:
        for x in self.tape.order:
            if self.tape.stage[x] == stage:
                self._add(x, None if memory is None else memory.get(x))

    def _tensor(self, x: Step) -> Tensor:
        return self.tensors[x] if x.value is None else x.value

    def _add(self, x: Step, memory: Tensor | None = None) -> None:
        shape = self.tape.size(x.shape, self.lengths)
        if x.value is not None:
            return
        if x.name in VIEWS:
            rest = [self.tape.size(a, self.lengths) if x.name in SIZED else a for a in x.args[1:]]
            self.tensors[x] = VIEWS[x.name](self._tensor(x.args[0]), *rest)
            return
        out = x.empty(shape) if memory is None else self._over(x, memory, shape)
        self.tensors[x] = out
        if x.name == INPUT:
            return
        args = [self._tensor(a) if isinstance(a, Step) else a for a in x.args]
        self._call(x, args, out)

    def _call(self, x: Step, args: list[Any], out: Tensor) -> None:
        if x.by_numpy:
            self.calls.append(NUMPY[x.name](*args, out=out))
        elif x.name == SHIFTS:
            for name, operands, target in shifts.calls(args[1], args[0], out):
                self.calls.append(partial(OUT[name], *operands, out=target))
        elif x.name == "amax":
            self.calls.append(partial(torch.amax, args[0], tuple(range(args[0].dim())), out=out))
        else:
            self.calls.append(partial(OUT[x.name], *args, **dict(x.options), out=out))

    def _over(self, x: Step, memory: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Memory in its shape: the operand's own tensor where that is overwritten."""
        for y in x.operands:
            found = self.tensors.get(y)
            if found is not None and found.data_ptr() == memory.data_ptr() and found.shape == shape:
                return found
        return x.laid_out(memory, shape)


class Side(Bound):
    """What depends on the rows only or on the columns only, for many of them at once."""

    def __init__(self, tape: Tape, side: int, length: int, values: Callable[[int], Tensor]) -> None:
        super().__init__(tape, (length, tape.lengths[1]) if side == 0 else (tape.lengths[0], length))
        vectors, others = tape.read[side]
        self.packed = torch.empty(len(vectors), length, dtype=tape.dtype)
        memory = dict(zip(vectors, self.packed, strict=True))
        for i, x in enumerate(tape.inputs):
            if tape.stage.get(x) == side:
                self._add(x, memory.get(x))
                self.tensors[x].copy_(values(i))
        self._all(side, memory)
        self._run()
        self.others = [self.tensors[x] for x, _ in others]
        self.possible = all(bool(self.tensors[x]) == value for x, value in tape.decisions if tape.stage[x] == side)
        """Whether decisions are those of the recording."""


class Block(Bound):
    """What depends on rows and columns."""

    def __init__(self, tape: Tape, slots: list[Tensor], lengths: tuple[int, int]) -> None:
        self.script, self.first = Script(), 0  # of the calls from the first on
        super().__init__(tape, lengths)
        self.script = Script()
        self.loaded: list[tuple[Side, int] | None] = [None, None]
        self.packed = []
        for side in (0, 1):
            vectors, others = tape.read[side]
            self.packed.append(torch.empty(len(vectors), lengths[side], dtype=tape.dtype))
            for x, memory in zip(vectors, self.packed[side], strict=True):
                self.tensors[x] = memory.view(tape.size(x.shape, lengths))
            for x, _ in others:
                self.tensors[x] = x.empty(tape.size(x.shape, lengths))
            for x in tape.order:
                if tape.stage[x] == side and x.name in VIEWS and root(x) in self.tensors:
                    self._add(x)
        self._all(None, {x: slots[i] for x, i in tape.slots.items()})
        self._join()
        self.results = [self._tensor(x) for x in tape.results]

    def _call(self, x: Step, args: list[Any], out: Tensor) -> None:
        if x.by_numpy and x.name != SNAP and (x.name, x.dtype) != ("sqrt", torch.float32):
            self._join()
            super()._call(x, args, out)
            self.first = len(self.calls)
        elif x.name == SHIFTS:
            super()._call(x, args, out)
            for name, operands, target in shifts.calls(args[1], args[0], out):
                self.script.add(name, operands, {}, target)
        else:
            super()._call(x, args, out)
            self.script.add(x.name, args, dict(x.options), out)

    def _join(self) -> None:
        """Make the calls that are written in the script one."""
        call = self.script.call() if len(self.calls) > self.first + 1 else None
        if call is not None:
            self.calls[self.first :] = [call]
        self.script, self.first = Script(), len(self.calls)

    def load(self, side: int, source: Side, start: int) -> None:
        """Take in what depends on the rows or columns from ``start`` on."""
        if self.loaded[side] == (source, start):
            return
        length = self.lengths[side]
        others = self.tape.read[side][1]
        copy = loading((1, *(axis for _, axis in others)))
        into = [self.packed[side], *(self.tensors[x] for x, _ in others)]
        with unoptimized():
            copy(start, length, *into, source.packed, *source.others)
        self.loaded[side] = source, start

    def run(self) -> list[Tensor]:
        """The results for what is loaded: memory that the next run overwrites."""
        with unoptimized():
            self._run()
        return self.results


class Workspace:
    """Memory of one thread, with the instructions bound to it for each shape of blocks."""

    def __init__(self, tape: Tape, most: tuple[int, int]) -> None:
        self.tape = tape
        self.most = most
        self.slots = [torch.empty(math.prod(tape.size(shape, most)), dtype=dtype) for shape, dtype in tape.capacity]
        self.blocks: dict[tuple[int, int], Block] = {}

    def at(self, lengths: tuple[int, int]) -> Block:
        """The instructions for blocks of so many rows and columns."""
        if lengths not in self.blocks:
            self.blocks[lengths] = Block(self.tape, self.slots, lengths)
        return self.blocks[lengths]

    def forget(self) -> None:
        """Nothing is known of the inputs any more."""
        for block in self.blocks.values():
            block.loaded = [None, None]
