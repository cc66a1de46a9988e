"""silu(x) = x * sigmoid(x), also called swish.

``make_fx`` decomposes its backward to sigmoid and arithmetic; other tracers keep ``silu_backward``.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tpcompile.nonlin.functions import sigmoid
from tpcompile.nonlin.record import Backward, Nonlinearity, always


def _first(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * torch.sigmoid(-x))


def _second(x: Tensor) -> Tensor:
    return torch.sigmoid(x) * torch.sigmoid(-x) * (2 - x * torch.tanh(x / 2))


SILU = Nonlinearity(
    name="silu",
    targets=("aten.silu.default",),
    fn=F.silu,
    sympy=lambda x: x * sigmoid(x),
    derivatives=always((_first, _second)),
    growth=always(("polynomial", 1, 0.0, 1.0)),
    backward=(Backward("aten.silu_backward.default", "input", lambda x, apply: apply("silu", x, order=1)),),
)
