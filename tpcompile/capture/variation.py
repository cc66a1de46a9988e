"""The model's first variation: the derivative of its output along independent directions of its parameters.

With directions whose entries are independent, normal and of variance the learning rate,
``sum_p <df/dp, direction_p>`` is a Gaussian process over the inputs whose covariance is the tangent kernel. Being a
forward pass, the variation meets no transposed weights but those that the model itself uses.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.autograd import forward_ad

from tpcompile.capture.tangent import Forward


def variation(
    forward: Forward,
    parameters: dict[str, Tensor],
    directions: dict[str, Tensor],
    buffers: dict[str, Tensor],
    inputs: Tensor,
) -> Tensor:
    """``d/ds f(parameters + s directions)`` at s = 0, of the shape of the output; zeros if nothing depends on them."""
    with forward_ad.dual_level(), torch.no_grad():
        dual = {
            name: forward_ad.make_dual(value, directions[name]) if name in directions else value
            for name, value in parameters.items()
        }
        out = forward(dual, buffers, inputs)
        tangent = forward_ad.unpack_dual(out).tangent
        return torch.zeros_like(out) if tangent is None else tangent
