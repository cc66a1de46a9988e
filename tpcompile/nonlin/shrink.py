"""Shrinkage: softshrink moves x towards 0 by lambd, hardshrink sets small x to 0."""

from typing import Any

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from tpcompile.nonlin.atoms import X, pieces, polynomial
from tpcompile.nonlin.functions import number
from tpcompile.nonlin.record import Apply, Backward, Nonlinearity, always


def _outside(x: Tensor, lambd: float) -> Tensor:
    return (torch.abs(x) > lambd).to(x.dtype)


def _factor(x: Any, apply: Apply, lambd: float) -> Any:
    return apply("heaviside", apply("abs", x) - lambd)


def _soft(x: sp.Symbol, lambd: float) -> sp.Expr:
    return sp.Max(x - number(lambd), 0) + sp.Min(x + number(lambd), 0)


SOFTSHRINK = Nonlinearity(
    name="softshrink",
    targets=("aten.softshrink.default",),
    parameters=(("lambd", 0.5),),
    fn=F.softshrink,
    sympy=_soft,
    derivatives=lambda lambd: (lambda x: _outside(x, lambd),),
    smoothness=always(1),
    kinks=lambda lambd: (-float(lambd), float(lambd)),
    parity=always("odd"),
    atoms=lambda lambd: pieces(
        (-float(lambd), float(lambd)), (polynomial(lambd, 1.0), polynomial(0.0), polynomial(-lambd, 1.0))
    ),
    growth=always(("polynomial", 1, -1.0, 1.0)),
    backward=(Backward("aten.softshrink_backward.default", "input", _factor),),
    examples=({"lambd": 1.2},),
)

HARDSHRINK = Nonlinearity(
    name="hardshrink",
    targets=("aten.hardshrink.default",),
    parameters=(("lambd", 0.5),),
    fn=F.hardshrink,
    sympy=lambda x, lambd: sp.Piecewise((0, sp.Abs(x) <= number(lambd)), (x, True)),
    derivatives=lambda lambd: (lambda x: _outside(x, lambd),),
    smoothness=always(0),
    kinks=lambda lambd: (-float(lambd), float(lambd)),
    parity=always("odd"),
    atoms=lambda lambd: pieces((-float(lambd), float(lambd)), (X, polynomial(0.0), X)),
    growth=always(("polynomial", 1, -1.0, 1.0)),
    backward=(Backward("aten.hardshrink_backward.default", "input", _factor),),
    examples=({"lambd": 1.2},),
)
