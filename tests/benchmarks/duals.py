"""Time of expectations over all pairs of N inputs, in milliseconds per million pairs, on one core.

python tests/benchmarks/duals.py [--inputs 500]
"""

from __future__ import annotations

import argparse
import time

import torch
from torch import Tensor

from tpcompile.evaluate.duals import Factor, Pair, dual, together

NAMES = ("relu", "abs", "erf", "gelu", "sin", "hardtanh", "elu", "tanh", "sigmoid", "silu", "softplus")


def factor(name: str, order: int = 0) -> Factor:
    return Factor(((name, order, ()),))


def gram(inputs: int, dtype: torch.dtype) -> Tensor:
    """Covariances of normal inputs, of variances about one."""
    x = torch.randn(inputs, 30, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return x @ x.T / 30


def milliseconds(name: str, cov: Tensor) -> tuple[str, float, float]:
    """Form, and time of the kernel's and of both kernel's and tangent kernel's expectations, per million pairs."""
    var = cov.diagonal().clone()
    hows = [dual(factor(name, order), factor(name, order)) for order in (0, 1)]
    times = []
    for chosen in (hows[:1], hows):
        runs = []
        for _ in range(3):
            start = time.perf_counter()
            together(chosen, Pair(cov, var[:, None], var[None]))
            runs.append(time.perf_counter() - start)
        times.append(min(runs) * 1e9 / cov.numel())
    return hows[0].form, times[0], times[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=500)
    inputs = parser.parse_args().inputs
    torch.set_num_threads(1)
    print("| function | computed | E f f, float64 | with E f' f' | E f f, float32 | with E f' f' |")
    print("|---|---|---|---|---|---|")
    for name in NAMES:
        form, value, both = milliseconds(name, gram(inputs, torch.float64))
        _, value32, both32 = milliseconds(name, gram(inputs, torch.float32))
        print(f"| `{name}` | {form} | {value:.1f} | {both:.1f} | {value32:.1f} | {both32:.1f} |")


if __name__ == "__main__":
    main()
