"""sin, cos and atan."""

import math

import sympy as sp
import torch
from torch import Tensor

from tpcompile.nonlin.atoms import add, exponential
from tpcompile.nonlin.record import Nonlinearity, always


def _atan_first(x: Tensor) -> Tensor:
    return 1 / (1 + x * x)


SIN = Nonlinearity(
    name="sin",
    targets=("aten.sin.default",),
    fn=torch.sin,
    sympy=lambda x: sp.sin(x),
    derivatives=always((torch.cos, lambda x: -torch.sin(x))),
    parity=always("odd"),
    atoms=always(add(exponential(1j, -0.5j), exponential(-1j, 0.5j))),
    growth=always(("oscillating", -1.0, 1.0)),
)

COS = Nonlinearity(
    name="cos",
    targets=("aten.cos.default",),
    fn=torch.cos,
    sympy=lambda x: sp.cos(x),
    derivatives=always((lambda x: -torch.sin(x), lambda x: -torch.cos(x))),
    parity=always("even"),
    atoms=always(add(exponential(1j, 0.5), exponential(-1j, 0.5))),
    growth=always(("oscillating", -1.0, 1.0)),
)

ATAN = Nonlinearity(
    name="atan",
    targets=("aten.atan.default",),
    fn=torch.atan,
    sympy=lambda x: sp.atan(x),
    derivatives=always((_atan_first, lambda x: -2 * x * _atan_first(x) ** 2)),
    parity=always("odd"),
    growth=always(("bounded", -math.pi / 2, math.pi / 2)),
)
