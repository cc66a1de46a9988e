"""Peak memory of an evaluation with its rows in memory and on disk, against the estimate. Prints a table.

Private memory (RssAnon of Linux) is what the bound is about: pages of a mapped file are given back when needed.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import tpcompile as tp
from tpcompile.evaluate.memory import need_per_particle
from tpcompile.evaluate.plan import Plan

DIMENSION = 8


def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Three hidden layers in muP, as SGD sees it: one learning rate on all weights."""

    class Scaled(nn.Module):
        def __init__(self, into: int, out: int, init: float, factor: float) -> None:
            super().__init__()
            self.weight, self.factor = nn.Parameter(torch.randn(out, into) * init), factor

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.factor * x @ self.weight.T

    model = nn.Sequential(
        *(Scaled(DIMENSION, n, n**-0.5, n**0.5), nn.Tanh(), Scaled(n, n, n**-0.5, 1.0), nn.Tanh()),
        *(Scaled(n, n, n**-0.5, 1.0), nn.Tanh(), Scaled(n, 1, n**-0.5, n**-0.5)),
    )
    return model, torch.optim.SGD(model.parameters(), lr=0.2)


def private() -> float:
    """Private resident memory of this process, GB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) * 1024 / 1e9


def one(steps: int, batch: int, particles: int, disk: bool) -> None:
    """Evaluate one replica; print estimate, peak, time, and a number to compare."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(batch, DIMENSION, generator=generator), torch.randn(batch, 1, generator=generator)
    compiled = tp.compile(make, x, y, F.mse_loss, steps=steps)
    need = need_per_particle(Plan.of(compiled.program), torch.float64)
    estimate = (need.values if disk else need.total) * particles
    start = peak = private()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.01):
            peak = max(peak, private())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    began = time.perf_counter()
    result = compiled.evaluate(particles=particles, replicas=1, memory=1e8 + estimate if disk else None)
    seconds = time.perf_counter() - began
    done.set()
    watcher.join()
    assert disk == ("are kept in" in result.why)
    print(f"{estimate / 1e9:9.2f} {peak - start:9.2f} {seconds:9.1f}   {float(result.outputs[-1, 0, 0])!r}")


def main() -> None:
    """Each case in a process of its own; on disk the bound is little more than what must be in memory."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=4)
    case = parser.parse_args().case
    if case:
        one(int(case[0]), int(case[1]), int(case[2]), case[3] == "disk")
        return
    print("steps batch particles rows in  estimate   peak GB   seconds   first output")
    for steps, batch, particles in ((20, 32, 8192), (50, 32, 8192)):
        for place in ("memory", "disk"):
            call = [sys.executable, __file__, "--case", str(steps), str(batch), str(particles), place]
            done = subprocess.run(call, capture_output=True, text=True)
            print(f"{steps:5} {batch:5} {particles:9} {place:7}", done.stdout or done.stderr, end="", flush=True)


if __name__ == "__main__":
    main()
