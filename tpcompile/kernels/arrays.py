"""NumPy in, NumPy out; and kernels with positions as plain matrices."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from tpcompile.errors import UsageError

Array = Any  # a torch tensor or a NumPy array
F = TypeVar("F", bound=Callable[..., Any])


class Kernels(NamedTuple):
    """Both kernels of one pass."""

    nngp: Any
    ntk: Any


def as_tensor(x: Array, name: str) -> Tensor:
    """A tensor of an array or tensor. Raises UsageError for anything else, and for types that torch lacks."""
    if isinstance(x, Tensor):
        return x
    if not isinstance(x, np.ndarray):
        raise UsageError(f"{name} must be a tensor or a NumPy array, found {type(x).__name__}")
    try:
        return torch.from_numpy(np.array(x, order="C"))
    except TypeError as error:
        raise UsageError(f"{name} has the NumPy dtype {x.dtype}, which torch does not have") from error


def like(value: Any, example: Array) -> Any:
    """``value`` as NumPy if ``example`` is a NumPy array; tuples by parts."""
    if isinstance(value, tuple):
        parts = [like(part, example) for part in value]
        return type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)
    if isinstance(value, Tensor) and isinstance(example, np.ndarray):
        return value.detach().numpy()
    return value


def numpy_in_numpy_out(method: F) -> F:
    """A method of ``(self, x1, x2=None, ...)`` on tensors that takes NumPy arrays too, and then returns them."""

    @wraps(method)
    def wrapped(self: Any, x1: Array, x2: Array = None, *args: Any, **options: Any) -> Any:
        second = None if x2 is None else as_tensor(x2, "x2")
        return like(method(self, as_tensor(x1, "x1"), second, *args, **options), x1)

    return wrapped  # type: ignore[return-value]


def as_matrix(kernel: Tensor) -> Tensor:
    """``(N1, N2, *P, *P)`` as ``(N1 |P|, N2 |P|)``."""
    half = (kernel.dim() - 2) // 2
    if not half:
        return kernel
    n1, n2, size = kernel.shape[0], kernel.shape[1], kernel.shape[2 : 2 + half].numel()
    return kernel.reshape(n1, n2, size, size).permute(0, 2, 1, 3).reshape(n1 * size, n2 * size)


def as_kernel(matrix: Tensor, positions: tuple[int, ...]) -> Tensor:
    """The inverse of :func:`as_matrix`; leading axes stay."""
    if not positions:
        return matrix
    size, lead = torch.Size(positions).numel(), matrix.shape[:-2]
    split = matrix.reshape(*lead, matrix.shape[-2] // size, size, matrix.shape[-1] // size, size)
    return split.transpose(-3, -2).reshape(
        *lead, matrix.shape[-2] // size, matrix.shape[-1] // size, *positions, *positions
    )
