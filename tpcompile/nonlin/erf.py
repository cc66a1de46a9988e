"""The error function and its complement; their backward traces to pow, neg, exp and mul."""

import math

import sympy as sp
import torch
from torch import Tensor

from tpcompile.nonlin.atoms import ONE, add, error_function, scale
from tpcompile.nonlin.record import Nonlinearity, always


def _first(x: Tensor) -> Tensor:
    return 2 / math.sqrt(math.pi) * torch.exp(-x * x)


def _second(x: Tensor) -> Tensor:
    return -2 * x * _first(x)


ERF = Nonlinearity(
    name="erf",
    targets=("aten.erf.default", "aten.special_erf.default"),
    fn=torch.erf,
    sympy=lambda x: sp.erf(x),
    derivatives=always((_first, _second)),
    parity=always("odd"),
    atoms=always(error_function()),
    growth=always(("bounded", -1.0, 1.0)),
)

ERFC = Nonlinearity(
    name="erfc",
    targets=("aten.erfc.default", "aten.special_erfc.default"),
    fn=torch.erfc,
    sympy=lambda x: sp.erfc(x),
    derivatives=always((lambda x: -_first(x), lambda x: -_second(x))),
    atoms=always(add(ONE, scale(error_function(), -1))),
    growth=always(("bounded", 2.0, 0.0)),
)
