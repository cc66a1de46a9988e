"""leaky_relu(x) = x for x > 0, negative_slope * x below."""

import math
from typing import Any

import sympy as sp
import torch
import torch.nn.functional as F

from tpcompile.nonlin.atoms import SIGN, Atom, collect
from tpcompile.nonlin.functions import number
from tpcompile.nonlin.record import Apply, Backward, Nonlinearity, Parity, always


def _parity(negative_slope: float) -> Parity:
    if negative_slope == 1:
        return "odd"
    return "even" if negative_slope == -1 else None


def _factor(saved: Any, apply: Apply, negative_slope: float) -> Any:
    # the output of an in-place leaky_relu has the sign of its input: torch demands a positive slope there
    return apply("leaky_relu", saved, order=1, negative_slope=negative_slope)


LEAKY_RELU = Nonlinearity(
    name="leaky_relu",
    targets=("aten.leaky_relu.default",),
    parameters=(("negative_slope", 0.01),),
    fn=F.leaky_relu,
    sympy=lambda x, negative_slope: sp.Piecewise((x, x > 0), (number(negative_slope) * x, True)),
    derivatives=lambda negative_slope: (
        lambda x: torch.where(x > 0, torch.ones_like(x), torch.full_like(x, negative_slope)),
        torch.zeros_like,
    ),
    smoothness=lambda negative_slope: math.inf if negative_slope == 1 else 1,
    kinks=lambda negative_slope: () if negative_slope == 1 else (0.0,),
    parity=_parity,
    homogeneity=always(1),
    atoms=lambda negative_slope: collect(
        (Atom((1 + negative_slope) / 2, power=1), Atom((1 - negative_slope) / 2, power=1, gates=(SIGN,)))
    ),
    growth=lambda negative_slope: ("polynomial", 1, -float(negative_slope), 1.0),
    backward=(
        Backward("aten.leaky_relu_backward.default", "input", _factor, flag=("self_is_result", False)),
        Backward("aten.leaky_relu_backward.default", "output", _factor, flag=("self_is_result", True)),
    ),
    examples=({"negative_slope": 0.3}, {"negative_slope": 1.0}),
)
