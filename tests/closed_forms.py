"""Limits by hand, for the tests: dual activations, kernel recursions, and one hidden layer as a finite system."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def dual(phi: str, cov: Tensor) -> tuple[Tensor, Tensor]:
    """``E phi(a) phi(b)`` and ``E phi'(a) phi'(b)`` for centred Gaussians of covariance ``cov``, (N, N) each.

    Cho & Saul (2009) for relu, Williams (1997) for erf.
    """
    size = cov.diagonal()
    if phi == "relu":
        norm = (size[:, None] * size[None]).sqrt()
        angle = torch.arccos((cov / norm).clamp(-1, 1))
        value = norm * (angle.sin() + (math.pi - angle) * angle.cos()) / (2 * math.pi)
        return value, (math.pi - angle) / (2 * math.pi)
    if phi == "erf":
        norm = (1 + 2 * size[:, None]) * (1 + 2 * size[None])
        value = 2 / math.pi * torch.arcsin(2 * cov / norm.sqrt())
        return value, 4 / math.pi / (norm - 4 * cov.square()).sqrt()
    raise ValueError(phi)


def ntk_recursion(phi: str, depth: int, inputs: Tensor) -> tuple[list[Tensor], Tensor]:
    """Kernels of the activations ``phi(h_1) .. phi(h_depth)`` at initialisation, and the plain tangent kernel.

    For ``h_1 = w x`` and ``h_l = n^-1/2 w phi(h_{l-1})`` with standard normal w (the NTK parametrization).
    """
    covariance = inputs @ inputs.T
    tangent, kernels = covariance, []
    for _ in range(depth):
        covariance, slope = dual(phi, covariance)
        kernels.append(covariance)
        tangent = covariance + tangent * slope
    return kernels, tangent


def linear_by_hand(x: Tensor, y: Tensor, steps: int, **sgd: Any) -> tuple[Tensor, Tensor]:
    """One hidden linear layer in muP: outputs (steps+1, N, 1) and the feature kernel of the hidden layer.

    A hidden unit is a linear function of its independent initial weights ``u in R^d`` and ``v``; its
    coefficients follow the same SGD as the unit, with the sum over units replaced by the expectation.
    """
    d = x.shape[1]
    u = torch.cat([torch.eye(d), torch.zeros(d, 1)], 1).double().requires_grad_()
    v = torch.eye(d + 1)[d:].T.double().contiguous().requires_grad_()
    optimizer = torch.optim.SGD([u, v], **sgd)
    outputs, kernels = [], []
    for step in range(steps + 1):
        hidden = x @ u
        output = hidden @ v
        outputs.append(output.detach())
        kernels.append((hidden @ hidden.T).detach())
        if step < steps:
            optimizer.zero_grad()
            F.mse_loss(output, y).backward()
            optimizer.step()
    return torch.stack(outputs), torch.stack(kernels)


def hidden_layer_by_quadrature(
    phi: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, steps: int, lr: float, nodes: int = 40
) -> tuple[Tensor, Tensor]:
    """One hidden layer in muP (or mean field) with a grid of Gauss-Hermite nodes in place of its units.

    Outputs (steps+1, N, 1) and the kernel of the activation (steps+1, N, N). The gradient of a unit is that of the
    expectation divided by the unit's weight in it.
    """
    points, weights = np.polynomial.hermite_e.hermegauss(nodes)
    d = x.shape[1]
    grid = torch.tensor(np.array(list(itertools.product(points, repeat=d + 1))))
    weight = torch.tensor(np.array(list(itertools.product(weights / weights.sum(), repeat=d + 1)))).prod(1)
    u, v = grid[:, :d].clone().requires_grad_(), grid[:, d].clone().requires_grad_()
    outputs, kernels = [], []
    for step in range(steps + 1):
        hidden = phi(x @ u.T)
        output = (hidden * v) @ weight[:, None]
        outputs.append(output.detach())
        kernels.append(((hidden * weight) @ hidden.T).detach())
        if step < steps:
            gu, gv = torch.autograd.grad(F.mse_loss(output, y), [u, v])
            with torch.no_grad():
                u -= lr * gu / weight[:, None]
                v -= lr * gv / weight
    return torch.stack(outputs), torch.stack(kernels)
