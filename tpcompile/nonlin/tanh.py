"""tanh."""

import sympy as sp
import torch
from torch import Tensor

from tpcompile.nonlin.record import Backward, Nonlinearity, always


def _first(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    return 1 - y * y


def _second(x: Tensor) -> Tensor:
    y = torch.tanh(x)
    return -2 * y * (1 - y * y)


TANH = Nonlinearity(
    name="tanh",
    targets=("aten.tanh.default",),
    fn=torch.tanh,
    sympy=lambda x: sp.tanh(x),
    derivatives=always((_first, _second)),
    parity=always("odd"),
    growth=always(("bounded", -1.0, 1.0)),
    backward=(Backward("aten.tanh_backward.default", "output", lambda y, apply: 1.0 - y * y),),
)
