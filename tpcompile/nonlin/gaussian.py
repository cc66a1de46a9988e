"""exp of a negative multiple of the square: what derivatives of error functions trace to."""

import sympy as sp
import torch

from tpcompile.nonlin.atoms import gaussian
from tpcompile.nonlin.functions import number
from tpcompile.nonlin.record import Nonlinearity, always

SQUARED_EXPONENTIAL = Nonlinearity(
    name="squared_exponential",
    parameters=(("precision", 1.0),),
    fn=lambda x, precision: torch.exp(x * x * -precision),
    sympy=lambda x, precision: sp.exp(-number(precision) * x**2),
    parity=always("even"),
    atoms=gaussian,
    growth=always(("bounded", 0.0, 0.0)),
    examples=({"precision": 0.5},),
    note="exp(-precision x^2), as kernels see it in exp and pow",
)
