"""Derivatives of kernels with respect to the variances of parameters, all pairs at a time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tpcompile.errors import UsageError

if TYPE_CHECKING:
    from tpcompile.kernels.kernel import Kernel


def value_and_gradient(kernel: Kernel, x: Tensor, get: str, variances: Mapping[str, float]) -> tuple[Tensor, Tensor]:
    """The kernel ``(N, N)`` of inputs and its derivatives ``(N, N, P)`` with respect to the logarithms of variances.

    A derivative of many values with respect to few: the transpose of a backward pass, by differentiating that with
    respect to the cotangent that it is linear in.
    """
    names = list(variances)
    logs = torch.tensor([math.log(variances[name]) for name in names], dtype=torch.float64, requires_grad=True)
    with torch.enable_grad():
        values = dict(zip(names, logs.exp().unbind(), strict=True))
        matrix = kernel(x, None, get, variances=values, dtype=torch.float64)
        if not names or not matrix.requires_grad:
            return matrix.detach(), torch.zeros(*matrix.shape, len(names), dtype=torch.float64)
        cotangent = torch.ones_like(matrix, requires_grad=True)
        (backward,) = torch.autograd.grad(matrix, logs, cotangent, create_graph=True)
        columns = [
            torch.autograd.grad(b, cotangent, retain_graph=True)[0] if b.requires_grad else torch.zeros_like(matrix)
            for b in backward.unbind()
        ]
    return matrix.detach(), torch.stack(columns, -1)


def chosen_variances(kernel: Kernel, given: Mapping[str, float] | None) -> dict[str, float]:
    """Variances to adapt: the given ones or all. Raises UsageError for unknown names and for what has no logarithm."""
    own = kernel.variances
    values = dict(own if given is None else given)
    kernel.check_variances(values)
    for name, value in values.items():
        if not (value > 0 and math.isfinite(value)):
            raise UsageError(f"the variance of '{name}' must be positive, found {value}")
    return values


def check_scalar_output(kernel: Kernel, get: str) -> None:
    """UsageError unless the kernel is one number for a pair of inputs."""
    if get not in ("nngp", "ntk"):
        raise UsageError(f"get must be 'nngp' or 'ntk', found {get!r}")
    positions = kernel.pairs(get).positions
    if positions:
        raise UsageError(
            f"the outputs of the model are correlated along axes of lengths {positions}",
            advice="only models whose outputs are independent have one number for a pair of inputs",
        )
    if not kernel.example.is_floating_point():
        raise UsageError("the inputs of the model are integers, where vectors of numbers are expected")


def from_rows(x: Tensor, kernel: Kernel) -> Tensor:
    """Rows ``(N, d)`` as inputs ``(N, ...)`` of the model."""
    shape = kernel.example.shape
    if x.dim() != 2 or x.shape[1] != shape.numel():
        raise UsageError(
            f"expected rows of {shape.numel()} numbers for an input {tuple(shape)}, found {tuple(x.shape)}"
        )
    return x.reshape(len(x), *shape)
