"""The logistic sigmoid."""

import torch
from torch import Tensor

from tpcompile.nonlin.functions import sigmoid
from tpcompile.nonlin.record import Backward, Nonlinearity, always


def _first(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x)


def _second(x: Tensor) -> Tensor:
    return -_first(x) * torch.tanh(x / 2)


SIGMOID = Nonlinearity(
    name="sigmoid",
    targets=("aten.sigmoid.default",),
    fn=torch.sigmoid,
    sympy=lambda x: sigmoid(x),  # type: ignore[return-value]
    derivatives=always((_first, _second)),
    growth=always(("bounded", 0.0, 1.0)),
    backward=(Backward("aten.sigmoid_backward.default", "output", lambda y, apply: y * (1.0 - y)),),
)
