"""The absolute value."""

import sympy as sp
import torch

from tpcompile.nonlin.atoms import SIGN, Atom
from tpcompile.nonlin.record import Nonlinearity, always

ABS = Nonlinearity(
    name="abs",
    targets=("aten.abs.default",),
    fn=torch.abs,
    sympy=lambda x: sp.Abs(x),
    derivatives=always((torch.sign,)),
    smoothness=always(1),
    kinks=always((0.0,)),
    parity=always("even"),
    homogeneity=always(1),
    atoms=always((Atom(1.0, power=1, gates=(SIGN,)),)),
    growth=always(("polynomial", 1, 1.0, 1.0)),
)
