"""A residual network in the maximal update parametrization, on points of a ring in three classes.

    tpcompile compile examples/residual_mlp.py:make
    tpcompile report  examples/residual_mlp.py:make

The command line calls ``make(width)``, the only thing that it needs, and reads these names of this file where
they exist: ``inputs``, ``targets``, ``test_inputs``, ``loss``, ``steps`` (and ``optimizer``, a function of the
parameters, where ``make`` returns a bare module).

Each block adds ``W gelu(V x)`` to the stream. Initialisation and learning rates are those of Tensor Programs V
(arXiv:2203.03466), Table 3, for SGD: see ``mup_mlp_digits.py``.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

LEARNING_RATE = 0.3
CLASSES, BLOCKS = 3, 2


class Block(nn.Module):
    """``x + W gelu(V x)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, width, bias=False)
        self.act = nn.GELU()
        self.down = nn.Linear(width, width, bias=False)
        for layer in (self.up, self.down):
            nn.init.normal_(layer.weight, std=width**-0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.act(self.up(x)))


class ResidualNetwork(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.embed = nn.Linear(2, width, bias=False)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(BLOCKS)))
        self.readout = nn.Linear(width, CLASSES, bias=False)
        nn.init.normal_(self.embed.weight, std=2**-0.5)
        nn.init.normal_(self.readout.weight, std=1 / width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.readout(self.blocks(self.embed(x)))


def make(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = ResidualNetwork(width)
    optimizer = torch.optim.SGD(
        [
            {"params": model.embed.parameters(), "lr": LEARNING_RATE * width},
            {"params": model.blocks.parameters(), "lr": LEARNING_RATE},
            {"params": model.readout.parameters(), "lr": LEARNING_RATE / width},
        ],
        lr=LEARNING_RATE,
    )
    return model, optimizer


def ring(count: int, offset: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Evenly spaced points on a circle of radius sqrt(2); the class changes every sixth of the circle."""
    angles = 2 * math.pi * (torch.arange(count) + offset) / count
    points = math.sqrt(2) * torch.stack([angles.cos(), angles.sin()], dim=1)
    return points, (6 * angles / (2 * math.pi)).long() % CLASSES


inputs, targets = ring(12, 0.5)
test_inputs, test_targets = ring(6, 0.3)
loss = F.cross_entropy
steps = 6
