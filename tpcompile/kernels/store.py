"""``k.to_zarr``: kernel matrices larger than memory, block by block, taken up where they were left.

A store is a zarr group with the inputs (``x1``, ``x2``), an array for each kernel in chunks of one block, ``done`` (one
byte for each block, written after the block's chunks are), and attributes that say of what it is. It is self-contained:
a worker needs its path, the kernel's factory and the place of a block. Every block is computed on one thread, so that
its bits do not depend on who computes it.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.kernels.arrays import Array, Kernels
from tpcompile.kernels.extras import require
from tpcompile.kernels.plan import check_input

if TYPE_CHECKING:
    from tpcompile.kernels.kernel import Kernel

FORMAT = "tpcompile-kernel-1"
HASH_ROWS = 4096
Place = tuple[int, int]
Tick = Callable[[int, int], None]  # blocks done, and of how many


@dataclass(frozen=True)
class Job:
    """One matrix on disk: all that a block needs beside the kernel."""

    path: str
    get: str
    block: int
    symmetric: bool
    diagonal: bool
    shape: tuple[int, int]
    options: Mapping[str, Any]  # of the kernel's call

    @property
    def kernels(self) -> tuple[str, ...]:
        return ("nngp", "ntk") if self.get == "both" else (self.get,)

    def places(self) -> Iterator[Place]:
        """The blocks to compute: those on and above the diagonal where the matrix is symmetric."""
        rows, columns = self.grid
        for i in range(rows):
            for j in range(i if self.symmetric and not self.diagonal else 0, columns):
                yield i, j

    @property
    def grid(self) -> tuple[int, int]:
        """Number of blocks along rows and columns; a diagonal is one column of them."""
        rows, columns = (-(-n // self.block) for n in self.shape)
        return rows, 1 if self.diagonal else columns

    def cut(self, i: int) -> slice:
        return slice(i * self.block, (i + 1) * self.block)


def to_zarr(
    kernel: Kernel,
    x: Array,
    path: str | os.PathLike[str],
    x2: Array | None,
    get: str,
    block: int,
    diagonal: bool,
    client: Any,
    progress: bool | Tick,
    dtype: torch.dtype | None,
    options: Mapping[str, Any],
) -> Any:
    """See :meth:`tpcompile.Kernel.to_zarr`."""
    zarr = require("zarr", "scale")
    if get not in ("nngp", "ntk", "both"):
        raise UsageError(f"get must be 'nngp', 'ntk' or 'both', found {get!r}")
    if block < 1:
        raise UsageError(f"block must be at least 1, found {block}")
    if diagonal and x2 is not None:
        raise UsageError("a diagonal is of one set of inputs with itself, found x2 beside x")
    first, second = _rows(x, kernel, "x"), None if x2 is None else _rows(x2, kernel, "x2")
    sample = _tensor(first[:1])
    precision = dtype or (sample.dtype if sample.is_floating_point() else torch.get_default_dtype())
    n1, n2 = len(first), len(first if second is None else second)
    where = str(Path(path).absolute())
    variances = {name: float(value) for name, value in (options.get("variances") or {}).items()}
    kernel.check_variances(variances)
    chosen = dict(options) | {"dtype": precision, "variances": variances}
    job = Job(where, get, block, second is None, diagonal, (n1, n2), chosen)
    _create(zarr, kernel, job, first, second, precision)
    group = zarr.open_group(where, mode="r+")
    done = group["done"][...]
    left = [place for place in job.places() if not done[place]]
    total = sum(1 for _ in job.places())
    work = _cluster if client is not None else _threads
    with _tick(progress, total, total - len(left)) as tick:
        for _ in work(kernel, job, left, client):
            tick()
    found = [group[name] for name in job.kernels]
    return Kernels(*found) if get == "both" else found[0]


@contextmanager
def _tick(progress: bool | Tick, total: int, done: int) -> Iterator[Callable[[], None]]:
    """Called after each block: the user's function, or a progress bar where stderr is a terminal."""
    count = done

    def step() -> None:
        nonlocal count
        count += 1
        shown(count, total)

    if callable(progress):
        shown = progress
        yield step
    elif progress and sys.stderr.isatty():
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn

        columns = (*Progress.get_default_columns()[:-1], MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task("kernel blocks", total=total, completed=done)
            shown = lambda count, _: bar.update(task, completed=count)
            yield step
    else:
        yield lambda: None


# blocks ------------------------------------------------------------------------------------


def compute_block(kernel: Kernel, job: Job, place: Place) -> Place:
    """Compute one block and write it, with its mirror image, and last the mark that it is complete.

    The thread that calls it has torch use one thread.
    """
    zarr = require("zarr", "scale")
    group = zarr.open_group(job.path, mode="r+")
    i, j = place
    rows, columns = job.cut(i), job.cut(j)
    x1 = _tensor(group["x1"][rows])
    own = job.diagonal or (job.symmetric and i == j)
    x2 = None if own else _tensor(group["x1" if job.symmetric else "x2"][columns])
    with torch.no_grad():
        found = kernel(x1, x2, job.get, diagonal=job.diagonal, **job.options)
    for name, value in zip(job.kernels, found if job.get == "both" else (found,), strict=True):
        if job.diagonal:
            group[name][rows] = value.numpy()
            continue
        group[name][rows, columns] = value.numpy()
        if job.symmetric and not own:
            half = (value.dim() - 2) // 2
            swapped = value.permute(1, 0, *range(2 + half, 2 + 2 * half), *range(2, 2 + half))
            group[name][columns, rows] = swapped.numpy()
    group["done"][i, j] = 1
    return place


def _threads(kernel: Kernel, job: Job, places: list[Place], _: Any) -> Iterator[Place]:
    count = torch.get_num_threads()
    _plan(kernel, job)
    pool = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield from pool.map(lambda place: compute_block(kernel, job, place), places)
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(count)


def _plan(kernel: Kernel, job: Job) -> None:
    """What is planned at first use, before several threads ask for it."""
    for name in job.kernels:
        kernel.pairs(name)


# a cluster ---------------------------------------------------------------------------------

_KEPT = 4
_kernels: OrderedDict[str, Any] = OrderedDict()  # of a worker process, by what they are made of
_lock = Lock()


def _remote(payload: bytes, job: Job, place: Place) -> Place:
    """One block in a worker process, where the kernel is compiled once."""
    key = hashlib.sha256(payload).hexdigest()
    torch.set_num_threads(1)
    with _lock:
        if key not in _kernels:
            from cloudpickle import loads

            from tpcompile.kernels.uses import rebuilt

            _kernels[key] = rebuilt(*loads(payload))
            while len(_kernels) > _KEPT:
                _kernels.popitem(last=False)
        kernel = _kernels[key]
        _plan(kernel, job)
    return compute_block(kernel, job, place)


def _cluster(kernel: Kernel, job: Job, places: list[Place], client: Any) -> Iterator[Place]:
    distributed = require("distributed", "scale")
    cloudpickle = require("cloudpickle", "scale")
    try:
        payload = cloudpickle.dumps(kernel.arguments)
    except Exception as error:
        raise UsageError(
            f"the factory cannot be sent to workers ({error})", advice="define it at the top of an importable module"
        ) from error
    futures = [client.submit(_remote, payload, job, place, pure=False) for place in places]
    try:
        for _, place in distributed.as_completed(futures, with_results=True):
            yield place
    finally:
        client.cancel(futures)


# the store ---------------------------------------------------------------------------------


def _create(zarr: Any, kernel: Kernel, job: Job, x1: Any, x2: Any, dtype: torch.dtype) -> None:
    """A new store, or the one that is there if it is of the same matrix."""
    made_of = manifest(kernel, job, x1, x2)
    if os.path.exists(job.path) and (not os.path.isdir(job.path) or os.listdir(job.path)):
        try:
            found = dict(zarr.open_group(job.path, mode="r").attrs).get("tpcompile")
        except Exception as error:
            raise UsageError(f"{job.path} exists and is no zarr group") from error
        if found is None:
            raise UsageError(f"{job.path} exists and is no kernel matrix of tpcompile", advice="choose another path")
        different = [name for name, value in made_of.items() if found.get(name) != value]
        if different:
            raise UsageError(
                f"{job.path} is another kernel matrix: {', '.join(different)} differ",
                advice="choose another path, or delete it",
            )
        if "done" in zarr.open_group(job.path, mode="r"):
            return
    group = zarr.open_group(job.path, mode="a", attributes={"tpcompile": made_of})
    _write_inputs(group, "x1", x1, job.block)
    if x2 is not None:
        _write_inputs(group, "x2", x2, job.block)
    kind = str(dtype).removeprefix("torch.")
    for name in job.kernels:
        positions = kernel.pairs(name).positions
        shape = job.shape[:1] if job.diagonal else job.shape
        group.create_array(
            name,
            shape=(*shape, *positions, *positions),
            chunks=(*(min(job.block, n) for n in shape), *positions, *positions),
            dtype=kind,
            fill_value=float("nan"),
            overwrite=True,
        )
    # last: a store without it is begun anew
    group.create_array(
        "done", shape=job.grid, chunks=(1, 1), dtype="uint8", fill_value=0, compressors=None, overwrite=True
    )


def manifest(kernel: Kernel, job: Job, x1: Any, x2: Any) -> dict[str, Any]:
    """What a store is of, as JSON: hashes of the inputs and of the program, and all options that decide its values."""
    import tpcompile

    others = {name: value for name, value in job.options.items() if name not in ("variances", "dtype")}
    return {
        "format": FORMAT,
        "tpcompile": tpcompile.__version__,
        "inputs": _digest(x1),
        "inputs2": None if x2 is None else _digest(x2),
        "program": program_digest(kernel, job.get),
        "get": job.get,
        "dtype": str(job.options["dtype"]).removeprefix("torch."),
        "block": job.block,
        "diagonal": job.diagonal,
        "variances": job.options["variances"],
        "options": others,
    }


def program_digest(kernel: Kernel, get: str) -> str:
    """A hash of the program behind a kernel, without the places in the user's files."""
    lines = str(kernel.program_of(get)).splitlines()
    text = "\n".join(re.sub(r" @ .*$", "", line) for line in lines)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(x: Any) -> str:
    found = hashlib.sha256(repr((tuple(x.shape), str(_tensor(x[:1]).dtype))).encode())
    for i in range(0, len(x), HASH_ROWS):
        found.update(_tensor(x[i : i + HASH_ROWS]).numpy().tobytes())
    return found.hexdigest()


def _write_inputs(group: Any, name: str, x: Any, block: int) -> None:
    kind = str(_tensor(x[:1]).dtype).removeprefix("torch.")
    chunks = (min(block, len(x)), *x.shape[1:])
    array = group.create_array(name, shape=x.shape, chunks=chunks, dtype=kind, overwrite=True)
    for i in range(0, len(x), block):
        array[i : i + block] = _tensor(x[i : i + block]).numpy()


def _rows(x: Any, kernel: Kernel, name: str) -> Any:
    """Inputs that can be cut: a tensor, an array, a memory map or an array on disk. Every part is checked."""
    if not hasattr(x, "shape") or not hasattr(x, "__getitem__") or len(x.shape) == 0 or x.shape[0] == 0:
        raise UsageError(f"{name} must be a batch of inputs, found {type(x).__name__}")
    for i in range(0, x.shape[0], HASH_ROWS):
        check_input(_tensor(x[i : i + HASH_ROWS]), kernel.example, name)
    return x


def _tensor(x: Any) -> Tensor:
    """Rows as a tensor in torch's own memory: its alignment may decide the last bits of what is computed from them."""
    return x.detach() if isinstance(x, Tensor) else torch.from_numpy(np.array(x, order="C")).clone()
