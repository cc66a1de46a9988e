"""gelu(x) = x * Phi(x), exactly or in the tanh approximation (Hendrycks & Gimpel, 1606.08415)."""

import math
from collections.abc import Callable

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from tpcompile.nonlin.atoms import X, multiply, normal_distribution
from tpcompile.nonlin.functions import sigmoid
from tpcompile.nonlin.record import Backward, Nonlinearity, always

_CUBIC = 0.044715
_SLOPE = 2 * math.sqrt(2 / math.pi)


def _sympy(x: sp.Symbol, approximate: str) -> sp.Expr:
    if approximate == "none":
        return x * (1 + sp.erf(x / sp.sqrt(2))) / 2
    cubic = sp.Rational(44715, 1000000)
    return x * sigmoid(2 * sp.sqrt(2 / sp.pi) * (x + cubic * x**3))


def _density(x: Tensor) -> Tensor:
    return torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def _exact_first(x: Tensor) -> Tensor:
    return torch.special.ndtr(x) + x * _density(x)


def _exact_second(x: Tensor) -> Tensor:
    return (2 - x * x) * _density(x)


def _tanh_argument(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """v with (1 + tanh(v / 2)) / 2 = sigmoid(v), and its first two derivatives by x."""
    square = x * x
    return _SLOPE * x * (1 + _CUBIC * square), _SLOPE * (1 + 3 * _CUBIC * square), 6 * _SLOPE * _CUBIC * x


def _tanh_first(x: Tensor) -> Tensor:
    v, v1, _ = _tanh_argument(x)
    return torch.sigmoid(v) * (1 + x * v1 * torch.sigmoid(-v))


def _tanh_second(x: Tensor) -> Tensor:
    v, v1, v2 = _tanh_argument(x)
    slope = torch.sigmoid(v) * torch.sigmoid(-v)
    return slope * (2 * v1 + x * (v2 - v1 * v1 * torch.tanh(v / 2)))


def _derivatives(approximate: str) -> tuple[Callable[[Tensor], Tensor], ...]:
    return (_exact_first, _exact_second) if approximate == "none" else (_tanh_first, _tanh_second)


GELU = Nonlinearity(
    name="gelu",
    targets=("aten.gelu.default",),
    parameters=(("approximate", "none"),),
    fn=F.gelu,
    sympy=_sympy,
    derivatives=_derivatives,
    atoms=lambda approximate: multiply(X, normal_distribution()) if approximate == "none" else None,
    growth=always(("polynomial", 1, 0.0, 1.0)),
    backward=(
        Backward(
            "aten.gelu_backward.default",
            saved="input",
            factor=lambda x, apply, approximate: apply("gelu", x, order=1, approximate=approximate),
        ),
    ),
    examples=({"approximate": "tanh"},),
)
