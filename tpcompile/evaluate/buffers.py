"""Where an evaluation keeps tensors: in memory that is used again, or in files that the system pages in and out."""

from __future__ import annotations

import bisect
import math
import mmap
import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
_LARGE = 2**17  # bytes: smaller tensors are the C library's
_LINE = 2**6  # of a cache
_HUGE = 2**21  # page
_SLAB = 2**25  # asked from the system at once
_KEPT = 2**29  # an arena, from one evaluation to the next
_PERSISTENT = Path("/var/tmp")  # /tmp may be kept in memory


def in_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor."""
    return torch.empty(shape, dtype=dtype)


class Arena:
    """Memory for large tensors, on huge pages where the system has them, that is used again when a tensor is gone.

    The first touch of a page costs more than ten times what writing it does, and the C library gives large blocks back
    to the system as soon as they are free: a walk over a program would spend half its time there. One thread takes;
    a tensor may end on any.
    """

    def __init__(self) -> None:
        self._slabs: list[mmap.mmap] = []
        self._free: list[tuple[int, int, int]] = []  # slab, first byte, end: sorted, never neighbours
        self._given: list[tuple[int, int, int]] = []  # back, and not yet among these

    @property
    def size(self) -> int:
        """Bytes that it has from the system."""
        return sum(len(memory) for memory in self._slabs)

    def take(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """An uninitialised tensor; its memory is free when the last tensor on it, a view of it included, is gone."""
        found = self.large(shape, dtype)
        return torch.empty(shape, dtype=dtype) if found is None else found

    def large(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor | None:
        """The same, or None for a tensor that is small enough for the C library."""
        size = math.prod(shape) * dtype.itemsize
        if size < _LARGE or not hasattr(mmap, "MADV_HUGEPAGE"):
            return None
        length = (size // _LINE + 2) * _LINE  # no two blocks a power of two apart
        slab, start = self._find(length)
        block = np.frombuffer(self._slabs[slab], np.uint8, size, start)
        weakref.finalize(block, self._given.append, (slab, start, start + length)).atexit = False
        return torch.from_numpy(block).view(dtype).reshape(shape)

    def _find(self, size: int) -> tuple[int, int]:
        while self._given:
            self._join(*self._given.pop())
        for i, (slab, start, end) in enumerate(self._free):
            if end - start >= size:
                self._free[i : i + 1] = [(slab, start + size, end)] if end - start > size else []
                return slab, start
        length = max(_SLAB, -(-size // _HUGE) * _HUGE)
        memory = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        with suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
        self._slabs.append(memory)
        if length > size:
            self._free.append((len(self._slabs) - 1, size, length))
        return len(self._slabs) - 1, 0

    def _join(self, slab: int, start: int, end: int) -> None:
        i = bisect.bisect(self._free, (slab, start, end))
        if i < len(self._free) and self._free[i][:2] == (slab, end):
            end = self._free.pop(i)[2]
        if i and self._free[i - 1][0] == slab and self._free[i - 1][2] == start:
            i -= 1
            start = self._free.pop(i)[1]
        self._free.insert(i, (slab, start, end))


@contextmanager
def borrowed(arenas: list[Arena]) -> Iterator[Arena]:
    """One of these arenas, or a new one; back among them in the end unless it is large."""
    try:
        arena = arenas.pop()
    except IndexError:
        arena = Arena()
    yield arena
    if arena.size <= _KEPT:
        arenas.append(arena)


def on_disk(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor of zeros mapped to a file in :func:`folder`, which has no name and goes with the tensor."""
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    with tempfile.NamedTemporaryFile(dir=folder(), prefix="tpcompile-") as file:
        file.truncate(count * dtype.itemsize)
        return torch.from_file(file.name, shared=True, size=count, dtype=dtype).reshape(shape)


def folder() -> Path:
    """``TMPDIR`` where that is set; else a folder for temporary files on a disk."""
    if os.environ.get("TMPDIR") or not os.access(_PERSISTENT, os.W_OK):
        return Path(tempfile.gettempdir())
    return _PERSISTENT


def free_on_disk() -> float:
    """Bytes that the folder for temporary files has left."""
    return float(shutil.disk_usage(folder()).free)
