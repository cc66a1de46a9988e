"""Evaluation of planned kernels over all pairs of inputs: in blocks that fit the caches, side by side on threads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpcompile.evaluate.gaussian.order import Order, children, one_sided, order
from tpcompile.evaluate.gaussian.run import Run
from tpcompile.evaluate.gaussian.terms import Array, ScalarArray
from tpcompile.evaluate.tapes import Tape
from tpcompile.evaluate.tapes.steps import layout
from tpcompile.evaluate.threads import single_threaded
from tpcompile.kernels.placing import place
from tpcompile.kernels.plan import Pairs, Plan
from tpcompile.kernels.replay import Replay, Sides, part, tape

BLOCK = 2**17  # entries of one array over a block: some of them fit a core's cache, and few blocks take few calls
ROWS = 256  # of a block: the part of a symmetric matrix that is computed twice is small
LONG_RUN = 16  # columns of a block
TILE_ROWS = 64  # of a block that is replayed
RECORDED, PAIRS = 2**16, 100  # entries, and pairs, from which on an evaluation is recorded
KEPT_BYTES = 2**25  # of what depends on one set of inputs only

Tick = Callable[[int, int], None]


class Job:
    """One evaluation of some kernels."""

    def __init__(
        self,
        plan: Plan,
        pairs: list[Pairs],
        dtype: torch.dtype,
        variances: Mapping[str, Any],
        samples: int,
        seed: int,
    ) -> None:
        self.samples = samples
        self.seed = seed
        self.plan = plan
        self.pairs = pairs
        self.dtype = dtype
        self.variances = variances

    def _run(self, x1: Tensor, x2: Tensor, known: Mapping[Array, Tensor] | None = None) -> Run:
        moments = self.plan.moments
        return Run(moments, (x1, x2), self.dtype, self.variances, samples=self.samples, seed=self.seed, known=known)

    def diagonal(self, x: Tensor, block: int | None = None) -> list[Tensor]:
        """``(N, ...)`` values of every input with itself."""
        if self._differentiable(x):
            return self._own(x)
        step = block or (self._sides()[0] if self.plan.moments.sampled else self._count(diagonal=True))
        with torch.no_grad():
            parts = [self._own(part) for part in (x.split(step) if len(x) else [x])]
        return [torch.cat(found) for found in zip(*parts, strict=True)]

    def _own(self, x: Tensor) -> list[Tensor]:
        if self.plan.moments.sampled:
            whole = self._run(x, x).evaluate([p.cross for p in self.pairs])
            at = torch.arange(len(x))
            return [self._full(v, p, len(x), len(x))[at, at] for v, p in zip(whole, self.pairs, strict=True)]
        values = self._run(x, x).evaluate([p.own for p in self.pairs])
        return [self._full(v, p, len(x), 1)[:, 0] for v, p in zip(values, self.pairs, strict=True)]

    def matrix(self, x1: Tensor, x2: Tensor | None, block: int | None, progress: Tick | None) -> list[Tensor]:
        """``(N1, N2, ...)`` values of all pairs."""
        y = x1 if x2 is None else x2
        if self._differentiable(x1, y):
            return self._block(x1, y, x2 is None)
        out = [_matrix((len(x1), len(y), *p.positions, *p.positions), self.dtype) for p in self.pairs]
        height, width = (block, block) if block else self._sides()
        if len(x1) <= height and len(y) <= width:
            self._fill(out, x1, x2, (height, width), block, progress, 1)
            return out
        threads = torch.get_num_threads()
        with single_threaded():  # a thread of OpenMP that has nothing more to do would take a processor for a while
            self._fill(out, x1, x2, (height, width), block, progress, threads)
        return out

    @torch.no_grad()
    def _fill(
        self,
        out: list[Tensor],
        x1: Tensor,
        x2: Tensor | None,
        shape: tuple[int, int],
        block: int | None,
        progress: Tick | None,
        threads: int,
    ) -> None:
        """Compute the matrices in blocks of a shape, on so many threads."""
        y = x1 if x2 is None else x2
        wanted = [p.cross for p in self.pairs if p.cross is not None]
        sides = {} if self.plan.moments.sampled else self._sides_known(x1, y, wanted, shape[1])
        plan = order(wanted, sides.keys())
        pairs = len(x1) * len(y)
        many = pairs >= PAIRS and pairs * self._entries() >= RECORDED
        taped = self._taped(x1, y, sides, plan) if many else None
        if taped is not None and not block:
            shape = self._sides(TILE_ROWS)
        tasks = list(_blocks(len(x1), len(y), *shape, x2 is None))
        own: list[Tensor] = []
        done = 0

        def work(task: tuple[slice, slice] | None) -> None:
            if task is None:
                own.extend(self.diagonal(x1, block))
                return
            rows, columns = task

            def use(values: Sequence[Tensor]) -> None:
                side = rows.stop - rows.start if x2 is None and rows.start == columns.start else 0
                place(out, values, (rows.start, columns.start), side, x2 is None)

            if replay is not None and replay(rows, columns, use):
                return
            first = x1[rows]
            second = first if x2 is None and rows == columns else y[columns]
            known = {array: part(value, copy, task[copy]) for array, (value, copy) in sides.items()}
            use(self._cross(first, second, known, plan))

        with _workers(threads) as run:
            replay = None if taped is None else Replay(taped, x1, y, sides, shape, run)
            first = [None] if x2 is None and not self.plan.moments.sampled and len(x1) else []
            for _ in run(work, [*first, *tasks]):
                done += 1
                if progress is not None and done > len(first):
                    progress(done - len(first), len(tasks))
        at = torch.arange(len(x1))
        for target, values in zip(out, own, strict=False):
            target[at, at] = values
        if replay is not None:
            replay.close()

    def _taped(self, x1: Tensor, x2: Tensor, sides: Sides, plan: Order) -> Tape | None:
        """The evaluation of a block as a tape, where it is one."""
        if self.plan.moments.sampled:
            return None
        kinds = tuple((a, tuple(v.shape[2:]), v.shape[c] == 1, v.dtype, layout(v)) for a, (v, c) in sides.items())
        key = (tuple(p.cross for p in self.pairs), self.dtype, x1.dtype, x2.dtype, kinds)
        if self.variances or key not in self.plan.tapes:
            made = tape(
                lambda a, b, known: self._cross(a, b, known, plan), self.plan.moments, x1, x2, sides, plan.first
            )
            if self.variances:
                return made
            self.plan.tapes[key] = made
        return self.plan.tapes[key]

    def _sides_known(
        self, x1: Tensor, x2: Tensor, wanted: Sequence[Array], width: int
    ) -> dict[Array, tuple[Tensor, int]]:
        """Values of what depends on one set of inputs only, with that set; nothing if that is too much.

        With blocks of many columns inputs come last in memory, and so in all that is computed from them: positions are
        then shifted and added in long runs.
        """
        found = one_sided(wanted, self.plan.moments.dependent)
        item = torch.finfo(self.dtype).bits // 8
        if sum(math.prod(array.sizes) for array, _ in found) * max(len(x1), len(x2)) * item > KEPT_BYTES:
            return {}
        values = self._run(x1, x2).evaluate([array for array, _ in found])
        last = width >= LONG_RUN
        return {
            a: (_inputs_last(v) if last else v, copy)
            for (a, copy), v in zip(found, values, strict=True)
            if v is not None
        }

    def _differentiable(self, *inputs: Tensor) -> bool:
        values = [*inputs, *(v for v in self.variances.values() if isinstance(v, Tensor))]
        return torch.is_grad_enabled() and any(v.requires_grad for v in values)

    def _block(self, x1: Tensor, x2: Tensor, own: bool) -> list[Tensor]:
        if self.plan.moments.sampled and x1 is not x2:  # draws are joint over all inputs
            both = torch.cat([x1, x2])
            return [k[: len(x1), len(x1) :] for k in self._block(both, both, False)]
        full = self._cross(x1, x2)
        if not own or self.plan.moments.sampled:
            return full
        return [_with_diagonal(_symmetric(k), d) for k, d in zip(full, self._own(x1), strict=True)]

    def _cross(
        self, x1: Tensor, x2: Tensor, known: Mapping[Array, Tensor] | None = None, plan: Order | None = None
    ) -> list[Tensor]:
        if self.plan.moments.sampled and x1 is not x2:
            return self._block(x1, x2, False)
        values = self._run(x1, x2, known).evaluate([p.cross for p in self.pairs], plan)
        return [self._full(v, p, len(x1), len(x2)) for v, p in zip(values, self.pairs, strict=True)]

    def _full(self, value: Tensor | None, pairs: Pairs, n1: int, n2: int) -> Tensor:
        shape = (n1, n2, *pairs.positions, *pairs.positions)
        if value is None:
            return torch.zeros(shape, dtype=self.dtype)
        kept = 2 + 2 * len(pairs.positions)
        value = value.reshape(value.shape[:kept])
        return value.expand(shape)

    def _count(self, diagonal: bool = False) -> int:
        """Pairs in a block, or inputs in a part of the diagonal."""
        return max(1, BLOCK // self._entries(diagonal))

    def _entries(self, diagonal: bool = False) -> int:
        """Of the largest array, for each pair."""
        arrays = [p.own if diagonal else p.cross for p in self.pairs]
        return max((_largest(array) for array in arrays if array is not None), default=1)

    def _sides(self, most: int = ROWS) -> tuple[int, int]:
        """Rows, at most so many, and columns of a block."""
        count = self._count()
        rows = min(most, math.isqrt(count))
        return rows, rows if self.plan.moments.sampled else count // rows


def _blocks(n1: int, n2: int, height: int, width: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    """Blocks of the matrix or, of a symmetric one, of the part from its diagonal on; one set of columns at a time."""
    width = max(height, width - width % height)  # those that meet the diagonal start on it
    for j in range(0, n2, width):
        end = min(j + width, n2)
        for i in range(0, min(n1, end) if symmetric else n1, height):
            yield slice(i, min(i + height, n1)), slice(max(i, j) if symmetric else j, end)


def _matrix(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Memory for a matrix. NumPy asks for large pages, without which the first writing takes as long as computing."""
    item = torch.empty(0, dtype=dtype)
    if dtype in (torch.float32, torch.float64):
        return torch.from_numpy(np.empty(shape, item.numpy().dtype))
    return item.new_empty(shape)


def _inputs_last(value: Tensor) -> Tensor:
    """The same with the pair axes last in memory."""
    return value.movedim((0, 1), (-2, -1)).contiguous().movedim((-2, -1), (0, 1))


def _transposed(value: Tensor) -> Tensor:
    """A block of the other triangle: pair axes and position axes swapped."""
    half = (value.dim() - 2) // 2
    if not half:
        return value.T.contiguous()  # as a copy into rows of a larger matrix it would be slow
    return value.permute(1, 0, *range(2 + half, 2 + 2 * half), *range(2, 2 + half))


def _symmetric(value: Tensor) -> Tensor:
    """A block of pairs of inputs with themselves, with both triangles rounded alike."""
    if value.shape[0] != value.shape[1] or value.stride(0) == 0 or value.stride(1) == 0:
        return value
    return (value + _transposed(value)) * 0.5


def _with_diagonal(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """A symmetric block with the diagonal computed as the diagonal."""
    at = torch.arange(len(matrix))
    if matrix.requires_grad or diagonal.requires_grad:
        eye = torch.eye(len(matrix), dtype=torch.bool).reshape(*matrix.shape[:2], *([1] * (matrix.dim() - 2)))
        return torch.where(eye, diagonal.unsqueeze(1), matrix)
    matrix = matrix.clone() if matrix.stride(0) == 0 or matrix.stride(1) == 0 else matrix
    matrix[at, at] = diagonal
    return matrix


@contextmanager
def _workers(threads: int) -> Iterator[Callable[..., Any]]:
    """A map over so many threads; the plain map for one."""
    if threads == 1:
        yield map
        return
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        yield pool.map


def _largest(root: Array) -> int:
    """Entries for each pair of the largest array that another is computed from."""
    most, stack, seen = 1, [root], set()
    while stack:
        array = stack.pop()
        if array in seen:
            continue
        seen.add(array)
        if not isinstance(array, ScalarArray):
            most = max(most, math.prod(array.sizes))
        stack += children(array)
    return most
