"""relu(x) = max(x, 0)."""

import sympy as sp
import torch

from tpcompile.nonlin.atoms import UP, Atom
from tpcompile.nonlin.record import Backward, Nonlinearity, always

RELU = Nonlinearity(
    name="relu",
    targets=("aten.relu.default",),
    fn=torch.relu,
    sympy=lambda x: sp.Max(x, 0),
    derivatives=always((lambda x: (x > 0).to(x.dtype),)),
    smoothness=always(1),
    kinks=always((0.0,)),
    homogeneity=always(1),
    atoms=always((Atom(1.0, power=1, gates=(UP,)),)),
    growth=always(("polynomial", 1, 0.0, 1.0)),
    backward=(
        Backward(
            "aten.threshold_backward.default",
            saved="output",  # the sign of the output tells what that of the input does
            factor=lambda y, apply, threshold: apply("heaviside", y - threshold),
        ),
    ),
)
