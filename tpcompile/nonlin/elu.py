"""The exponential linear family: scale * x for x > 0, scale * alpha * (exp(input_scale * x) - 1) below.

``selu`` traces to ``elu`` with its constants; ``celu`` has an operation of its own, but the
backward operation of ``elu``.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from tpcompile.nonlin.atoms import Expression, add, exponential, pieces, polynomial
from tpcompile.nonlin.functions import number
from tpcompile.nonlin.record import Apply, Backward, Nonlinearity, always


def _elu_sympy(x: sp.Symbol, alpha: float, scale: float, input_scale: float) -> sp.Expr:
    a, s, c = number(alpha), number(scale), number(input_scale)
    return sp.Piecewise((s * x, x > 0), (s * a * (sp.exp(c * x) - 1), True))  # type: ignore[return-value]


def _elu_derivative(x: Tensor, order: int, alpha: float, scale: float, input_scale: float) -> Tensor:
    left = scale * alpha * input_scale**order * torch.exp((input_scale * x).clamp(max=0.0))
    return torch.where(x > 0, torch.full_like(x, scale if order == 1 else 0.0), left)


def _elu_derivatives(**parameters: float) -> tuple[Callable[[Tensor], Tensor], ...]:
    return tuple(partial(_elu_derivative, order=order, **parameters) for order in (1, 2))


def _elu_atoms(alpha: float, scale: float, input_scale: float) -> Expression:
    below = add(exponential(input_scale, scale * alpha), polynomial(-scale * alpha))
    return pieces((0.0,), (below, polynomial(0.0, scale)))


def _elu_smoothness(alpha: float, scale: float, input_scale: float) -> int:
    return 2 if math.isclose(alpha * input_scale, 1.0, rel_tol=1e-12) else 1


def _of_input(x: Any, apply: Apply, alpha: float, scale: float, input_scale: float) -> Any:
    return apply("elu", x, order=1, alpha=alpha, scale=scale, input_scale=input_scale)


def _of_output(y: Any, apply: Apply, alpha: float, scale: float, input_scale: float) -> Any:
    above = apply("heaviside", y)
    return above * scale + (1.0 - above) * ((y + alpha * scale) * input_scale)


ELU = Nonlinearity(
    name="elu",
    targets=("aten.elu.default",),
    parameters=(("alpha", 1.0), ("scale", 1.0), ("input_scale", 1.0)),
    fn=lambda x, alpha, scale, input_scale: torch.ops.aten.elu.default(x, alpha, scale, input_scale),
    sympy=_elu_sympy,
    derivatives=_elu_derivatives,
    smoothness=_elu_smoothness,
    kinks=always((0.0,)),
    atoms=_elu_atoms,
    growth=lambda alpha, scale, input_scale: ("polynomial", 1, 0.0, float(scale)),
    backward=(
        Backward("aten.elu_backward.default", "input", _of_input, flag=("is_result", False)),
        Backward("aten.elu_backward.default", "output", _of_output, flag=("is_result", True)),
    ),
    examples=(
        {"alpha": 2.0},
        {"alpha": 1.6732632423543772, "scale": 1.0507009873554805},
        {"alpha": 2.0, "input_scale": 0.5},
    ),
    note="selu is elu with alpha=1.67.., scale=1.05..",
)

CELU = Nonlinearity(
    name="celu",
    targets=("aten.celu.default",),
    parameters=(("alpha", 1.0),),
    fn=F.celu,
    sympy=lambda x, alpha: _elu_sympy(x, alpha, 1, 1 / number(alpha)),  # type: ignore[arg-type]
    derivatives=lambda alpha: _elu_derivatives(alpha=alpha, scale=1.0, input_scale=1 / alpha),
    smoothness=always(2),
    kinks=always((0.0,)),
    atoms=lambda alpha: _elu_atoms(alpha, 1.0, 1 / alpha),
    growth=always(("polynomial", 1, 0.0, 1.0)),
    examples=({"alpha": 2.0},),
    note="elu with input_scale = 1/alpha, whose backward operation it shares",
)
