"""Elementary functions by the faster of two libraries.

NumPy brings vectorised inverse trigonometric functions for processors with AVX-512 (to 1 unit in the last place in
float64, 2.5 in float32), four times faster than those of torch; elsewhere torch is faster. Its square root is the
instruction of the processor everywhere.
"""

from __future__ import annotations

import sys

import numpy as np
import torch
from torch import Tensor

WIDE = sys.platform == "linux" and torch.backends.cpu.get_cpu_capability() == "AVX512"


def asin(x: Tensor, out: Tensor | None = None) -> Tensor:
    """The arcsine, written to ``out`` if there is one."""
    out = torch.empty_like(x) if out is None else out
    if not (WIDE and _shared(x)):
        return torch.asin(x, out=out)
    np.arcsin(x.numpy(), out=out.numpy())
    return out


def sqrt_(x: Tensor) -> Tensor:
    """Replace x by its square root."""
    if not _shared(x):
        return x.sqrt_()
    values = x.numpy()
    np.sqrt(values, out=values)
    return x


def recording() -> bool:
    """True while :mod:`tpcompile.evaluate.tapes` writes down what torch computes."""
    return torch._C._len_torch_dispatch_stack() > 0


def _shared(x: Tensor) -> bool:
    """True if NumPy can compute on the memory of x, and nobody records what torch computes."""
    return (
        not recording() and x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and not x.requires_grad
    )
