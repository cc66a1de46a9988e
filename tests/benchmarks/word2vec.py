"""Word2Vec on a whole text: word analogies and held-out loss of finite widths, of their limit, and of its kernels.

python tests/benchmarks/word2vec.py --model skip-gram --out skip-gram.md
python tests/benchmarks/word2vec.py --model sampling --out sampling.md
python tests/benchmarks/word2vec.py --model cbow --out cbow.md
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from published import arguments, number, write
from torch import Tensor

import tpcompile as tp
from tpcompile.errors import EvaluationError

import word2vec_analogies as example  # isort: skip  # found by the import of published

MODELS = {
    "skip-gram": (384, example.skip_gram, example.softmax_loss, [15.0, 30.0, 60.0, 120.0]),
    "sampling": (384, example.skip_gram, example.sampling_loss, [7.5, 15.0, 30.0, 60.0]),
    "cbow": (256, example.bag_of_words, example.softmax_loss, [7.5, 15.0, 30.0, 60.0]),
}
KERNEL_RATES = [100.0 * 10 ** (i / 2) for i in range(5)]
FIFTH = 5  # every so manieth file is held out

HEADER = [
    "| model | rate | training loss | held-out loss | held-out accuracy, % | analogies, % |",
    "|---|---|---|---|---|---|",
]


@dataclass(frozen=True)
class Outcome:
    """What a trained model is worth; losses, and accuracies in per cent."""

    fit: float
    loss: float
    accuracy: float
    analogies: float


@dataclass(frozen=True)
class Task:
    """A text with its losses on the training and on the held-out part."""

    words: int
    train: example.Loss
    test: example.Loss
    held_out: example.Corpus
    asked: Tensor
    rates: list[float]

    def outcome(self, scores: Tensor, gram: Tensor) -> Outcome:
        """By the scores of all words, and the Gram matrix of their embeddings."""
        if not bool(torch.isfinite(scores).all()):
            return Outcome(math.inf, math.inf, 0.0, 0.0)
        words = torch.arange(self.words)
        shares = self.held_out.shares
        best = scores[self.held_out.contexts].mean(1).argmax(1, keepdim=True)
        fit, loss = (float(loss(scores, words)) for loss in (self.train, self.test))
        accuracy = 100 * float(shares.gather(1, best).sum())
        return Outcome(fit, loss, accuracy, example.analogies(gram, self.asked))


def task(name: str) -> Task:
    words, corpus, loss, rates = MODELS[name]
    text = example.load_text()
    known = example.vocabulary(text, words)
    keep = example.kept(text, known)
    train, test = (
        corpus([file for i, file in enumerate(text) if (i % FIFTH == 0) == held_out], known, keep)
        for held_out in (False, True)
    )
    asked = example.questions(known)
    print({kind: len(q) for kind, q in asked.items()}, len(train.contexts), len(test.contexts), flush=True)
    return Task(words, loss(train), loss(test), test, torch.cat(list(asked.values())), rates)


def mup_limit(task: Task, lr: float, steps: int) -> Outcome:
    words = torch.arange(task.words)
    compiled = tp.compile(lambda width: example.make(width, lr, task.words), words, words, task.train, steps=steps)
    try:
        result = compiled.evaluate(evaluator="exact")
    except EvaluationError:  # not finite
        return task.outcome(torch.full((task.words, task.words), torch.inf), torch.eye(task.words))
    return task.outcome(result.outputs[-1], result.feature_kernel("embedding")[-1])


def kernel_limit(task: Task, which: str) -> Callable[[Task, float, int], Outcome]:
    """Gradient descent with a fixed kernel ("ntk", or "nngp" where only the readout learns), from zero scores.

    The embeddings stay as they are at the start: their Gram matrix is that of the features.
    """
    words = torch.arange(task.words)
    kernel = tp.kernel(lambda width: example.make_ntk(width, words=task.words)[0], words[0])
    matrix, gram = kernel(words, None, which).double(), kernel.nngp(words).double()

    def limit(task: Task, lr: float, steps: int) -> Outcome:
        scores = torch.zeros(task.words, task.words, dtype=torch.float64)
        for _ in range(steps):
            scores.requires_grad_()
            (slope,) = torch.autograd.grad(task.train(scores, words), scores)
            scores = scores.detach() - lr * matrix @ slope
        return task.outcome(scores, gram)

    return limit


def trained(task: Task, width: int, lr: float, steps: int, seed: int) -> Outcome:
    torch.manual_seed(seed)
    model, optimizer = example.make(width, lr, task.words)
    words = torch.arange(task.words)
    for _ in range(steps):
        optimizer.zero_grad()
        task.train(model(words), words).backward()
        optimizer.step()
    with torch.no_grad():
        embeddings = dict(model.named_parameters())["embedding.weight"].double()
        return task.outcome(model(words), embeddings @ embeddings.T)


def line(name: str, lr: float, found: Sequence[Outcome]) -> str:
    """Mean and its standard error over the runs."""

    def cell(values: Sequence[float], digits: int) -> str:
        x = torch.tensor(values, dtype=torch.float64)
        error = f" ± {float(x.std()) / len(x) ** 0.5:.{digits}f}" if len(x) > 1 else ""
        return f"{float(x.mean()):.{digits}f}{error}"

    fields = (
        (o.fit for o in found),
        (o.loss for o in found),
        (o.accuracy for o in found),
        (o.analogies for o in found),
    )
    cells = [cell(list(values), digits) for values, digits in zip(fields, (4, 4, 2, 1), strict=True)]
    return f"| {name} | {lr:.3g} | {' | '.join(cells)} |"


def best(found: Mapping[float, Outcome]) -> float:
    """The rate of most right analogies, of least held-out loss among equals."""
    return min(found, key=lambda lr: (-found[lr].analogies, found[lr].loss))


def table(task: Task, steps: int, widths: Sequence[int], seeds: int) -> list[str]:
    """Everything at its best rate, that of a width by its first seed."""
    limits = {
        "muP limit": (mup_limit, task.rates),
        "NTK limit": (kernel_limit(task, "ntk"), KERNEL_RATES),
        "NNGP limit": (kernel_limit(task, "nngp"), KERNEL_RATES),
    }
    lines = [f"{steps} steps, {seeds} seeds a width; ± is one standard error over seeds.", "", *HEADER]
    tried: list[str] = []

    def note(name: str, lr: float, found: Outcome, began: float) -> Outcome:
        tried.append(
            f"| {name} | {lr:.3g} | {number(found.fit)} | {number(found.loss)} | {found.accuracy:.2f} |"
            f" {found.analogies:.1f} | {time.process_time() - began:.0f} |"
        )
        print(tried[-1], flush=True)
        return found

    for width in widths:
        first = {}
        for lr in task.rates:
            began = time.process_time()
            first[lr] = note(f"muP, width {width}", lr, trained(task, width, lr, steps, 0), began)
        lr = best(first)
        runs = [first[lr], *(trained(task, width, lr, steps, seed) for seed in range(1, seeds))]
        lines.append(line(f"muP, width {width}", lr, runs))
    for name, (limit, rates) in limits.items():
        found = {}
        for lr in rates:
            began = time.process_time()
            found[lr] = note(name, lr, limit(task, lr, steps), began)
        lr = best(found)
        lines.append(line(name, lr, [found[lr]]))
    titles = [HEADER[0] + " seconds |", HEADER[1] + "---|"]
    return [*lines, "", "<details><summary>All rates</summary>", "", *titles, *tried, "", "</details>"]


def main() -> None:
    parser = arguments(__doc__, rates=[], steps=300, widths=[16, 64, 256, 1024], seeds=8)
    parser.add_argument("--model", choices=tuple(MODELS), default="skip-gram")
    options = parser.parse_args()
    write(table(task(options.model), options.steps, options.widths, options.seeds), options.out)


if __name__ == "__main__":
    main()
