"""First-order MAML on tasks of unseen digits: finite widths, the maximal update limit, and the kernel limits.

python tests/benchmarks/maml.py --out maml.md
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from published import HEADER, Scores, arguments, number, row, write
from torch import Tensor, nn

import tpcompile as tp

import maml_digits as example  # isort: skip  # found by the import of published

S, P = example.WAYS, example.PIXELS  # images of the support, pixels
TEST, TEST_TARGETS = example.draw_tasks(example.TEST_DIGITS, count=200, seed=1)

Limit = Callable[[float, float, int], tuple[float, Scores]]
"""From outer and inner rate and steps to the training loss after the last step and the held-out scores of every one."""


class Network(nn.Module):
    """The network of a task without its adaptation, in the NTK parametrization."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.readout = nn.Linear(P, width, bias=False), nn.Linear(width, example.WAYS, bias=False)
        self.multiplier = width**-0.5
        for layer in (self.hidden, self.readout):
            nn.init.normal_(layer.weight)

    def forward(self, images: Tensor) -> Tensor:
        return self.multiplier * self.readout(self.hidden(images))


def mup_limit(lr: float, inner_lr: float, steps: int) -> tuple[float, Scores]:
    result = tp.compile(
        lambda width: example.make(width, lr, inner_lr),
        example.inputs,
        example.targets,
        example.loss,
        steps=steps,
        test_inputs=TEST,
    ).evaluate(evaluator="exact")
    assert result.loss is not None
    assert result.test_outputs is not None
    shape = (-1, *TEST_TARGETS.shape[:1], example.WAYS, *TEST_TARGETS.shape[1:])
    return float(result.loss[-1]), scores(result.test_outputs.reshape(shape))


def kernel_limit(which: str) -> Limit:
    """First-order MAML with a fixed kernel ("ntk", or "nngp" where only the readout learns), from a zero function."""
    kernel = tp.kernel(Network, torch.zeros(P))
    train, test = (x[..., :P].double() for x in (example.inputs, TEST))
    with_queries = [kernel(x.flatten(0, 1), train[:, S:].flatten(0, 1), which) for x in (train, test)]
    within = [torch.stack([kernel(x[S:], x[:S], which) for x in tasks]) for tasks in (train, test)]

    def limit(lr: float, inner_lr: float, steps: int) -> tuple[float, Scores]:
        return kernel_regime(
            example.inputs, example.targets, TEST, within, with_queries, lr=lr, inner_lr=inner_lr, steps=steps
        )

    return limit


def kernel_regime(
    inputs: Tensor,
    targets: Tensor,
    test: Tensor,
    within: Sequence[Tensor],
    with_queries: Sequence[Tensor],
    *,
    lr: float,
    inner_lr: float,
    steps: int,
) -> tuple[float, Scores]:
    """The outputs under gradient steps, inner and outer, that move them by the kernel.

    ``within`` are the kernels of queries with the support, ``(tasks, queries, support)``, and ``with_queries`` those
    of all items with all training queries, of the training tasks and of the test tasks.
    """
    functions = [torch.zeros(*x.shape[:2], example.WAYS, dtype=torch.float64) for x in (inputs, test)]
    labels = [x[:, :S, P:].double() for x in (inputs, test)]
    found, fit = [], 0.0
    for step in range(steps + 1):
        adapted = []
        for f, y, k in zip(functions, labels, within, strict=True):
            adapted.append(f[:, S:] - inner_lr * k @ (f[:, :S].softmax(-1) - y) / S)
        found.append(adapted[1].mT)
        fit = float(F.cross_entropy(adapted[0].mT, targets))
        if step < steps:
            residual = adapted[0].softmax(-1) - F.one_hot(targets, example.WAYS)
            moves = [k @ residual.flatten(0, 1) / targets.numel() for k in with_queries]
            functions = [f - lr * m.reshape(f.shape) for f, m in zip(functions, moves, strict=True)]
    return fit, scores(torch.stack(found))


def scores(outputs: Tensor) -> Scores:
    loss = torch.stack([F.cross_entropy(f, TEST_TARGETS) for f in outputs])
    return loss, 100 * (outputs.argmax(-2) == TEST_TARGETS).double().mean((-2, -1))


def trained(width: int, lr: float, inner_lr: float, steps: int, seed: int) -> tuple[float, Scores]:
    torch.manual_seed(seed)
    model, optimizer = example.make(width, lr, inner_lr)
    for _ in range(steps):
        optimizer.zero_grad()
        example.loss(model(example.inputs), example.targets).backward()
        optimizer.step()
    with torch.no_grad():
        fit = float(example.loss(model(example.inputs), example.targets))
        return fit, scores(torch.cat([model(x) for x in TEST.split(50)])[None])


def table(
    rates: Sequence[float], inner_rates: Sequence[float], steps: int, widths: Sequence[int], seeds: int
) -> list[str]:
    limits: dict[str, Limit] = {
        "muP limit": mup_limit,
        "NTK limit": kernel_limit("ntk"),
        "NNGP limit": kernel_limit("nngp"),
    }
    titles = ("model", "lr", "inner lr", "training loss", "held-out loss", "held-out accuracy, %", "seconds")
    lines = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    best: dict[str, tuple[float, float, float]] = {}
    rows: dict[str, str] = {}
    for inner_lr, lr in itertools.product(inner_rates, rates):
        for name, limit in limits.items():
            began = time.perf_counter()
            fit, (loss, accuracy) = limit(lr, inner_lr, steps)
            seconds = time.perf_counter() - began
            lines.append(
                f"| {name} | {lr:g} | {inner_lr:g} | {number(fit)} | {number(float(loss[-1]))} |"
                f" {float(accuracy[-1]):.2f} | {seconds:.0f} |"
            )
            print(lines[-1], flush=True)
            if name not in best or float(accuracy[-1]) > best[name][0]:
                best[name] = float(accuracy[-1]), lr, inner_lr
                rows[name] = row(f"{name}, lr {lr:g} and {inner_lr:g}", [(loss, accuracy)], [fit])
    lines += ["", f"{steps} steps, {seeds} seeds a width; ± is one standard error.", "", *HEADER]
    for width in widths:
        tried = {
            (lr, inner): trained(width, lr, inner, steps, seed=0) for inner, lr in itertools.product(inner_rates, rates)
        }
        lr, inner = max(tried, key=lambda pair: float(tried[pair][1][1][-1]))
        runs = [tried[lr, inner], *(trained(width, lr, inner, steps, seed) for seed in range(1, seeds))]
        label = f"muP, width {width}, lr {lr:g} and {inner:g}"
        lines.append(row(label, [found for _, found in runs], [fit for fit, _ in runs]))
        print(lines[-1], flush=True)
    return [*lines, *rows.values()]


def main() -> None:
    parser = arguments(__doc__, rates=[0.03, 0.1, 0.3], steps=100, widths=[8, 32, 128, 512], seeds=8)
    parser.add_argument("--inner-rates", type=float, nargs="+", default=[10.0, 30.0, 100.0])
    options = parser.parse_args()
    write(table(options.rates, options.inner_rates, options.steps, options.widths, options.seeds), options.out)


if __name__ == "__main__":
    main()
