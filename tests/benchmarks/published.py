"""What the tables of published limits have in common: a line a model, held-out numbers with their errors."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

EXAMPLES = Path(__file__).parents[2] / "examples"
sys.path.insert(0, str(EXAMPLES))

HEADER = ["| model | training loss | held-out loss | held-out accuracy, % |", "|---|---|---|---|"]

Scores = tuple[Tensor, Tensor]
"""Held-out loss and accuracy in per cent at every step."""


def number(loss: float) -> str:
    return f"{loss:.4f}" if loss < 100 else "diverges"


def row(name: str, runs: Sequence[Scores], train: Sequence[float]) -> str:
    """Mean and its standard error over the runs, at the last step."""

    def cell(values: Sequence[float], digits: int) -> str:
        x = torch.tensor(values)
        if digits == 4 and not float(x.mean()) < 100:
            return "diverges"
        error = f" ± {float(x.std()) / len(x) ** 0.5:.{digits}f}" if len(x) > 1 else ""
        return f"{float(x.mean()):.{digits}f}{error}"

    losses, accuracies = ([float(r[i][-1]) for r in runs] for i in (0, 1))
    return f"| {name} | {cell(train, 4)} | {cell(losses, 4)} | {cell(accuracies, 2)} |"


def arguments(
    description: str | None, *, rates: Sequence[float], steps: int, widths: Sequence[int], seeds: int
) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rates", type=float, nargs="+", default=list(rates))
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--widths", type=int, nargs="+", default=list(widths))
    parser.add_argument("--seeds", type=int, default=seeds)
    parser.add_argument("--out", type=Path)
    return parser


def write(lines: Sequence[str], out: Path | None) -> None:
    text = "\n".join(lines) + "\n"
    if out:
        out.write_text(text)
    print(text)
