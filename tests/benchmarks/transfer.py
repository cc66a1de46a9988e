"""Best learning rate against the width: rules of ``tp.mup`` beside the standard parametrization.

    python tests/benchmarks/transfer.py [--quick] [--only digits] [--out transfer.png] [--save transfer.json]

Two tasks that need no download: handwritten digits (scikit-learn's) with a residual network, and the next character of
the source of Python's ``argparse`` from the eight before it. Both are trained with Adam; the rules are derived from
the very models that are trained, with ``base_width`` 128, where the two parametrizations are the same network.
The score is the mean training loss of the last steps, averaged over seeds; the best rate is the vertex of a parabola
through the logarithm of the score at the best rate of the grid and its neighbours.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor, nn

import tpcompile as tp

BASE = 128
CONTEXT = 8


class Residual(nn.Module):
    """Blocks ``h + W2 gelu(W1 LayerNorm(h))`` between a first layer and a readout."""

    def __init__(self, first: nn.Module, width: int, outputs: int) -> None:
        super().__init__()
        self.first = first
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.up = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.down = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.readout = nn.Linear(width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        for norm, up, down in zip(self.norms, self.up, self.down, strict=True):
            h = h + down(F.gelu(up(norm(h))))
        return self.readout(h)


class Characters(nn.Module):
    """One table of vectors for each position of the context, summed."""

    def __init__(self, width: int, alphabet: int) -> None:
        super().__init__()
        self.table = nn.Embedding(CONTEXT * alphabet, width)
        self.alphabet = alphabet

    def forward(self, x: Tensor) -> Tensor:
        return self.table(x + torch.arange(CONTEXT) * self.alphabet).sum(1) / CONTEXT**0.5


@dataclass(frozen=True)
class Task:
    """A data set and the model for it."""

    name: str
    inputs: Tensor
    targets: Tensor
    model: Callable[[int], nn.Module]
    steps: int
    batch: int
    seeds: int

    def rules(self) -> tp.Rules:
        """The derived maximal update rules of this model with Adam."""

        def make(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
            model = self.model(width)
            return model, torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8 / width)

        return tp.mup(make, self.inputs[:3], self.targets[:3], F.cross_entropy)


def digits() -> Task:
    pixels, labels = load_digits(return_X_y=True)
    inputs, targets = torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)
    return Task("digits", inputs, targets, lambda n: Residual(nn.Linear(64, n), n, 10), steps=30, batch=128, seeds=5)


def characters() -> Task:
    text = Path(argparse.__file__).read_text()
    alphabet = sorted(set(text))
    codes = torch.tensor([alphabet.index(c) for c in text])
    size = len(alphabet)
    return Task(
        "characters of argparse.py", codes.unfold(0, CONTEXT, 1)[:-1], codes[CONTEXT:],
        lambda n: Residual(Characters(n, size), n, size), steps=150, batch=128, seeds=2,
    )  # fmt: skip


def score(task: Task, width: int, lr: float, rules: tp.Rules | None, seed: int) -> float:
    """Mean training loss of the last fifth of the steps; inf where training diverges."""
    torch.manual_seed(seed)
    model = task.model(width)
    if rules is None:
        optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    else:
        rules.apply_init_(model, base_width=BASE)
        optimizer = torch.optim.Adam(rules.param_groups(model, lr=lr, base_width=BASE, eps=1e-8))
    order = torch.Generator().manual_seed(seed)
    losses = []
    for _ in range(task.steps):
        rows = torch.randint(len(task.inputs), (task.batch,), generator=order)
        loss = F.cross_entropy(model(task.inputs[rows]), task.targets[rows])
        if not math.isfinite(loss.item()):
            return math.inf
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    last = losses[-(task.steps // 5) :]
    return sum(last) / len(last)


def best(rates: Sequence[float], scores: Sequence[float]) -> float:
    """The vertex of the parabola through the lowest point and its neighbours, in logarithms."""
    i = min(range(len(scores)), key=lambda k: scores[k])
    if i in (0, len(rates) - 1) or not all(math.isfinite(scores[k]) for k in (i - 1, i + 1)):
        return rates[i]
    a, b, c = (math.log(scores[k]) for k in (i - 1, i, i + 1))
    return rates[i] * (rates[i + 1] / rates[i]) ** (0.5 * (a - c) / (a - 2 * b + c))


Scores = dict[str, dict[str, list[float]]]  # by parametrization and width, one for each rate


def measured(task: Task, widths: Sequence[int], rates: Sequence[float], seeds: int | None = None) -> Scores:
    """Scores of a task."""
    rules = task.rules()
    print(rules, flush=True)
    found: Scores = {"standard": {}, "maximal update": {}}
    for kind, used in (("standard", None), ("maximal update", rules)):
        for width in widths:
            count = seeds or task.seeds
            scores = [sum(score(task, width, lr, used, s) for s in range(count)) / count for lr in rates]
            found[kind][str(width)] = scores
            print(f"{task.name}, {kind}, {width}: best rate {best(rates, scores):.2e}", *map("{:.3f}".format, scores))
    return found


def draw(results: dict[str, Scores], rates: Sequence[float], path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained", facecolor="white")
    axes = figure.subplots(len(results), 2, sharex=True, sharey="row", squeeze=False)
    for row, (name, kinds) in zip(axes, results.items(), strict=True):
        for axis, (kind, by_width) in zip(row, kinds.items(), strict=True):
            for i, (width, scores) in enumerate(by_width.items()):
                colour = colormaps["viridis"](i / max(len(by_width), 1))
                axis.plot(rates, scores, color=colour, marker="o", markersize=3, label=width)
                axis.axvline(best(rates, scores), color=colour, linestyle=":", linewidth=1)
            axis.set(xscale="log", yscale="log", title=f"{name}: {kind}", xlabel="learning rate at width 128")
        lowest = min(min(s) for by_width in kinds.values() for s in by_width.values())
        row[0].set(ylabel="training loss", ylim=(lowest * 0.8, 5))
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, title="width", frameon=False, loc="outside right center")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small widths, one seed")
    parser.add_argument("--only", default="", help="tasks whose name has this in it")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--save", type=Path, default=None)
    chosen = parser.parse_args()
    widths, seeds = ((32, 64), 1) if chosen.quick else ((128, 256, 512, 1024), None)
    rates = [2.0**-k for k in range(14, 4, -1)]
    tasks = [task for task in (digits(), characters()) if chosen.only in task.name]
    results = {task.name: measured(task, widths, rates, seeds) for task in tasks}
    print(f"\n{'task':28}{'parametrization':18}" + "".join(f"{w:>10}" for w in widths) + "   last / first")
    for name, kinds in results.items():
        for kind, by_width in kinds.items():
            found = [best(rates, scores) for scores in by_width.values()]
            print(f"{name:28}{kind:18}" + "".join(f"{r:10.2e}" for r in found) + f"   {found[-1] / found[0]:.2f}")
    if chosen.save is not None:
        chosen.save.write_text(json.dumps({"rates": rates, "results": results}, indent=1))
    if chosen.out is not None:
        draw(results, rates, chosen.out)


if __name__ == "__main__":
    main()
