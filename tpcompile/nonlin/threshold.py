"""threshold(x) = x above the threshold, a fixed value elsewhere."""

import sympy as sp
import torch.nn.functional as F

from tpcompile.nonlin.atoms import X, pieces, polynomial
from tpcompile.nonlin.functions import number
from tpcompile.nonlin.record import Backward, Nonlinearity

THRESHOLD = Nonlinearity(
    name="threshold",
    targets=("aten.threshold.default",),
    parameters=(("threshold", 0.0), ("value", 0.0)),
    fn=F.threshold,
    sympy=lambda x, threshold, value: sp.Piecewise((x, x > number(threshold)), (number(value), True)),
    derivatives=lambda threshold, value: (lambda x: (x > threshold).to(x.dtype),),
    smoothness=lambda threshold, value: 1 if threshold == value else 0,
    kinks=lambda threshold, value: (float(threshold),),
    homogeneity=lambda threshold, value: 1 if threshold == value == 0 else None,
    atoms=lambda threshold, value: pieces((float(threshold),), (polynomial(value), X)),
    growth=lambda threshold, value: ("polynomial", 1, 0.0, 1.0),
    backward=(
        Backward(
            "aten.threshold_backward.default",
            saved="input",
            factor=lambda x, apply, threshold: apply("heaviside", x - threshold),
        ),
    ),
    examples=({"threshold": 0.5, "value": 0.5}, {"threshold": 0.1, "value": 2.0}),
)
