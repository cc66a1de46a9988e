"""Held-out loss and accuracy of CBOW Word2Vec: finite widths, the maximal update limit, and the kernel regime.

python tests/benchmarks/word2vec.py --out word2vec.md
"""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from published import HEADER, Scores, arguments, number, row, write
from torch import Tensor

import tpcompile as tp
from tpcompile.compiled import Compiled

import word2vec_cbow as example  # isort: skip  # found by the import of published


def compiled(lr: float, steps: int) -> Compiled:
    return tp.compile(
        lambda width: example.make(width, lr),
        example.inputs,
        example.targets,
        example.loss,
        steps=steps,
        test_inputs=example.test_inputs,
    )


def kernel_regime(lr: float, steps: int) -> tuple[Tensor, Tensor]:
    """Outputs ``(steps + 1, N, k)`` on training and test windows, trained with the fixed tangent kernel from zero."""
    kernel = tp.kernel(lambda width: example.make_ntk(width)[0], example.inputs[0])
    training = kernel.gradient_descent(
        example.inputs, example.targets, lr=lr, loss=example.loss, output_init="zero", outputs=(example.WORDS,)
    )
    every = range(steps + 1)
    train, test = (training.predict(x, t=every, covariance=None).mean for x in (None, example.test_inputs))
    return torch.as_tensor(train), torch.as_tensor(test)


def trained(width: int, lr: float, steps: int, seed: int) -> tuple[float, Tensor]:
    """Training loss, and outputs ``(1, N, k)`` on the test windows, of a network after the last step."""
    torch.manual_seed(seed)
    model, optimizer = example.make(width, lr)
    for _ in range(steps):
        optimizer.zero_grad()
        example.loss(model(example.inputs), example.targets).backward()
        optimizer.step()
    with torch.no_grad():
        return float(example.loss(model(example.inputs), example.targets)), model(example.test_inputs)[None]


def held_out(outputs: Tensor | None) -> Scores:
    """Cross-entropy and accuracy in per cent of the test windows at every step."""
    assert outputs is not None
    loss = torch.stack([F.cross_entropy(f.double(), example.test_targets) for f in outputs])
    return loss, 100 * (outputs.argmax(-1) == example.test_targets).double().mean(-1)


def table(rates: Sequence[float], steps: int, widths: Sequence[int], seeds: int) -> list[str]:
    lines = ["| model | lr | training loss | held-out loss | lowest held-out loss, step | seconds |", "|" + "---|" * 6]
    best: dict[str, tuple[float, float]] = {}
    rows = {}
    for lr in rates:
        for name in ("muP limit", "NTK limit"):
            began = time.perf_counter()
            if name == "muP limit":
                result = compiled(lr, steps).evaluate(evaluator="exact")
                assert result.loss is not None
                train, outputs = result.loss[-1], result.test_outputs
            else:
                fitted, outputs = kernel_regime(lr, steps)
                train = F.cross_entropy(fitted[-1], example.targets)
            loss, accuracy = held_out(outputs)
            low = int(loss.argmin())
            lines.append(
                f"| {name} | {lr:g} | {number(float(train))} | {number(float(loss[-1]))} |"
                f" {float(loss[low]):.4f}, {low} | {time.perf_counter() - began:.0f} |"
            )
            print(lines[-1], flush=True)
            if name not in best or float(loss[-1]) < best[name][0]:
                best[name] = float(loss[-1]), lr
                rows[name] = row(f"{name}, lr {lr:g}", [(loss, accuracy)], [float(train)])
    lines += ["", f"{steps} steps, {seeds} seeds a width; ± is one standard error.", "", *HEADER]
    lr = best["muP limit"][1]
    for width in widths:
        runs = [trained(width, lr, steps, seed) for seed in range(seeds)]
        lines.append(row(f"muP, width {width}, lr {lr:g}", [held_out(f) for _, f in runs], [loss for loss, _ in runs]))
        print(lines[-1], flush=True)
    return [*lines, *rows.values()]


def main() -> None:
    parser = arguments(__doc__, rates=[8.0, 12.0, 32.0, 128.0], steps=40, widths=[16, 64, 256, 1024], seeds=8)
    options = parser.parse_args()
    write(table(options.rates, options.steps, options.widths, options.seeds), options.out)


if __name__ == "__main__":
    main()
