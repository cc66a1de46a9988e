"""Per-sample Jacobians of the model's output with respect to its parameters."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

Forward = Callable[[dict[str, Tensor], dict[str, Tensor], Tensor], Tensor]


def jacobians(
    forward: Forward,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    names: list[str],
    inputs: Tensor,
) -> dict[str, Tensor]:
    """``(N, k, *shape)`` for each named parameter; k is the length of one input's flattened output.

    Parameters stay unbatched under ``vmap``, so the products with weights are ``mm`` with the weights
    themselves, and the Jacobian of a weight is ``bmm`` of (.., out, 1) with (.., 1, in).
    """
    fixed = {n: p for n, p in parameters.items() if n not in names}

    def single(moving: dict[str, Tensor], x: Tensor) -> Tensor:
        return forward({**moving, **fixed}, buffers, x.unsqueeze(0)).squeeze(0).flatten()

    moving = {n: parameters[n] for n in names}
    jacobian = torch.func.jacrev(single)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        try:
            return torch.func.vmap(jacobian, (None, 0))(moving, inputs)
        except RuntimeError:
            # In-place operations inside torch (RNN cells) need every operand to have the batch axis.
            copies = {n: p.expand(len(inputs), *p.shape) for n, p in moving.items()}
            return torch.func.vmap(jacobian, (0, 0))(copies, inputs)
