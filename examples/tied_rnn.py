"""A recurrent network in the maximal update parametrization: one matrix, used again at every time step.

    tpcompile compile examples/tied_rnn.py:make
    tpcompile verify  examples/tied_rnn.py:make

The command line calls ``make(width)``, the only thing that it needs, and reads these names of this file where
they exist: ``inputs``, ``targets``, ``test_inputs``, ``loss``, ``steps`` (and ``optimizer``, a function of the
parameters, where ``make`` returns a bare module).

The task is to say at the end of a sequence of signs which sign came first. Tied weights are where independent layers
are the wrong assumption: the limit keeps track of every use of the matrix and its transpose. Scales as in
``mup_mlp_digits.py`` (Tensor Programs V, arXiv:2203.03466, Table 3, for SGD).
"""

import itertools

import torch
import torch.nn.functional as F
from torch import nn

LEARNING_RATE = 0.3
LENGTH = 4


class Cell(nn.Module):
    """``tanh(W state + U token)``."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.recur = nn.Linear(width, width, bias=False)
        self.token = nn.Linear(1, width, bias=False)
        self.act = nn.Tanh()
        nn.init.normal_(self.recur.weight, std=width**-0.5)
        nn.init.normal_(self.token.weight, std=1.0)

    def forward(self, state: torch.Tensor, token: torch.Tensor) -> torch.Tensor:
        return self.act(self.recur(state) + self.token(token))


class Recurrent(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.start = nn.Parameter(torch.randn(width))
        self.cell = Cell(width)
        self.readout = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.readout.weight, std=1 / width)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        state = self.start.expand(tokens.shape[0], -1)
        for token in tokens.unbind(1):
            state = self.cell(state, token)
        return self.readout(state)


def make(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    model = Recurrent(width)
    optimizer = torch.optim.SGD(
        [
            {"params": [model.start, *model.cell.token.parameters()], "lr": LEARNING_RATE * width},
            {"params": model.cell.recur.parameters(), "lr": LEARNING_RATE},
            {"params": model.readout.parameters(), "lr": LEARNING_RATE / width},
        ],
        lr=LEARNING_RATE,
    )
    return model, optimizer


# All sequences of signs, (16, LENGTH, 1); the even ones train and the odd ones test.
sequences = torch.tensor(list(itertools.product([1.0, -1.0], repeat=LENGTH)))[..., None]
inputs, test_inputs = sequences[::2], sequences[1::2]
targets, test_targets = inputs[:, 0], test_inputs[:, 0]
loss = F.mse_loss
steps = 8
