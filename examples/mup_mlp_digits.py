"""A two-hidden-layer perceptron in the maximal update parametrization (muP), on real handwritten digits.

    tpcompile compile examples/mup_mlp_digits.py:make
    tpcompile verify  examples/mup_mlp_digits.py:make

The command line calls ``make(width)``, the only thing that it needs, and reads these names of this file where
they exist: ``inputs``, ``targets``, ``test_inputs``, ``loss``, ``steps`` (and ``optimizer``, a function of the
parameters, where ``make`` returns a bare module). Needs scikit-learn, which ships the digits.

muP for SGD without multipliers (Tensor Programs V, arXiv:2203.03466, Table 3): every weight starts with variance
1 / fan_in, the readout with 1 / fan_in^2, and the learning rates are proportional to n (input weights), 1 (hidden) and
1 / n (readout). Features then move by an amount that does not vanish at infinite width.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

LEARNING_RATE = 0.3


def make(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    first = nn.Linear(64, width, bias=False)
    second = nn.Linear(width, width, bias=False)
    readout = nn.Linear(width, 1, bias=False)
    nn.init.normal_(first.weight, std=1.0)  # not 1/8: the images have length 1, not 8
    nn.init.normal_(second.weight, std=width**-0.5)
    nn.init.normal_(readout.weight, std=1 / width)
    hidden = nn.Sequential(first, nn.Tanh(), second, nn.Tanh())
    model = nn.Sequential(OrderedDict(hidden=hidden, readout=readout))
    optimizer = torch.optim.SGD(
        [
            {"params": [first.weight], "lr": LEARNING_RATE * width},
            {"params": [second.weight], "lr": LEARNING_RATE},
            {"params": [readout.weight], "lr": LEARNING_RATE / width},
        ],
        lr=LEARNING_RATE,
    )
    return model, optimizer


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
