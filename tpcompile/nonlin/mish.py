"""mish(x) = x * tanh(softplus(x)) (1908.08681).

``make_fx`` decomposes its backward to sigmoid, exp, log1p, tanh and arithmetic.
"""

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from tpcompile.nonlin.functions import softplus
from tpcompile.nonlin.record import Backward, Nonlinearity, always


def _first(x: Tensor) -> Tensor:
    t = torch.tanh(F.softplus(x))
    return t + x * torch.sigmoid(x) * (1 - t * t)


MISH = Nonlinearity(
    name="mish",
    targets=("aten.mish.default",),
    fn=F.mish,
    sympy=lambda x: x * sp.tanh(softplus(x)),
    derivatives=always((_first,)),
    growth=always(("polynomial", 1, 0.0, 1.0)),
    backward=(Backward("aten.mish_backward.default", "input", lambda x, apply: apply("mish", x, order=1)),),
)
