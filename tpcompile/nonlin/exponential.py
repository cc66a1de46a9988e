"""exp, expm1, exp2 and powers of a fixed base."""

import math

import sympy as sp
import torch

from tpcompile.nonlin.atoms import ONE, add, exponential, scale
from tpcompile.nonlin.functions import number
from tpcompile.nonlin.record import Nonlinearity, always

EXP = Nonlinearity(
    name="exp",
    targets=("aten.exp.default",),
    fn=torch.exp,
    sympy=lambda x: sp.exp(x),
    derivatives=always((torch.exp, torch.exp)),
    atoms=always(exponential(1.0)),
    growth=always(("exponential",)),
)

EXPM1 = Nonlinearity(
    name="expm1",
    targets=("aten.expm1.default", "aten.special_expm1.default"),
    fn=torch.expm1,
    sympy=lambda x: sp.exp(x) - 1,
    derivatives=always((torch.exp, torch.exp)),
    atoms=always(add(exponential(1.0), scale(ONE, -1))),
    growth=always(("exponential",)),
)

EXP2 = Nonlinearity(
    name="exp2",
    targets=("aten.exp2.default", "aten.special_exp2.default"),
    fn=torch.exp2,
    sympy=lambda x: sp.exp(sp.log(2) * x),
    derivatives=always((lambda x: math.log(2) * torch.exp2(x), lambda x: math.log(2) ** 2 * torch.exp2(x))),
    atoms=always(exponential(math.log(2))),
    growth=always(("exponential",)),
)

EXP_BASE = Nonlinearity(
    name="exp_base",
    targets=("aten.pow.Scalar",),
    parameters=(("base", 2.0),),
    fn=lambda x, base: torch.pow(base, x),
    sympy=lambda x, base: sp.exp(sp.log(number(base)) * x),
    atoms=lambda base: exponential(math.log(base)),
    growth=lambda base: ("exponential",) if base != 1 else ("bounded", 1.0, 1.0),
    examples=({"base": 0.5},),
    note="base ** x, of a positive base",
)
