"""Functions with values in {-1, 0, 1}: heaviside and sign."""

import sympy as sp
import torch

from tpcompile.nonlin.atoms import SIGN, UP, Atom
from tpcompile.nonlin.record import Nonlinearity, always

HEAVISIDE = Nonlinearity(
    name="heaviside",
    fn=lambda x: (x > 0).to(x.dtype),
    sympy=lambda x: sp.Heaviside(x, sp.S.Zero),  # type: ignore[arg-type]
    smoothness=always(0),
    kinks=always((0.0,)),
    homogeneity=always(0),
    atoms=always((Atom(1.0, gates=(UP,)),)),
    growth=always(("bounded", 0.0, 1.0)),
    note="1 for x > 0, else 0 (also at 0): the derivative of relu as torch computes it; "
    "comparisons with a number lower to it",
)

SIGN = Nonlinearity(
    name="sign",
    targets=("aten.sign.default", "aten.sgn.default"),
    fn=torch.sign,
    sympy=lambda x: sp.sign(x),
    smoothness=always(0),
    kinks=always((0.0,)),
    parity=always("odd"),
    homogeneity=always(0),
    atoms=always((Atom(1.0, gates=(SIGN,)),)),
    growth=always(("bounded", -1.0, 1.0)),
)
