"""Factories with indexing, convolutions, pooling and normalisation, in the maximal update parametrization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


def mup_groups(model: nn.Module, n: int, lr: float, readout: str = "readout") -> torch.optim.Optimizer:
    """SGD with rates n for vectors, 1 for matrices and finite parameters, 1/n for the readout's weight."""
    groups = []
    for name, p in model.named_parameters():
        grown = sum(size >= 16 and size % n == 0 for size in p.shape)
        power = {0: 0, 1: -1 if name.startswith(readout) else 1, 2: 0}[grown]
        groups.append({"params": [p], "lr": lr * float(n) ** power})
    return torch.optim.SGD(groups, lr=1.0)


class Readout(nn.Linear):
    """A readout without bias whose initial weights are Θ(1/n)."""

    def __init__(self, n: int, k: int = 1) -> None:
        super().__init__(n, k, bias=False)
        nn.init.normal_(self.weight, std=1 / n)


class Indexed(nn.Module):
    """Tables looked up by tokens, positions and constants."""

    order: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.table = nn.Embedding(7, n)
        self.places = nn.Parameter(torch.randn(5, n))
        self.readout = Readout(n)
        self.register_buffer("order", torch.tensor([0, 3, 1, 1]))

    def forward(self, x: Tensor) -> Tensor:  # (N, 4) tokens
        h = self.table(x) + self.places[self.order] + self.places[x % 5] + self.places[-1]
        h = torch.tanh(h).index_select(1, torch.tensor([2, 0, 0])).mean(1)
        return self.readout(h)


def grown(module: Callable[[int], nn.Module], lr: float = 0.3) -> Callable[[int], Any]:
    """A factory of (module, SGD with the rates of :func:`mup_groups`)."""

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = module(n)
        return model, mup_groups(model, n, lr)

    return make


def setups() -> dict[str, tuple[Callable[[int], Any], Tensor, Tensor]]:
    """Factory, inputs and targets by name."""
    g = torch.Generator().manual_seed(1)
    y = torch.randn(3, 1, generator=g, dtype=torch.float64)
    tokens = torch.tensor([[1, 2, 3, 1], [0, 6, 2, 2], [5, 5, 4, 0]])
    return {"indexing": (grown(Indexed), tokens, y)}
