"""Random small architectures, each a function of the width: depth, residuals, norms, ties, widths, bottlenecks."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": nn.functional.gelu, "sigmoid": torch.sigmoid}


@dataclass(frozen=True)
class Layer:
    """One block: plain, residual, wide (n, 2n, n), narrow (n, 3, n), gated or tied (W and its transpose)."""

    kind: str
    activation: str
    norm: bool
    bias: bool
    std: float  # power of n, times that of fan-in initialisation
    rate: float  # power of n


@dataclass(frozen=True)
class Architecture:
    """A random network and its optimizer."""

    layers: tuple[Layer, ...]
    readout_std: float
    first_rate: float
    readout_rate: float
    optimizer: str
    zero_readout: bool

    def make(self, n: int, lr: float = 0.3) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The network of a width and its optimizer; ``lr`` does not change the exponents."""
        model = Network(self, n)
        groups = [{"params": [p], "lr": lr * n**rate} for p, rate in model.rates()]
        if self.optimizer == "SGD":
            return model, torch.optim.SGD(groups, momentum=0.5)
        return model, torch.optim.Adam(groups, eps=1e-8 * n**-3.0)


def architecture(seed: int) -> Architecture:
    """The architecture of a seed; half of them near the maximal update parametrization."""
    r = random.Random(seed)
    optimizer = r.choice(["SGD", "Adam"])
    near = r.random() < 0.5
    matrix, vector = (0, 1) if optimizer == "SGD" else (-1, 0)

    def around(value: float) -> float:
        return value if near and r.random() < 0.8 else value + r.choice([-1, -0.5, 0, 0.5])

    layers = tuple(
        Layer(
            kind=r.choice(["plain", "residual", "wide", "narrow", "gated", "tied"]),
            activation=r.choice(list(ACTIVATIONS)),
            norm=r.random() < 0.3,
            bias=r.random() < 0.4,
            std=r.choice([0, 0, 0, 0, -0.5]),
            rate=around(matrix),
        )
        for _ in range(r.randint(1, 3))
    )
    return Architecture(
        layers=layers,
        readout_std=r.choice([-1, -1, -0.5]),
        first_rate=around(vector),
        readout_rate=around(-1),
        optimizer=optimizer,
        zero_readout=r.random() < 0.15,
    )


class Block(nn.Module):
    """One layer."""

    def __init__(self, layer: Layer, n: int) -> None:
        super().__init__()
        middle = {"wide": 2 * n, "narrow": 3}.get(layer.kind, n)
        self.layer, self.n = layer, n
        self.up = nn.Linear(n, middle, bias=layer.bias)
        nn.init.normal_(self.up.weight, std=n ** (layer.std - 0.5))
        if layer.bias:
            nn.init.zeros_(self.up.bias)
        self.down = nn.Linear(middle, n, bias=False) if layer.kind in ("wide", "narrow", "gated") else None
        if self.down is not None:
            nn.init.normal_(self.down.weight, std=middle**-0.5 if layer.kind == "narrow" else n**-0.5)
        self.norm = nn.LayerNorm(n) if layer.norm else None

    def forward(self, x: Tensor) -> Tensor:
        phi = ACTIVATIONS[self.layer.activation]
        h = x if self.norm is None else self.norm(x)
        z = phi(self.up(h))
        if self.layer.kind == "tied":
            return x + torch.tanh(z @ self.up.weight)
        if self.layer.kind == "gated":
            assert self.down is not None
            return x + z * self.down(h)
        if self.down is not None:
            return x + self.down(z)
        return z if self.layer.kind == "plain" else x + z

    def rates(self, matrix: float, vector: float) -> list[tuple[nn.Parameter, float]]:
        found: list[tuple[nn.Parameter, float]] = []
        for name, p in self.named_parameters():
            grows = sum(size >= self.n for size in p.shape)
            found.append((p, self.layer.rate if grows == 2 else -1.0 if name == "up.weight" else vector))
        return found


class Network(nn.Module):
    """First layer, blocks, readout."""

    def __init__(self, a: Architecture, n: int) -> None:
        super().__init__()
        self.architecture = a
        self.first = nn.Linear(4, n, bias=False)
        nn.init.normal_(self.first.weight, std=0.5)
        self.blocks = nn.ModuleList(Block(layer, n) for layer in a.layers)
        self.readout = nn.Linear(n, 1, bias=False)
        nn.init.normal_(self.readout.weight, std=n**a.readout_std)
        if a.zero_readout:
            nn.init.zeros_(self.readout.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        for block in self.blocks:
            h = block(h)
        return self.readout(h)

    def rates(self) -> list[tuple[Any, float]]:
        a = self.architecture
        vector = a.first_rate
        found: list[tuple[Any, float]] = [(self.first.weight, a.first_rate), (self.readout.weight, a.readout_rate)]
        for block in self.blocks:
            found += block.rates(-1.0, vector)  # type: ignore[operator]
        return found
