"""The finite-width side of the comparison: batched training of narrow muP networks, as fast as it can be by hand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Problem:
    """Training of a muP multilayer perceptron by gradient descent on the mean squared error."""

    phi: str
    x: Tensor
    y: Tensor
    depth: int = 3
    steps: int = 5
    lr: float = 0.3


def pointwise(phi: str) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    """The function in place, and its derivative written in terms of its value."""
    if phi == "tanh":
        return torch.tanh_, lambda h: 1 - h * h
    return torch.relu_, lambda h: (h > 0).to(h.dtype)


def train(problem: Problem, width: int, count: int, dtype: torch.dtype, seed: int) -> Tensor:
    """Outputs after training of ``count`` independent networks, shape (count, inputs): a batched loop by hand.

    Hidden matrices are never updated: the update of a few steps has low rank and is kept as its factors, so that
    a step reads each matrix twice and writes none. Same arithmetic as plain gradient descent.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = problem.x.to(dtype), problem.y.to(dtype)[:, 0]
    batch, inputs = x.shape
    apply, slope = pointwise(problem.phi)

    def normal(*shape: int) -> Tensor:
        return torch.randn((count, *shape), generator=generator, dtype=dtype)

    first = normal(inputs, width)
    # the transposed matrix is drawn, (in, out): activations are rows
    hidden = [normal(width, width).mul_(width**-0.5) for _ in range(problem.depth - 1)]
    last = normal(width, 1)
    known: list[tuple[Tensor, Tensor] | None] = [None] * len(hidden)  # activations and errors of past steps
    out = x.new_zeros((count, batch))
    for step in range(problem.steps + 1):
        acts = [apply(x @ first)]
        for w, past in zip(hidden, known, strict=True):
            z = acts[-1] @ w
            if past is not None:
                z.baddbmm_(acts[-1] @ past[0].mT, past[1], alpha=-problem.lr / width)
            acts.append(apply(z))
        out = (acts[-1] @ last)[..., 0] / width
        if step == problem.steps:
            break
        error = (2.0 / batch) * (out - y)[..., None]
        back = error * last.mT
        last = last - problem.lr * (acts[-1].mT @ error)
        for i in range(len(hidden) - 1, -1, -1):
            back = back * slope(acts[i + 1])
            past = known[i]
            below = back @ hidden[i].mT
            if past is not None:
                below.baddbmm_(back @ past[1].mT, past[0], alpha=-problem.lr / width)
                known[i] = torch.cat([past[0], acts[i]], 1), torch.cat([past[1], back], 1)
            else:
                known[i] = acts[i], back
            back = below
        first = first - problem.lr * (x.T @ (back * slope(acts[0])))
    return out.double()
