"""The instructions of a tape, and how each is computed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpcompile.evaluate.duals.elementary import WIDE


@dataclass(frozen=True, eq=False)
class Step:
    """One instruction, with the shape that it had when it was recorded; an input (``input``) or a constant (``value``).

    ``sides`` are the copies of the inputs on which its value depends, ``layout`` its axes from the outermost in memory
    on (empty where that is their order).
    """

    name: str
    args: tuple[Any, ...]
    options: tuple[tuple[str, Any], ...]
    shape: tuple[int, ...]
    dtype: torch.dtype
    sides: frozenset[int]
    value: Tensor | None = None
    layout: tuple[int, ...] = ()

    def laid_out(self, memory: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Memory as a tensor of a shape, with the axes in the step's order."""
        if not self.layout:
            return memory[: math.prod(shape)].view(shape)
        inner = memory[: math.prod(shape)].view([shape[d] for d in self.layout])
        return inner.permute([self.layout.index(d) for d in range(len(shape))])

    def empty(self, shape: tuple[int, ...]) -> Tensor:
        """New memory of that kind."""
        return self.laid_out(torch.empty(math.prod(shape), dtype=self.dtype), shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def number(self) -> float | None:
        """The value of a constant that is one number."""
        return float(self.value) if self.value is not None and self.value.numel() == 1 else None

    @property
    def by_numpy(self) -> bool:
        """True for what NumPy computes faster."""
        floating = self.dtype in (torch.float32, torch.float64)
        return self.name in NUMPY and floating and all(x.dtype == self.dtype for x in self.operands)

    @property
    def operands(self) -> Iterator[Step]:
        return (x for x in self.args if isinstance(x, Step))


SNAP = "snap"  # where(abs(x) < near, x, sign(x))
FIXED = -1  # the stage of what does not depend on the inputs
INPUT, CONSTANT = "input", "constant"

VIEWS: dict[str, Callable[..., Tensor]] = {
    "view": Tensor.view,
    "_unsafe_view": Tensor.view,
    "expand": Tensor.expand,
    "permute": Tensor.permute,
    "transpose": Tensor.transpose,
    "t": Tensor.t,
    "unsqueeze": Tensor.unsqueeze,
    "squeeze": Tensor.squeeze,
    "alias": lambda x: x.view_as(x),
    "detach": Tensor.detach,
    "select": torch.select,
    "slice": torch.ops.aten.slice.Tensor,
    "diagonal": torch.diagonal,
}
CUT = {"select", "slice"}  # along an axis that is the second argument
SIZED = {"view", "_unsafe_view", "expand"}  # whose second argument is a shape


def _copied(x: Tensor, *, out: Tensor, **_: Any) -> Tensor:
    return out.copy_(x)


def _snapped(x: Tensor, near: float, out: Tensor) -> Callable[[], Any]:
    """``x`` where it is nearer to zero than that, else its sign: mostly all of it, which is found out first."""
    given, found = x.numpy().reshape(-1), out.numpy().reshape(-1)

    def call() -> None:
        if out is not x:
            np.copyto(found, given)
        if not (found.max() < near and found.min() > -near):
            at = np.flatnonzero(np.abs(found) >= near)
            found[at] = np.sign(found[at])

    return call


def _numpy(function: Callable[..., Any]) -> Callable[..., Any]:
    def bound(x: Tensor, out: Tensor) -> Callable[[], Any]:
        given, found = x.numpy(), out.numpy()
        return lambda: function(given, found)

    return bound


NUMPY: dict[str, Callable[..., Callable[[], Any]]] = {"sqrt": _numpy(np.sqrt), SNAP: _snapped}  # see duals.elementary
if WIDE:
    NUMPY["asin"] = _numpy(np.arcsin)

POINTWISE: dict[str, Callable[..., Any]] = {
    name: getattr(torch, name)
    for name in (
        "abs", "acos", "add", "addcmul", "asin", "atan", "atan2", "bitwise_and", "clamp", "cos", "cosh", "div",
        "erf", "erfc", "exp", "expm1", "ge", "gt", "le", "log", "log1p", "lt", "maximum", "minimum", "mul", "neg",
        "pow", "reciprocal", "rsqrt", "sign", "sin", "sinh", "sqrt", "square", "sub", "tanh", "where",
    )
} | {"clone": _copied, "copy": _copied, SNAP: _snapped}  # fmt: skip

OTHER: dict[str, Callable[..., Any]] = {"bmm": torch.bmm, "mm": torch.mm, "amax": torch.amax, "sum": torch.sum}
OUT = POINTWISE | OTHER | {"zero": lambda *, out: out.zero_()}


def layout(x: Tensor) -> tuple[int, ...]:
    """The axes of a tensor from the outermost in memory on; empty where that is their order."""
    order = tuple(sorted(range(x.dim()), key=lambda d: (-x.stride(d), d)))
    long = [d for d in order if x.shape[d] > 1]
    return () if long == sorted(long) else order


def root(x: Step) -> Step:
    """The step on whose memory a view is."""
    while x.name in VIEWS:
        x = x.args[0]
    return x
