"""The twin of ``mup_mlp_digits.py`` in the NTK parametrization: the same network and data in the kernel regime.

    tpcompile compile examples/ntk_mlp_digits.py:make
    tpcompile kernel  examples/ntk_mlp_digits.py:make

The command line calls ``make(width)``, the only thing that it needs, and reads these names of this file where
they exist: ``inputs``, ``targets``, ``test_inputs``, ``loss``, ``steps`` (and ``optimizer``, a function of the
parameters, where ``make`` returns a bare module). Needs scikit-learn, which ships the digits.

Weights start with variance 1 and are multiplied by 1 / sqrt(n) where they contract the width (Jacot et al.,
arXiv:1806.07572); the learning rate does not depend on the width. The function learns, the features do not move
at infinite width, and the output at initialisation is random: a Gaussian process.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

LEARNING_RATE = 0.5


class ScaledLinear(nn.Module):
    """``multiplier * W x`` with independent standard normal entries of ``W``."""

    def __init__(self, fan_in: int, fan_out: int, multiplier: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(fan_out, fan_in))
        self.multiplier = multiplier

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.multiplier * F.linear(x, self.weight)


def make(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    hidden = nn.Sequential(
        ScaledLinear(64, width, 1.0),
        nn.Tanh(),
        ScaledLinear(width, width, width**-0.5),
        nn.Tanh(),
    )
    readout = ScaledLinear(width, 1, width**-0.5)
    model = nn.Sequential(OrderedDict(hidden=hidden, readout=readout))
    return model, torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def load_two_digits(first: int, second: int, train: int, test: int) -> tuple[torch.Tensor, ...]:
    """Images of two digits as 64-vectors of mean 0 and length 1 with labels +1 and -1: train and test sets."""
    data, target = load_digits(return_X_y=True)
    images = torch.tensor(data, dtype=torch.float32)
    images = F.normalize(images - images.mean(-1, keepdim=True), dim=-1)
    ones, others = images[torch.tensor(target == first)], images[torch.tensor(target == second)]

    def half_and_half(start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        chosen = slice(start // 2, (start + count) // 2)
        signs = torch.tensor([1.0, -1.0]).repeat_interleave(count // 2)[:, None]
        return torch.cat([ones[chosen], others[chosen]]), signs

    return *half_and_half(0, train), *half_and_half(train, test)


inputs, targets, test_inputs, test_targets = load_two_digits(3, 8, train=16, test=8)
loss = F.mse_loss
steps = 8
