"""softplus and its mirror image logsigmoid."""

import math
from typing import Any

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from tpcompile.nonlin.functions import number, softplus
from tpcompile.nonlin.record import Apply, Backward, Nonlinearity, always


def _is_smooth(threshold: float) -> bool:
    """Whether torch's switch to the identity at beta * x = threshold is far below float32 rounding."""
    return threshold >= 15.9


def _sympy(x: sp.Symbol, beta: float, threshold: float) -> sp.Expr:
    smooth: Any = softplus(number(beta) * x) / number(beta)  # type: ignore[operator]
    return smooth if _is_smooth(threshold) else sp.Piecewise((x, number(beta) * x > threshold), (smooth, True))


def _first(x: Tensor, beta: float, threshold: float) -> Tensor:
    z = beta * x
    return torch.where(z > threshold, torch.ones_like(x), torch.sigmoid(z))


def _second(x: Tensor, beta: float, threshold: float) -> Tensor:
    z = beta * x
    return torch.where(z > threshold, torch.zeros_like(x), beta * torch.sigmoid(z) * torch.sigmoid(-z))


def _factor(x: Any, apply: Apply, beta: float, threshold: float) -> Any:
    if _is_smooth(threshold):
        return apply("softplus", x, order=1, beta=beta, threshold=threshold)
    slope, above = apply("sigmoid", x * beta), apply("heaviside", x * beta - threshold)
    return slope + above * (1.0 - slope)


SOFTPLUS = Nonlinearity(
    name="softplus",
    targets=("aten.softplus.default",),
    parameters=(("beta", 1.0), ("threshold", 20.0)),
    fn=F.softplus,
    sympy=_sympy,
    derivatives=lambda beta, threshold: (
        lambda x: _first(x, beta, threshold),
        lambda x: _second(x, beta, threshold),
    ),
    smoothness=lambda beta, threshold: math.inf if _is_smooth(threshold) else 0,
    kinks=lambda beta, threshold: () if _is_smooth(threshold) else (threshold / beta,),
    growth=lambda beta, threshold: ("polynomial", 1, 0.0, 1.0),
    backward=(Backward("aten.softplus_backward.default", "input", _factor),),
    examples=({"beta": 2.0}, {"beta": 2.0, "threshold": 3.0}),
    note="torch switches to x at beta * x = threshold: a jump of exp(-threshold)/beta, "
    "counted as none from a threshold of 15.9 (default 20)",
)

LOGSIGMOID = Nonlinearity(
    name="logsigmoid",
    targets=("aten.log_sigmoid.default", "aten.log_sigmoid_forward.default"),
    tuple_targets=("aten.log_sigmoid_forward.default",),
    fn=F.logsigmoid,
    sympy=lambda x: -softplus(-x),  # type: ignore[operator]
    derivatives=always((lambda x: torch.sigmoid(-x), lambda x: -torch.sigmoid(x) * torch.sigmoid(-x))),
    growth=always(("polynomial", 1, -1.0, 0.0)),
    backward=(
        Backward(
            "aten.log_sigmoid_backward.default",
            saved="input",
            factor=lambda x, apply: apply("logsigmoid", x, order=1),
        ),
    ),
    note="the second output of log_sigmoid_forward is a buffer that only log_sigmoid_backward reads",
)
