"""n times the variance of finite networks over seeds, against its limit: ratios that tend to one.

python tests/benchmarks/fluctuations.py --out fluctuations.md
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from over_seeds import trained
from test_fluctuations import CASES, TEST, X, Y

import tpcompile as tp


def line(name: str, targets: torch.Tensor, steps: int, widths: list[int], seeds: int, particles: int) -> str:
    """Variances added up over the inputs, after the last step; ± is one standard error."""
    began = time.process_time()
    compiled = tp.compile(CASES[name], X, targets, F.mse_loss, steps=steps, test_inputs=TEST)
    found = compiled.fluctuations(particles)
    seconds = time.process_time() - began
    limit, error = (float(x[-1].trace()) for x in (found.outputs_cov, found.outputs_cov_stderr))
    cells = []
    for width in widths:
        outputs = trained(CASES[name], X, targets, TEST, steps=steps, width=width, seeds=seeds)[:, -1, : len(X)]
        squares = width * (outputs - outputs.mean(0)).square().sum(1) * seeds / (seeds - 1)
        cells.append(f"{float(squares.mean()) / limit:.3f} ± {float(squares.std()) / seeds**0.5 / limit:.3f}")
    shown = name if bool(targets.any()) else f"{name}, targets 0"
    return f"| {shown} | {limit:.4f} ± {error:.4f} | {' | '.join(cells)} | {seconds:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--widths", type=int, nargs="+", default=[64, 256, 1024])
    parser.add_argument("--seeds", type=int, default=2000)
    parser.add_argument("--particles", type=int, default=2**13)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    lines = [f"| network | limit | {' | '.join(f'width {n}' for n in options.widths)} | seconds |"]
    lines.append("|---" * (3 + len(options.widths)) + "|")
    for name, targets in [*((name, Y) for name in CASES), ("linear", torch.zeros_like(Y))]:
        lines.append(line(name, targets, options.steps, options.widths, options.seeds, options.particles))
        print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
