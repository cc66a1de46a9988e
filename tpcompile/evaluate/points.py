"""Quasi-random points: the numbers that Gaussian draws are made of."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from tpcompile.evaluate.buffers import Allocate, in_memory

SOBOL_DIMENSIONS = 1024  # later directions are pseudo-random: low discrepancy pays on the early ones
BLOCK, COLUMNS = 4, 16384  # rows and particles made at a time, more rows of fewer particles
_BITS = 30  # of the engine's integers
_MANTISSA = {torch.float64: _BITS, torch.float32: 23}  # bits whose midpoints are numbers inside (-1, 1)


class Source:
    """Scrambled Sobol points on M particles, one dimension a row, in order of use.

    The scrambled direction numbers are those of ``torch.quasirandom.SobolEngine``; the points are its points in another
    order (binary, not Gray code), in which a row is made by doubling. ``part`` and ``parts`` select an aligned run of
    the points: each half of a Sobol net is a net. Two runs of one dimension, or two sequences of different scrambling,
    are functions of each other: whatever meets coordinate by coordinate must take its rows from one source. ``sobol``
    False makes all numbers pseudo-random.
    """

    def __init__(
        self, dimension: int, particles: int, seed: int, part: int = 0, parts: int = 1, sobol: bool = True
    ) -> None:
        self.used = 0
        self._particles = particles
        self._rows = dimension
        self._dimension = max(1, min(dimension, SOBOL_DIMENSIONS)) if sobol else 0
        self._seed = seed if sobol else seed * 2 + part  # halves of pseudo-random points are two draws
        self._start = part * particles
        # an aligned run of a power of two is made alone, any other is cut from all
        self._aligned = particles & (particles - 1) == 0
        self._total = particles if self._aligned else particles * parts
        if sobol:
            engine = SobolEngine(self._dimension, scramble=True, seed=seed)
            self._directions = engine.sobolstate.to(torch.int32)
            self._shift = engine.shift.to(torch.int32)

    @property
    def left(self) -> int:
        """Rows that are expected and not yet used."""
        return max(0, self._rows - self.used)

    def uniform(self, rows: int) -> Tensor:
        """The next rows as uniform numbers in (0, 1), shape (rows, M), float64."""
        return self._integers(rows).double().add_(0.5).mul_(2.0**-_BITS)

    def normals(self, rows: int, dtype: torch.dtype, allocate: Allocate = in_memory) -> Tensor:
        """The next rows as standard normals, shape (rows, M)."""
        bits = _MANTISSA[dtype]
        scale = torch.tensor(2.0 ** (1 - bits), dtype=dtype)
        out = allocate((rows, self._particles), dtype)
        for x in out.split(BLOCK * max(1, COLUMNS // self._particles)):
            for block, integers in self._blocks(x, _BITS - bits):
                block.copy_(integers)
                block.mul_(scale).add_(scale / 2 - 1).erfinv_().mul_(math.sqrt(2))
        return out

    def _blocks(self, x: Tensor, shift: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The next rows as integers below 2^(30 - shift), block by block of the rows x, so that they stay in the cache.

        In binary order the integer of a point is that of its last digits, XOR that of its first.
        """
        rows, start = x.shape[0], self.used
        size = min(COLUMNS, self._particles)
        if not self._aligned or start + rows > self._dimension or self._particles % size:
            yield x, self._integers(rows).bitwise_right_shift_(shift)
            return
        self.used += rows
        directions = self._directions[start : self.used].bitwise_right_shift(shift)
        last = _doubled(self._first(start, rows).bitwise_right_shift(shift), directions, size)
        first = _doubled(torch.zeros(rows, dtype=torch.int32), directions[:, _length(size) :], self._particles // size)
        for i, block in enumerate(x.split(size, 1)):
            yield block, last ^ first[:, i, None]

    def _first(self, start: int, rows: int) -> Tensor:
        """The first point of the run, shape (rows)."""
        first = self._shift[start : start + rows].clone()
        if self._aligned:
            for bit in range(_BITS):
                if self._start >> bit & 1:
                    first ^= self._directions[start : start + rows, bit]
        return first

    def _integers(self, rows: int) -> Tensor:
        """The next rows as integers below 2^30, shape (rows, M)."""
        start, self.used = self.used, self.used + rows
        if self.used > self._dimension:  # beyond the engine's dimensions
            generator = torch.Generator().manual_seed(self._seed * 1_000_003 + start)
            return torch.randint(2**_BITS, (rows, self._particles), generator=generator, dtype=torch.int32)
        out = _doubled(self._first(start, rows), self._directions[start : self.used], self._total)
        return out if self._aligned else out[:, self._start : self._start + self._particles].contiguous()


def _doubled(first: Tensor, directions: Tensor, count: int) -> Tensor:
    """Points in binary order from the first, shape (rows, count): each digit doubles their number."""
    out = torch.empty((first.shape[0], count), dtype=torch.int32)
    out[:, 0] = first
    done = 1
    for bit in range(_length(count)):
        more = min(done, count - done)
        torch.bitwise_xor(out[:, :more], directions[:, bit, None], out=out[:, done : done + more])
        done += more
    return out


def _length(count: int) -> int:
    """Binary digits of the numbers below count."""
    return (count - 1).bit_length()
