"""The training runs of the agreement study: 5 steps of SGD at rates that move features, 3 inputs in R^4."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from finite_width import Setup
from torch import Tensor, nn
from zoo import ABC, Recurrent, Residual, data, mlp, trained

import tpcompile as tp

STEPS = 5
# chosen by hand from a scan of the limit alone, before any finite width: training is stable, some features move by 30%
MUP_RATES = {
    "linear": (0.2, 0.1, 0.05, 0.05),
    "relu": (0.3,) * 4,
    "tanh": (0.5,) * 4,
    "erf": (0.5,) * 4,
    "gelu": (0.3,) * 4,
}
NTK_RATES = {**MUP_RATES, "linear": (0.1, 0.1, 0.05, 0.05)}


@dataclass(frozen=True)
class Study:
    """A training run and how its finite widths are extrapolated."""

    setup: Setup
    powers: tuple[float, ...] = (1, 2)
    dot_matters: bool = False  # also show what the limit without response terms would give


class Twice(nn.Module):
    """An MLP that applies the same nn.Linear, its bias included, at two depths."""

    def __init__(self, n: int, d: int = 4) -> None:
        super().__init__()
        self.inp = ABC(n, d, n, -0.5, 0.5)
        self.shared = nn.Linear(n, n)
        nn.init.normal_(self.shared.weight, std=1 / math.sqrt(n))
        nn.init.normal_(self.shared.bias, std=0.5)
        self.out = ABC(n, n, 1, 0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inp(x))
        for _ in range(2):
            h = torch.tanh(self.shared(h))
        return self.out(h)


class TiedAutoencoder(nn.Module):
    """A hidden matrix in the encoder and its transpose in the decoder."""

    def __init__(self, n: int, d: int = 4) -> None:
        super().__init__()
        self.inp = ABC(n, d, n, -0.5, 0.5)
        self.weight = nn.Parameter(torch.randn(n, n) / math.sqrt(n))
        self.out = ABC(n, n, d, 0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inp(x))
        code = tp.tap(torch.tanh(h @ self.weight.T), "code")
        back = tp.tap(code @ self.weight, "back")
        return self.out(tp.tap(torch.tanh(back), "decoded"))


class ResidualTapped(Residual):
    """Residual blocks in muP, their stream named."""

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(x)
        for i, block in enumerate(self.blocks):
            h = tp.tap(h + block(torch.tanh(h)), f"stream{i}")
        return self.readout(torch.tanh(h))


def studies() -> dict[str, Callable[[], Study]]:
    """Every configuration by name."""
    out: dict[str, Callable[[], Study]] = {}
    for phi in MUP_RATES:
        for depth in (1, 2, 3, 4):
            out[f"mup {phi} {depth}"] = lambda phi=phi, depth=depth: _mlp(phi, depth, "mup")
    for phi in MUP_RATES:
        out[f"mean field {phi} 1"] = lambda phi=phi: _mlp(phi, 1, "mean field")
    for phi in NTK_RATES:
        for depth in (1, 2, 3, 4):
            out[f"ntk {phi} {depth}"] = lambda phi=phi, depth=depth: _mlp(phi, depth, "ntk")
    return out | _variants()


def _mlp(phi: str, depth: int, parametrization: str) -> Study:
    x, y = data()
    rates = NTK_RATES if parametrization == "ntk" else MUP_RATES
    setup = Setup(
        mlp(phi, depth, parametrization, lr=rates[phi][depth - 1]),
        x,
        y,
        steps=STEPS,
        output_init="zero" if parametrization == "ntk" else None,
    )
    # relu units that flip on the way make the mean of finite networks drift as n^-1/2 (theory, section 6)
    return Study(setup, (0.5, 1) if (parametrization, phi) == ("ntk", "relu") else (1, 2))


def _variants() -> dict[str, Callable[[], Study]]:
    x, y = data()
    batches = [data(2, seed=s) for s in range(STEPS)]

    def tanh(**options) -> Callable[[], Study]:
        return lambda: Study(Setup(mlp("tanh", 2, **{"lr": 0.5, **options}), x, y))

    return {
        "weight decay": tanh(weight_decay=0.2),
        "momentum": tanh(lr=0.2, momentum=0.9),
        "momentum, weight decay, dampening": tanh(lr=0.3, momentum=0.5, weight_decay=0.1, dampening=0.3),
        "nesterov": tanh(lr=0.2, momentum=0.9, nesterov=True),
        "biases": tanh(bias=True),
        "minibatches": lambda: Study(Setup(mlp("tanh", 2), [b[0] for b in batches], [b[1] for b in batches])),
        "widths n, 2n": tanh(lr=0.3, widths=(1, 2)),
        "widths 2n, n, 2n": tanh(lr=0.3, widths=(2, 1, 2)),
        "recurrent": lambda: Study(
            Setup(trained(Recurrent, lr=0.3), data(3, 6)[0].reshape(3, 3, 2), y), dot_matters=True
        ),
        "one Linear twice": lambda: Study(Setup(trained(Twice, lr=0.3), x, y), dot_matters=True),
        "residual": lambda: Study(Setup(trained(ResidualTapped, lr=0.2), x, y)),
        "tied autoencoder": lambda: Study(Setup(trained(TiedAutoencoder, lr=0.2), x, x), dot_matters=True),
        "cross-entropy, 3 classes": lambda: Study(
            Setup(mlp("relu", 2, k=3, lr=0.5), x, torch.tensor([0, 2, 1]), F.cross_entropy)
        ),
        "tanh 3 (dot)": lambda: Study(_mlp("tanh", 3, "mup").setup, dot_matters=True),
    }
