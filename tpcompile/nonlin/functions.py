"""Sympy functions whose torch values are stable, as building blocks of the records' sympy forms.

Written out in ``exp`` these functions, and more so their derivatives, overflow or cancel; kept as
one symbol, the derivatives are polynomials in stable values.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor


class sigmoid(sp.Function):  # noqa: N801 (named as printed)
    """The logistic function 1 / (1 + exp(-x))."""

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return self * sigmoid(-self.args[0])  # type: ignore[operator]  # 1 - self would cancel

    def _eval_rewrite_as_exp(self, x: sp.Expr, **_: Any) -> sp.Expr:
        return 1 / (1 + sp.exp(-x))

    def _eval_evalf(self, prec: int) -> sp.Expr | None:
        x: Any = self.args[0]
        return (1 / (1 + sp.exp(-x)))._eval_evalf(prec) if x.is_number else None


class softplus(sp.Function):  # noqa: N801 (named as printed)
    """log(1 + exp(x))."""

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return sigmoid(self.args[0])  # type: ignore[return-value]

    def _eval_rewrite_as_log(self, x: sp.Expr, **_: Any) -> sp.Expr:
        return sp.log(1 + sp.exp(x))

    def _eval_evalf(self, prec: int) -> sp.Expr | None:
        x: Any = self.args[0]
        return sp.log(1 + sp.exp(x))._eval_evalf(prec) if x.is_number else None


def _softplus(x: Tensor) -> Tensor:
    return F.softplus(x, threshold=40.0)  # beyond it log(1 + exp(x)) is x also in float64


TORCH: dict[str, Callable[..., Tensor]] = {
    "Abs": torch.abs,
    "asinh": torch.asinh,
    "atan": torch.atan,
    "cos": torch.cos,
    "cosh": torch.cosh,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "exp": torch.exp,
    "log": torch.log,
    "sigmoid": torch.sigmoid,
    "sin": torch.sin,
    "sinh": torch.sinh,
    "softplus": _softplus,
    "sqrt": torch.sqrt,
    "tanh": torch.tanh,
}
"""Torch functions by the names that sympy prints."""


def number(value: float) -> sp.Expr:
    """A parameter as an exact sympy number, so that integer powers stay integer powers."""
    return sp.nsimplify(value, rational=True)


def torch_function(expression: sp.Expr, x: sp.Symbol) -> Callable[[Tensor], Tensor]:
    """The torch function of an expression in one real symbol."""
    if not expression.has(x):
        constant = float(expression)
        return lambda value: torch.full_like(value, constant)
    # torch.sqrt takes no number: constants such as sqrt(2) become floats, rationals (exponents) stay
    expression = expression.replace(lambda e: e.is_number and not e.is_Rational, lambda e: e.evalf(20))  # type: ignore[assignment]
    return sp.lambdify(x, expression, modules=[TORCH], cse=True)
