"""Functions that cut x off at bounds: hardtanh (relu6 is one) and clamp."""

import math
from typing import Any

import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor

from tpcompile.nonlin.atoms import Expression, X, pieces, polynomial
from tpcompile.nonlin.functions import number
from tpcompile.nonlin.record import Apply, Backward, Growth, Nonlinearity, Parity, always


def _factor(x: Any, apply: Apply, min_val: float, max_val: float) -> Any:
    return apply("hardtanh", x, order=1, min_val=min_val, max_val=max_val)


HARDTANH = Nonlinearity(
    name="hardtanh",
    targets=("aten.hardtanh.default",),
    parameters=(("min_val", -1.0), ("max_val", 1.0)),
    fn=F.hardtanh,
    sympy=lambda x, min_val, max_val: sp.Min(sp.Max(x, number(min_val)), number(max_val)),
    derivatives=lambda min_val, max_val: (lambda x: ((x > min_val) & (x < max_val)).to(x.dtype),),
    smoothness=always(1),
    kinks=lambda min_val, max_val: (float(min_val), float(max_val)),
    parity=lambda min_val, max_val: "odd" if min_val == -max_val else None,
    atoms=lambda min_val, max_val: pieces(
        (float(min_val), float(max_val)), (polynomial(min_val), X, polynomial(max_val))
    ),
    growth=lambda min_val, max_val: ("bounded", float(min_val), float(max_val)),
    backward=(Backward("aten.hardtanh_backward.default", "input", _factor),),
    examples=({"min_val": 0.0, "max_val": 6.0},),
    note="relu6 is hardtanh with min_val=0, max_val=6",
)


def _clamp(x: Tensor, min: float | None, max: float | None) -> Tensor:
    return x if min is None and max is None else torch.clamp(x, min, max)


def _clamp_sympy(x: sp.Symbol, min: float | None, max: float | None) -> sp.Expr:
    y = x if min is None else sp.Max(x, number(min))
    return y if max is None else sp.Min(y, number(max))  # type: ignore[return-value]


def _clamp_first(x: Tensor, min: float | None, max: float | None) -> Tensor:
    inside = torch.ones_like(x, dtype=torch.bool)
    if min is not None:
        inside = inside & (x >= min)
    if max is not None:
        inside = inside & (x <= max)
    return inside.to(x.dtype)


def _clamp_kinks(min: float | None, max: float | None) -> tuple[float, ...]:
    return tuple(float(bound) for bound in (min, max) if bound is not None)


def _clamp_parity(min: float | None, max: float | None) -> Parity:
    if min is None or max is None:
        return "odd" if min is max else None
    return "odd" if min == -max else None


def _clamp_homogeneity(min: float | None, max: float | None) -> float | None:
    return 1 if all(bound == 0 for bound in _clamp_kinks(min, max)) else None


def _clamp_atoms(min: float | None, max: float | None) -> Expression:
    breaks = _clamp_kinks(min, max)
    if not breaks:
        return X
    below, above = (X if bound is None else polynomial(bound) for bound in (min, max))
    return pieces(breaks, (below, *((X,) if len(breaks) == 2 else ()), above))


def _clamp_growth(min: float | None, max: float | None) -> Growth:
    if min is not None and max is not None:
        return ("bounded", float(min), float(max))
    return ("polynomial", 1, -1.0 if min is None else 0.0, 1.0 if max is None else 0.0)


CLAMP = Nonlinearity(
    name="clamp",
    targets=("aten.clamp.default", "aten.clip.default", "aten.clamp_min.default", "aten.clamp_max.default"),
    parameters=(("min", None), ("max", None)),
    fn=_clamp,
    sympy=_clamp_sympy,
    derivatives=lambda min, max: (lambda x: _clamp_first(x, min, max), torch.zeros_like),
    smoothness=lambda min, max: 1 if _clamp_kinks(min, max) else math.inf,
    kinks=_clamp_kinks,
    parity=_clamp_parity,
    homogeneity=_clamp_homogeneity,
    atoms=_clamp_atoms,
    growth=_clamp_growth,
    examples=({"min": -1, "max": 1}, {"min": 0.0}, {"max": 0.5}, {"min": -0.5, "max": 2.0}),
    note="its derivative counts the bounds as inside, hardtanh's does not; its backward traces to "
    "ge, le, logical_and and where",
)
