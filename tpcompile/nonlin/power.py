"""Powers with a fixed exponent, and those that torch has an operation for."""

from collections.abc import Callable
from functools import partial

import sympy as sp
import torch
from torch import Tensor

from tpcompile.nonlin.atoms import Atom, Expression
from tpcompile.nonlin.functions import number
from tpcompile.nonlin.record import Domain, Growth, Nonlinearity, Parity, always


def _derivative(x: Tensor, exponent: float, order: int) -> Tensor:
    factor = 1.0
    for k in range(order):
        factor *= exponent - k
    return factor * torch.pow(x, exponent - order) if factor else torch.zeros_like(x)


def _derivatives(exponent: float) -> tuple[Callable[[Tensor], Tensor], ...]:
    return tuple(partial(_derivative, exponent=exponent, order=order) for order in (1, 2))


def _parity(exponent: float) -> Parity:
    if not float(exponent).is_integer():
        return None
    return "odd" if exponent % 2 else "even"


def _growth(exponent: float) -> Growth:
    left = {"even": 1.0, "odd": -1.0, None: None}[_parity(exponent)]
    if exponent > 0:
        return ("polynomial", exponent, left, 1.0)
    value = 1.0 if exponent == 0 else 0.0
    return ("bounded", None if left is None else value, value)


def _atoms(exponent: float) -> Expression | None:
    return (Atom(1.0, power=int(exponent)),) if exponent >= 0 and float(exponent).is_integer() else None


def _domain(exponent: float) -> Domain:
    if not float(exponent).is_integer():
        return "positive"
    return "real" if exponent >= 0 else "nonzero"


def _special(name: str, exponent: float, fn: Callable[[Tensor], Tensor], *targets: str) -> Nonlinearity:
    """A power that torch has an operation for."""
    return Nonlinearity(
        name=name,
        targets=targets,
        fn=fn,
        sympy=lambda x: x ** number(exponent),
        derivatives=always(_derivatives(exponent)),
        parity=always(_parity(exponent)),
        homogeneity=always(exponent),
        atoms=always(_atoms(exponent)),
        growth=always(_growth(exponent)),
        domain=always(_domain(exponent)),
    )


POW = Nonlinearity(
    name="pow",
    targets=("aten.pow.Tensor_Scalar",),
    parameters=(("exponent", 2.0),),
    fn=torch.pow,
    sympy=lambda x, exponent: x ** number(exponent) if exponent else sp.Integer(1),
    derivatives=_derivatives,
    parity=_parity,
    homogeneity=lambda exponent: exponent,
    atoms=_atoms,
    growth=_growth,
    domain=_domain,
    examples=tuple({"exponent": p} for p in (0, 1, 3, 4.0, -1, -2.0, 0.5, 1.5, -0.5)),
)
SQUARE = _special("square", 2, torch.square, "aten.square.default")
SQRT = _special("sqrt", 0.5, torch.sqrt, "aten.sqrt.default")
RSQRT = _special("rsqrt", -0.5, torch.rsqrt, "aten.rsqrt.default")
RECIPROCAL = _special("reciprocal", -1, torch.reciprocal, "aten.reciprocal.default")
