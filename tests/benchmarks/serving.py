"""Timings and peak memory of kernels in a process of its own, asked for by lines of JSON. Needs NumPy only."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.random  # which NumPy imports at its first use: imports are no part of a first call


@dataclass(frozen=True)
class Request:
    """Kernels ``get`` ("nngp", "ntk" or "both") of a model on random inputs; ``columns`` None is symmetric."""

    spec: str  # as repr, which keeps tuples
    shape: tuple[int, ...]
    rows: int
    columns: int | None
    dtype: str
    get: str

    @property
    def layers(self) -> list[tuple[Any, ...]]:
        from ast import literal_eval

        return literal_eval(self.spec)

    def inputs(self) -> tuple[np.ndarray, np.ndarray | None]:
        """Normal inputs."""
        generator = np.random.default_rng(0)
        counts = [self.rows, self.columns]
        first, second = (None if n is None else generator.normal(size=(n, *self.shape)) for n in counts)
        assert first is not None
        return first.astype(self.dtype), None if second is None else second.astype(self.dtype)


def serve(prepare: Callable[[Request], Callable[[], Any]]) -> None:
    """Answer requests until the input ends.

    A request makes the kernels and computes them once; the answer is the time of both, that of the first call. The line
    "run" computes them again; the answer is the time, that of all threads on the processor, and the peak of resident
    memory above what was there before.
    """
    run: Callable[[], Any] = lambda: None
    for line in sys.stdin:
        if line.strip() == "run":
            before = _resident("VmRSS", reset=True)
            start, busy = time.perf_counter(), time.process_time()
            value = run()
            answer = {"seconds": time.perf_counter() - start, "processor": time.process_time() - busy}
            answer["megabytes"] = (_resident("VmHWM") - before) / 1e3
            del value
        else:
            request = json.loads(line)
            request["shape"] = tuple(request["shape"])
            start = time.perf_counter()
            run = prepare(Request(**request))
            run()
            answer = {"seconds": time.perf_counter() - start}
        print("answer", json.dumps(answer), flush=True)


def _resident(key: str, reset: bool = False) -> float:
    """Resident memory in kilobytes, now or at its peak since the last reset (Linux)."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return float(line.split()[1])
