"""Where the long-lived rows of an evaluation are kept: in memory, or in files that the system pages in and out."""

from __future__ import annotations

import math
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

Allocate = Callable[[tuple[int, ...], torch.dtype], Tensor]
_PERSISTENT = Path("/var/tmp")  # /tmp may be kept in memory


def in_memory(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """An uninitialised tensor."""
    return torch.empty(shape, dtype=dtype)


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
