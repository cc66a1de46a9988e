"""Logarithms."""

import math

import sympy as sp
import torch

from tpcompile.nonlin.record import Nonlinearity, always

LOG = Nonlinearity(
    name="log",
    targets=("aten.log.default",),
    fn=torch.log,
    sympy=lambda x: sp.log(x),
    derivatives=always((torch.reciprocal, lambda x: -torch.reciprocal(x * x))),
    growth=always(("logarithmic",)),
    domain=always("positive"),
)

LOG2 = Nonlinearity(
    name="log2",
    targets=("aten.log2.default",),
    fn=torch.log2,
    sympy=lambda x: sp.log(x) / sp.log(2),
    derivatives=always((lambda x: torch.reciprocal(x * math.log(2)),)),
    growth=always(("logarithmic",)),
    domain=always("positive"),
)

LOG10 = Nonlinearity(
    name="log10",
    targets=("aten.log10.default",),
    fn=torch.log10,
    sympy=lambda x: sp.log(x) / sp.log(10),
    derivatives=always((lambda x: torch.reciprocal(x * math.log(10)),)),
    growth=always(("logarithmic",)),
    domain=always("positive"),
)

LOG1P = Nonlinearity(
    name="log1p",
    targets=("aten.log1p.default", "aten.special_log1p.default"),
    fn=torch.log1p,
    sympy=lambda x: sp.log(1 + x),
    derivatives=always((lambda x: torch.reciprocal(1 + x), lambda x: -torch.reciprocal((1 + x) ** 2))),
    growth=always(("logarithmic",)),
    domain=always("above -1"),
)
