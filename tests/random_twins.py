"""Random small networks of exchangeable branches: differences, centred branches, products, shared weights, routers."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor, nn

ACTIVATIONS = {"tanh": torch.tanh, "relu": torch.relu, "gelu": nn.functional.gelu}


@dataclass(frozen=True)
class Twins:
    """A network of exchangeable branches and its SGD optimizer."""

    branches: int
    activation: str
    deep: str  # "no", "own" matrices behind the first layers, or one "shared" by all branches
    joined: str  # how branches become one: "difference", "centred", "product", "odd", "sum", "router"
    middle: str  # "no", "gate" (h times relu(W h)), "layer" (tanh(W h))
    head: str  # "readout", or "mean" over the width times a number
    frozen: bool  # the first branch is not trained
    rate: float  # power of n of the matrices' rates

    def make(self, n: int, lr: float = 0.3) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The network of a width and its optimizer; ``lr`` does not change the exponents."""
        model = Network(self, n)
        groups = [
            {"params": [p], "lr": lr * n ** (self.rate if name.startswith(("hidden", "gate")) else 1.0)}
            for name, p in model.named_parameters()
            if p.requires_grad and name != "scale" and not name.startswith(("readout", "router"))
        ]
        groups += [
            {"params": [p], "lr": lr / n}
            for name, p in model.named_parameters()
            if p.requires_grad and name.startswith(("readout", "router"))
        ]
        groups += [{"params": [model.scale], "lr": lr / n}] if self.head == "mean" else []
        return model, torch.optim.SGD(groups)


def twins(seed: int) -> Twins:
    """The network of a seed."""
    r = random.Random(seed)
    return Twins(
        branches=r.choice([2, 2, 3]),
        activation=r.choice(["tanh", "relu", "relu", "gelu"]),
        deep=r.choice(["no", "own", "shared"]),
        joined=r.choice(["difference", "difference", "centred", "product", "odd", "sum", "router"]),
        middle=r.choice(["no", "gate", "layer"]),
        head=r.choice(["readout", "mean"]),
        frozen=r.random() < 0.25,
        rate=r.choice([0.0, 0.0, -0.5]),
    )


def linear(inputs: int, n: int, std: float) -> nn.Linear:
    layer = nn.Linear(inputs, n, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


class Network(nn.Module):
    """Branches, what joins them, a middle, a head."""

    def __init__(self, t: Twins, n: int) -> None:
        super().__init__()
        self.t = t
        self.first = nn.ModuleList(linear(4, n, 0.7) for _ in range(t.branches))
        if t.frozen:
            self.first[0].requires_grad_(False)
        count = {"no": 0, "own": t.branches, "shared": 1}[t.deep]
        self.hidden = nn.ModuleList(linear(n, n, n**-0.5) for _ in range(count))
        self.router = linear(n, t.branches, 1 / n) if t.joined == "router" else None
        self.gate = linear(n, n, n**-0.5) if t.middle != "no" else None
        self.readout = linear(n, 1, 1 / n) if t.head == "readout" else None
        self.scale = nn.Parameter(torch.ones(1)) if t.head == "mean" else None

    def forward(self, x: Tensor) -> Tensor:
        t, phi = self.t, ACTIVATIONS[self.t.activation]
        h = [phi(layer(x)) for layer in self.first]
        if t.deep != "no":
            h = [phi(self.hidden[i % len(self.hidden)](y)) for i, y in enumerate(h)]
        y = self.join(h)
        if self.gate is not None:
            z = self.gate(y)
            y = y * torch.relu(z) if t.middle == "gate" else torch.tanh(z)
        if self.readout is not None:
            return self.readout(y)
        assert self.scale is not None
        return self.scale * y.mean(-1, keepdim=True)

    def join(self, h: list[Tensor]) -> Tensor:
        match self.t.joined:
            case "difference":
                return h[0] - h[1]
            case "odd":
                return torch.tanh(h[0] - h[1])
            case "centred":
                return h[0] - torch.stack(h).mean(0)
            case "product":
                return (h[0] - h[1]) * h[-1]
            case "router":
                assert self.router is not None
                p = self.router(torch.stack(h).sum(0) / math.sqrt(len(h))).softmax(-1)
                return torch.stack([p[:, i, None] * y for i, y in enumerate(h)]).sum(0)
        return torch.stack(h).sum(0)
