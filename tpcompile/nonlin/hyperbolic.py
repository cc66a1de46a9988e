"""sinh, cosh and asinh (tanh has its own file)."""

import sympy as sp
import torch

from tpcompile.nonlin.atoms import add, exponential
from tpcompile.nonlin.record import Nonlinearity, always

SINH = Nonlinearity(
    name="sinh",
    targets=("aten.sinh.default",),
    fn=torch.sinh,
    sympy=lambda x: sp.sinh(x),
    derivatives=always((torch.cosh, torch.sinh)),
    parity=always("odd"),
    atoms=always(add(exponential(1.0, 0.5), exponential(-1.0, -0.5))),
    growth=always(("exponential",)),
)

COSH = Nonlinearity(
    name="cosh",
    targets=("aten.cosh.default",),
    fn=torch.cosh,
    sympy=lambda x: sp.cosh(x),
    derivatives=always((torch.sinh, torch.cosh)),
    parity=always("even"),
    atoms=always(add(exponential(1.0, 0.5), exponential(-1.0, 0.5))),
    growth=always(("exponential",)),
)

ASINH = Nonlinearity(
    name="asinh",
    targets=("aten.asinh.default",),
    fn=torch.asinh,
    sympy=lambda x: sp.asinh(x),
    parity=always("odd"),
    growth=always(("logarithmic",)),
)
