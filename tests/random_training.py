"""Random training setups: architecture, activation, parametrization, loss and optimizer from one seed."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "leaky relu": lambda x: F.leaky_relu(x, 0.1),
    "elu": F.elu,
    "erf": torch.erf,
    "sin": torch.sin,
    "cos": torch.cos,
    "abs": torch.abs,
    "mish": F.mish,
    "hardtanh": F.hardtanh,
    "gaussian": lambda x: torch.exp(-x * x),
    "gate": lambda x: x * torch.sigmoid(1.7 * x),
}
OPTIMIZERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "momentum": {"momentum": 0.8},
    "nesterov": {"momentum": 0.7, "nesterov": True},
    "weight decay": {"weight_decay": 0.05, "momentum": 0.5, "dampening": 0.2},
}
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mse": F.mse_loss,
    "huber": F.huber_loss,
    "log cosh": lambda o, y: torch.log(torch.cosh(o - y)).mean(),
    "logistic": lambda o, y: F.binary_cross_entropy_with_logits(o, (y > 0).to(o.dtype)),
    "cross-entropy": F.cross_entropy,
}
RATE = 0.3


@dataclass(frozen=True)
class Shape:
    """What a random network is made of; ``ratio`` is that of the later widths to the first."""

    first: str
    later: str
    depth: int
    ntk: bool
    outputs: int
    ratio: int
    bias: bool
    residual: bool
    shared: bool
    transposed: bool
    normalised: bool
    gated: bool


class Network(nn.Module):
    """A multilayer perceptron with what its shape asks for."""

    def __init__(self, n: int, shape: Shape) -> None:
        super().__init__()
        self.shape, m = shape, n * shape.ratio
        std = (lambda fan: 1.0) if shape.ntk else (lambda fan: fan**-0.5)
        self.a = nn.Parameter(torch.randn(n, 3))
        self.bias = nn.Parameter(0.3 * torch.randn(n)) if shape.bias else None
        self.widen = nn.Parameter(torch.randn(m, n) * std(n)) if shape.ratio != 1 else None
        count = 1 if shape.shared else shape.depth - 1
        self.hidden = nn.ParameterList([nn.Parameter(torch.randn(m, m) * std(m)) for _ in range(count)])
        self.gate = nn.Parameter(torch.randn(m, m) * std(m)) if shape.gated else None
        self.readout = nn.Parameter(torch.randn(shape.outputs, m) * (1.0 if shape.ntk else 1 / m))

    def product(self, w: Tensor, h: Tensor, transposed: bool = False) -> Tensor:
        w = w.T if transposed else w
        return h @ w.T / w.shape[1] ** 0.5 if self.shape.ntk else h @ w.T

    def forward(self, x: Tensor) -> Tensor:
        s, later = self.shape, ACTIVATIONS[self.shape.later]
        h = x @ self.a.T / 3**0.5
        h = ACTIVATIONS[s.first](h if self.bias is None else h + self.bias)
        if self.widen is not None:
            h = later(self.product(self.widen, h))
        for i in range(s.depth - 1):
            z = self.product(self.hidden[0 if s.shared else i], h, s.transposed and i % 2 == 1)
            if self.gate is not None and i == 0:
                z = z * torch.sigmoid(self.product(self.gate, h))
            z = later(z)
            if s.normalised:
                z = F.layer_norm(z, (z.shape[-1],))
            h = h + z if s.residual else z
        return h @ self.readout.T / (h.shape[-1] ** 0.5 if s.ntk else 1)


@dataclass(frozen=True)
class Training:
    """The arguments of ``tp.compile``, and what they are made of."""

    shape: Shape
    loss_name: str
    optimizer_name: str
    make: Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]
    inputs: Any
    targets: Any
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int


def training(seed: int) -> Training:
    """The setup of a seed: maximal updates or the NTK parametrization, one to three steps."""
    r = random.Random(seed)
    depth, loss_name = r.choice([1, 2, 2, 3]), r.choice(["mse", *LOSSES])
    shape = Shape(
        first=r.choice(list(ACTIVATIONS)),
        later=r.choice(list(ACTIVATIONS)),
        depth=depth,
        ntk=r.random() < 0.4,
        outputs=r.choice([2, 3] if loss_name == "cross-entropy" else [1, 1, 2, 3]),
        ratio=r.choice([1, 1, 2]),
        bias=r.random() < 0.4,
        residual=r.random() < 0.3,
        shared=depth > 2 and r.random() < 0.5,
        transposed=depth > 1 and r.random() < 0.3,
        normalised=r.random() < 0.2,
        gated=r.random() < 0.25,
    )
    optimizer_name, steps, batch = r.choice(list(OPTIMIZERS)), r.choice([1, 2, 3]), r.choice([2, 3])
    generator = torch.Generator().manual_seed(seed)
    batches = steps if r.random() < 0.2 else 1
    inputs = [torch.randn(batch, 3, generator=generator) for _ in range(batches)]
    if loss_name == "cross-entropy":
        targets = [torch.randint(0, shape.outputs, (batch,), generator=generator) for _ in range(batches)]
    else:
        targets = [torch.randn(batch, shape.outputs, generator=generator) for _ in range(batches)]

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        network, options = Network(n, shape), OPTIMIZERS[optimizer_name]
        if shape.ntk:
            return network, torch.optim.SGD(network.parameters(), lr=RATE, **options)
        powers = {"a": n, "bias": n, "readout": 1 / (n * shape.ratio)}
        groups = [{"params": [p], "lr": RATE * powers.get(name, 1.0)} for name, p in network.named_parameters()]
        for group in groups:  # decay times rate without a power of n
            group |= {"weight_decay": options.get("weight_decay", 0.0) * RATE / group["lr"]}
        return network, torch.optim.SGD(groups, lr=RATE, **options)

    one = batches == 1
    data = (inputs[0], targets[0]) if one else (inputs, targets)
    return Training(shape, loss_name, optimizer_name, make, *data, LOSSES[loss_name], steps)
