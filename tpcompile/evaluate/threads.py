"""Independent runs side by side, on threads: torch leaves the interpreter during its operations."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

import torch

T = TypeVar("T")
Tick = Callable[[int, int], None]


def side_by_side(
    job: Callable[[int, Callable[[int], None]], T], count: int, workers: int, length: int, tick: Tick | None
) -> list[T]:
    """Results of ``job(index, progress)`` for every index, in order.

    With several workers each job has one thread, so that its result depends on the number of threads no more than on
    the order in which the jobs end. ``progress(i)`` says that a job is at step i of ``length``; ``tick(done, total)``
    gets the sum.
    """
    reached = [0] * count
    lock = Lock()

    def run(index: int) -> T:
        def progress(i: int) -> None:
            if tick is not None:
                with lock:
                    reached[index] = max(reached[index], min(i, length))
                    tick(sum(reached), count * length)

        result = job(index, progress)
        progress(length)
        return result

    if workers < 2:
        return [run(index) for index in range(count)]
    with single_threaded(), ThreadPoolExecutor(workers) as pool:
        return list(pool.map(run, range(count)))


@contextmanager
def single_threaded() -> Iterator[None]:
    """Operations of torch use one thread each; new threads take this over."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
