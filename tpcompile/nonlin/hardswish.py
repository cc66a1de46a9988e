"""Piecewise polynomial substitutes of sigmoid and silu (MobileNetV3, 1905.02244)."""

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from tpcompile.nonlin.atoms import ONE, X, pieces, polynomial
from tpcompile.nonlin.record import Backward, Nonlinearity, always


def _hardswish_first(x: Tensor) -> Tensor:
    inner = torch.where(x < 3, x / 3 + 0.5, torch.ones_like(x))
    return torch.where(x > -3, inner, torch.zeros_like(x))


def _hardsigmoid_sympy(x: sp.Symbol) -> sp.Expr:
    return sp.Min(sp.Max(x / 6 + sp.Rational(1, 2), 0), 1)  # type: ignore[return-value]


HARDSWISH = Nonlinearity(
    name="hardswish",
    targets=("aten.hardswish.default",),
    fn=F.hardswish,
    sympy=lambda x: x * _hardsigmoid_sympy(x),
    derivatives=always((_hardswish_first,)),
    smoothness=always(1),
    kinks=always((-3.0, 3.0)),
    atoms=always(pieces((-3.0, 3.0), (polynomial(0.0), polynomial(0.0, 1 / 2, 1 / 6), X))),
    growth=always(("polynomial", 1, 0.0, 1.0)),
    backward=(Backward("aten.hardswish_backward.default", "input", lambda x, apply: apply("hardswish", x, order=1)),),
)

HARDSIGMOID = Nonlinearity(
    name="hardsigmoid",
    targets=("aten.hardsigmoid.default",),
    fn=F.hardsigmoid,
    sympy=_hardsigmoid_sympy,
    derivatives=always((lambda x: ((x > -3) & (x < 3)).to(x.dtype) / 6,)),
    smoothness=always(1),
    kinks=always((-3.0, 3.0)),
    atoms=always(pieces((-3.0, 3.0), (polynomial(0.0), polynomial(1 / 2, 1 / 6), ONE))),
    growth=always(("bounded", 0.0, 1.0)),
    backward=(
        Backward("aten.hardsigmoid_backward.default", "input", lambda x, apply: apply("hardsigmoid", x, order=1)),
    ),
)
