"""Factories of many shapes, used all over the tests: each is what a user would write."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import zoo_layers
from torch import Tensor, nn

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "linear": nn.Identity,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "logsigmoid": nn.LogSigmoid,
    "leaky_relu": lambda: nn.LeakyReLU(0.1),
    "elu": nn.ELU,
    "erf": lambda: Pointwise(torch.erf),
    "sin": lambda: Pointwise(torch.sin),
    "cos": lambda: Pointwise(torch.cos),
    "abs": lambda: Pointwise(torch.abs),
    "exp": lambda: Pointwise(lambda x: torch.exp(-x * x)),
    "square": lambda: Pointwise(lambda x: 0.5 * x**2),
    "product": lambda: Pointwise(lambda x: x * torch.sigmoid(x) * torch.tanh(x)),
}


class Pointwise(nn.Module):
    """A function as a module."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


class ABC(nn.Module):
    """A linear layer ``n^-a w x`` with ``w ~ N(0, n^-2b)``, and a bias of the same kind if asked."""

    def __init__(self, n: int, fan_in: int, fan_out: int, a: float, b: float, bias: bool = False) -> None:
        super().__init__()
        self.scale = n**-a
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in) * n**-b)
        self.bias = nn.Parameter(torch.randn(fan_out) * n**-b) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        out = self.scale * F.linear(x, self.weight)
        return out if self.bias is None else out + self.scale * self.bias


# (a, b) of the first, hidden and last layer, and c: Tensor Programs IV, table 1
PARAMETRIZATIONS: dict[str, tuple[tuple[float, float], tuple[float, float], tuple[float, float], float]] = {
    "mup": ((-0.5, 0.5), (0.0, 0.5), (0.5, 0.5), 0.0),
    "ntk": ((0.0, 0.0), (0.5, 0.0), (0.5, 0.0), 0.0),
    "standard": ((0.0, 0.0), (0.0, 0.5), (0.0, 0.5), 1.0),
    "mean field": ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), -1.0),
}


def mlp(
    phi: str = "tanh",
    depth: int = 2,
    parametrization: str = "mup",
    *,
    d: int = 4,
    k: int = 1,
    lr: float = 0.5,
    bias: bool = False,
    widths: tuple[int, ...] | None = None,
    **sgd: Any,
) -> Callable[[int], Any]:
    """An MLP of ``depth`` hidden layers in an abc-parametrization, with its SGD optimizer.

    ``widths`` are multiples of n for the hidden layers.
    """
    first, hidden, last, c = PARAMETRIZATIONS[parametrization]
    ratios = widths or (1,) * depth

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        layers: list[nn.Module] = []
        fan_in = d
        for i, r in enumerate(ratios):
            a, b = first if i == 0 else hidden
            layers += [ABC(n, fan_in, r * n, a, b, bias and i == 0), ACTIVATIONS[phi]()]
            fan_in = r * n
        layers.append(ABC(n, fan_in, k, *last))
        model = nn.Sequential(*layers)
        return model, torch.optim.SGD(model.parameters(), lr=lr * n**-c, **sgd)

    return make


class Residual(nn.Module):
    """Residual blocks in muP."""

    def __init__(self, n: int, d: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.embed = ABC(n, d, n, -0.5, 0.5)
        self.blocks = nn.ModuleList([ABC(n, n, n, 0.0, 0.5) for _ in range(blocks)])
        self.readout = ABC(n, n, 1, 0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for block in self.blocks:
            h = h + block(torch.tanh(h))
        return self.readout(torch.tanh(h))


class Recurrent(nn.Module):
    """The same hidden matrix at every time step."""

    def __init__(self, n: int, d: int = 2) -> None:
        super().__init__()
        self.inp = ABC(n, d, n, -0.5, 0.5)
        self.cell = ABC(n, n, n, 0.0, 0.5)
        self.out = ABC(n, n, 1, 0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:  # (N, time, d)
        h = torch.tanh(self.inp(x[:, 0]))
        for t in range(1, x.shape[1]):
            h = torch.tanh(self.cell(h) + self.inp(x[:, t]))
        return self.out(h)


class Tied(nn.Module):
    """A hidden matrix and its transpose in one forward pass (a tied autoencoder of the hidden layer)."""

    def __init__(self, n: int, d: int = 4, phi: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.inp = ABC(n, d, n, -0.5, 0.5)
        self.weight = nn.Parameter(torch.randn(n, n) / math.sqrt(n))
        self.decoder = ABC(n, n, d, 0.5, 0.5)
        self.phi = phi

    def forward(self, x: Tensor) -> Tensor:
        h = self.phi(self.inp(x))
        code = self.phi(h @ self.weight.T)
        back = self.phi(code @ self.weight)
        return self.decoder(back)


def trained(module: Callable[[int], nn.Module], lr: float = 0.5, **sgd: Any) -> Callable[[int], Any]:
    """A factory of (module, SGD)."""

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = module(n)
        return model, torch.optim.SGD(model.parameters(), lr=lr, **sgd)

    return make


class PlainLinear(nn.Module):
    """nn.Linear with its default uniform initialisation and biases, under width-scaled learning rates."""

    def __init__(self, n: int, d: int = 4, k: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(d, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, k))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def grouped(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Parameter groups with rates that are powers of n, momentum and weight decay of their own (muP by rates)."""
    first, hidden, last = nn.Linear(4, n), nn.Linear(n, n), nn.Linear(n, 1, bias=False)
    model = nn.Sequential(first, nn.Tanh(), hidden, nn.Tanh(), last)
    for bias in (hidden.bias, first.bias):
        nn.init.normal_(bias)
    nn.init.normal_(last.weight, std=1 / n)
    groups = [
        {"params": [first.weight, first.bias, hidden.bias], "lr": 0.3 * n},
        {"params": [hidden.weight], "lr": 0.3, "momentum": 0.9, "nesterov": True},
        {"params": [last.weight], "lr": 0.3 / n, "weight_decay": 0.1 * n},
    ]
    return model, torch.optim.SGD(groups, lr=1.0, momentum=0.5)


@dataclass(frozen=True)
class Case:
    """A training setup."""

    make: Callable[[int], Any]
    inputs: Any
    targets: Any
    loss: Callable[..., Tensor] | None = F.mse_loss
    steps: int = 3
    test_inputs: Tensor | None = None


def data(n: int = 3, d: int = 4, k: int = 1, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Fixed inputs and targets, float64."""
    g = torch.Generator().manual_seed(seed)
    return (
        torch.randn(n, d, generator=g, dtype=torch.float64),
        torch.randn(n, k, generator=g, dtype=torch.float64),
    )


def cases() -> dict[str, Case]:
    """Training setups by name: everything the compiler claims to cover."""
    x, y = data()
    z, _ = data(2, seed=5)
    out: dict[str, Case] = {}
    for phi in ACTIVATIONS:
        lr = {"linear": 0.05, "abs": 0.05, "square": 0.05}.get(phi, 0.3)  # those that grow fastest would diverge
        out[f"mup {phi}"] = Case(mlp(phi, 2, lr=lr), x, y, test_inputs=z)
    for name in PARAMETRIZATIONS:
        depth = 1 if name == "mean field" else 3
        out[name] = Case(mlp("tanh", depth, name), x, y)
    out["depth 4"] = Case(mlp("gelu", 4, lr=0.3), x, y)
    out["momentum"] = Case(mlp("tanh", 2, lr=0.2, momentum=0.9), x, y, steps=4)
    out["nesterov"] = Case(mlp("tanh", 2, lr=0.2, momentum=0.9, nesterov=True, weight_decay=0.1), x, y, steps=4)
    out["dampening"] = Case(mlp("tanh", 2, lr=0.2, momentum=0.5, dampening=0.3), x, y)
    out["weight decay"] = Case(mlp("relu", 2, weight_decay=0.2), x, y)
    out["bias"] = Case(mlp("tanh", 2, bias=True), x, y)
    out["widths"] = Case(mlp("tanh", 3, widths=(1, 2, 4), lr=0.2), x, y)
    out["half widths"] = Case(mlp("tanh", 2, widths=(2, 1), lr=0.2), x, y)
    out["residual"] = Case(trained(Residual), x, y)
    out["recurrent"] = Case(trained(Recurrent), data(3, 6)[0].reshape(3, 3, 2), y)
    out["tied"] = Case(trained(Tied, lr=0.2), x, x)
    out["tied linear"] = Case(trained(lambda n: Tied(n, phi=lambda h: h), lr=0.05), x, x)
    out["grouped"] = Case(grouped, x, y)
    out["plain"] = Case(lambda n: _plain(n), x, y)
    out["cross entropy"] = Case(mlp("relu", 2, k=3), x, torch.tensor([0, 2, 1]), loss=F.cross_entropy)
    out |= {name: Case(make, a, b, steps=2) for name, (make, a, b) in zoo_layers.setups().items()}
    batches = [data(2, seed=s) for s in range(3)]
    out["minibatches"] = Case(mlp("tanh", 2), [b[0] for b in batches], [b[1] for b in batches])
    return out


def _plain(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = PlainLinear(n)
    return model, torch.optim.SGD(model.parameters(), lr=0.5 / n)
