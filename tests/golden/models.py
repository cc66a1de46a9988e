"""The models whose programs are kept as golden texts. Their line numbers stand in them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


def mup(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Two hidden layers in the maximal update parametrization, all by initialisation and learning rates."""
    model = network(width, nn.Tanh, (1.0, width**-0.5, 1 / width))
    rates = (0.5 * width, 0.5, 0.5 / width)
    return model, torch.optim.SGD(
        [{"params": [p], "lr": rate} for p, rate in zip(model.parameters(), rates, strict=True)], lr=0.5
    )


def standard(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """The same network as PyTorch users scale it, with a learning rate that keeps it stable: the kernel regime."""
    model = network(width, nn.ReLU, (1.0, width**-0.5, width**-0.5))
    return model, torch.optim.SGD(model.parameters(), lr=0.5 / width)


def network(width: int, activation: type[nn.Module], stds: tuple[float, float, float]) -> nn.Module:
    """Weights without biases, normal with these standard deviations."""
    model = nn.Sequential(
        nn.Linear(2, width, bias=False),
        activation(),
        nn.Linear(width, width, bias=False),
        activation(),
        nn.Linear(width, 1, bias=False),
    )
    for p, std in zip(model.parameters(), stds, strict=True):
        nn.init.normal_(p, std=std)
    return model


inputs = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, -1.0]])
targets = torch.tensor([[1.0], [0.5], [-1.0]])
loss = F.mse_loss
steps = 1
