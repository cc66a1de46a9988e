"""Held-out loss and accuracy of Word2Vec: finite widths, the maximal update limit, and the kernel limits.

python tests/benchmarks/word2vec.py --model cbow --out cbow.md
python tests/benchmarks/word2vec.py --model skipgram --out skipgram.md
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from published import HEADER, Scores, arguments, number, row, write
from torch import Tensor

import tpcompile as tp

import word2vec_cbow  # isort: skip  # found by the import of published
import word2vec_skipgram  # isort: skip


@dataclass(frozen=True)
class Task:
    """A model with its data: ``make(width, lr)`` and ``make_ntk(width)``, training and test inputs and targets."""

    example: Any
    data: tuple[Tensor, Tensor, Tensor, Tensor]
    shape: tuple[int, ...]  # of the outputs of one input
    answers: Tensor  # the index of the right output of every test input

    @property
    def loss(self) -> Callable[[Tensor, Tensor], Tensor]:
        return self.example.loss


def task(name: str) -> Task:
    if name == "cbow":
        data = word2vec_cbow.load_windows(train=512, test=512)
        return Task(word2vec_cbow, data, (word2vec_cbow.WORDS,), data[3])
    data = word2vec_skipgram.load_pairs(train=512, test=512)
    words = 1 + word2vec_skipgram.NEGATIVES
    return Task(word2vec_skipgram, data, (words,), torch.zeros(len(data[2]), dtype=torch.int64))


def mup_limit(task: Task, lr: float, steps: int) -> tuple[float, Tensor]:
    """Training loss after the last step, and outputs on the test inputs at every step."""
    inputs, targets, test_inputs, _ = task.data
    result = tp.compile(
        lambda width: task.example.make(width, lr), inputs, targets, task.loss, steps=steps, test_inputs=test_inputs
    ).evaluate(evaluator="exact")
    assert result.loss is not None
    assert result.test_outputs is not None
    return float(result.loss[-1]), result.test_outputs


def kernel_limit(task: Task, which: str) -> Callable[[Task, float, int], tuple[float, Tensor]]:
    """Gradient descent from zero with the tangent kernel, or ("nngp") with that of the readout learning alone."""
    kernel = tp.kernel(lambda width: task.example.make_ntk(width)[0], task.data[0][0])
    pairs = [kernel(x, task.data[0], which).double() for x in (task.data[0], task.data[2])]
    if pairs[0].ndim == 4:  # of outputs that differ: a matrix over inputs and outputs
        pairs = [k.transpose(1, 2).flatten(2).flatten(0, 1) for k in pairs]

    def limit(task: Task, lr: float, steps: int) -> tuple[float, Tensor]:
        targets = task.data[1].double() if task.data[1].is_floating_point() else task.data[1]
        train, test = (torch.zeros((len(x), *task.shape), dtype=torch.float64) for x in (task.data[0], task.data[2]))
        outputs = [test]
        for _ in range(steps):
            f = train.requires_grad_()
            (g,) = torch.autograd.grad(task.loss(f, targets), f)
            moves = [(k @ g.reshape(k.shape[1], -1)).reshape(-1, *task.shape) for k in pairs]
            train, test = f.detach() - lr * moves[0], test - lr * moves[1]
            outputs.append(test)
        return float(task.loss(train, targets)), torch.stack(outputs)

    return limit


def trained(task: Task, width: int, lr: float, steps: int, seed: int) -> tuple[float, Tensor]:
    """Training loss, and outputs ``(1, N, k)`` on the test inputs, of a network after the last step."""
    inputs, targets, test_inputs, _ = task.data
    torch.manual_seed(seed)
    model, optimizer = task.example.make(width, lr)
    for _ in range(steps):
        optimizer.zero_grad()
        task.loss(model(inputs), targets).backward()
        optimizer.step()
    with torch.no_grad():
        return float(task.loss(model(inputs), targets)), model(test_inputs)[None]


def scores(task: Task, outputs: Tensor) -> Scores:
    """Loss and accuracy on the test inputs at every step; of equal largest outputs one is chosen at random."""
    targets = task.data[3].double() if task.data[3].is_floating_point() else task.data[3]
    loss = torch.stack([task.loss(f.double(), targets) for f in outputs])
    largest = (outputs == outputs.amax(-1, keepdim=True)).double()
    chance = largest / largest.sum(-1, keepdim=True)
    places = task.answers[None, :, None].expand(len(outputs), -1, 1)
    return loss, 100 * chance.gather(-1, places).mean((-2, -1))


def table(task: Task, rates: Sequence[float], steps: int, widths: Sequence[int], seeds: int) -> list[str]:
    limits = {
        "muP limit": mup_limit,
        "NTK limit": kernel_limit(task, "ntk"),
        "NNGP limit": kernel_limit(task, "nngp"),
    }
    lines = ["| model | lr | training loss | held-out loss | lowest held-out loss, step | seconds |", "|" + "---|" * 6]
    best: dict[str, tuple[float, float]] = {}
    rows = {}
    for lr in rates:
        for name, limit in limits.items():
            began = time.perf_counter()
            train, outputs = limit(task, lr, steps)
            loss, accuracy = scores(task, outputs)
            low = int(loss.argmin())
            lines.append(
                f"| {name} | {lr:g} | {number(train)} | {number(float(loss[-1]))} |"
                f" {float(loss[low]):.4f}, {low} | {time.perf_counter() - began:.0f} |"
            )
            print(lines[-1], flush=True)
            if name not in best or float(loss[-1]) < best[name][0]:
                best[name] = float(loss[-1]), lr
                rows[name] = row(f"{name}, lr {lr:g}", [(loss, accuracy)], [train])
    lines += ["", f"{steps} steps, {seeds} seeds a width; ± is one standard error.", "", *HEADER]
    lr = best["muP limit"][1]
    for width in widths:
        runs = [trained(task, width, lr, steps, seed) for seed in range(seeds)]
        label = f"muP, width {width}, lr {lr:g}"
        lines.append(row(label, [scores(task, f) for _, f in runs], [loss for loss, _ in runs]))
        print(lines[-1], flush=True)
    return [*lines, *rows.values()]


def main() -> None:
    parser = arguments(__doc__, rates=[], steps=40, widths=[16, 64, 256, 1024], seeds=8)
    parser.add_argument("--model", choices=("cbow", "skipgram"), default="cbow")
    options = parser.parse_args()
    rates = options.rates or ([8.0, 12.0, 32.0, 128.0] if options.model == "cbow" else [40.0, 80.0, 160.0, 1280.0])
    write(table(task(options.model), rates, options.steps, options.widths, options.seeds), options.out)


if __name__ == "__main__":
    main()
