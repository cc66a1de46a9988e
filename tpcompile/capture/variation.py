"""The model's first variation: the derivative of its output along independent directions of its parameters.

With directions whose entries are independent, normal and of variance the learning rate,
``sum_p <df/dp, direction_p>`` is a Gaussian process over the inputs whose covariance is the tangent kernel. Being a
forward pass, the variation meets no transposed weights but those that the model itself uses.
"""

from __future__ import annotations

import sys
from importlib import import_module

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tpcompile.capture.tangent import Forward

_DECOMPOSITIONS = "torch._decomp.decompositions_for_jvp"


def more_derivatives(error: Exception) -> bool:
    """Load forward derivatives by decomposition if an error may come from their absence, and they are not there yet."""
    if not isinstance(error.__cause__, NotImplementedError) or _DECOMPOSITIONS in sys.modules:
        return False
    import_module(_DECOMPOSITIONS)
    return True


def variation(
    forward: Forward,
    parameters: dict[str, Tensor],
    directions: dict[str, Tensor],
    buffers: dict[str, Tensor],
    inputs: Tensor,
) -> Tensor:
    """``d/ds f(parameters + s directions)`` at s = 0, of the shape of the output; zeros if nothing depends on them.

    NotImplementedError from the few operations whose derivative torch decomposes: see :func:`more_derivatives`.
    """
    with forward_ad.dual_level() as level, torch.no_grad():
        dual = {  # make_dual without the import of the decompositions, which takes longer than tracing a model
            name: torch._VF._make_dual(value, directions[name], level=level) if name in directions else value
            for name, value in parameters.items()
        }
        out = forward(dual, buffers, inputs)
        tangent = forward_ad.unpack_dual(out).tangent
        return torch.zeros_like(out) if tangent is None else tangent
