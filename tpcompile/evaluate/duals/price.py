"""Derivatives of Gaussian expectations by covariances and means: Price's theorem.

``dE/dcov = E f' g'``, ``dE/dvar_u = E f'' g / 2``, ``dE/dmean_u = E f' g``: expectations again, computed like the first
and differentiable in turn, finite where autograd through ``sqrt(1 - rho^2)`` is not. Where f'' is no function (and no
measure of the closed algebra) Stein's lemma does with f': ``var_u E f'' g = E (u - mean_u) f' g - cov E f' g'``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpcompile.errors import UnsupportedOperationError
from tpcompile.evaluate.duals.pair import inverse

if TYPE_CHECKING:
    from tpcompile.evaluate.duals.dual import Dual, Single


class Two(torch.autograd.Function):
    """``E f(u) g(v)``; inputs as :class:`Dual` takes them."""

    @staticmethod
    def forward(ctx: Any, how: Dual, *inputs: Tensor | None) -> Tensor:
        from tpcompile.evaluate.duals.pair import Pair

        ctx.how = how
        ctx.save_for_backward(*inputs)
        return how.value(Pair(*inputs))  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        how, inputs = ctx.how, ctx.saved_tensors
        centred = inputs[3] is None and inputs[4] is None
        slopes = (
            lambda: how.of((1, 1), centred)(*inputs),
            lambda: _by_variance(how, inputs, 0, centred),
            lambda: _by_variance(how, inputs, 1, centred),
            lambda: how.of((1, 0), centred)(*inputs),
            lambda: how.of((0, 1), centred)(*inputs),
        )
        out: list[Tensor | None] = [None]
        for x, slope, needed in zip(inputs, slopes, ctx.needs_input_grad[1:], strict=True):
            out.append((grad * slope()).sum_to_size(x.shape) if x is not None and needed else None)
        return tuple(out)


def _by_variance(how: Dual, inputs: tuple[Tensor | None, ...], i: int, centred: bool) -> Tensor:
    twice, once, power = ((2, 0), (1, 0), (1, 0)) if i == 0 else ((0, 2), (0, 1), (0, 1))
    try:
        return how.of(twice, centred)(*inputs) / 2  # type: ignore[arg-type]
    except UnsupportedOperationError:
        pass
    cov, var, mean = inputs[0], inputs[1 + i], inputs[3 + i]
    assert cov is not None
    assert var is not None
    value = how.of(once, centred, power)(*inputs) - cov * how.of((1, 1), centred)(*inputs)  # type: ignore[arg-type]
    if mean is not None:
        value = value - mean * how.of(once, centred)(*inputs)  # type: ignore[arg-type]
    return value * (inverse(var) / 2)


class One(torch.autograd.Function):
    """``E f(u)``."""

    @staticmethod
    def forward(ctx: Any, how: Single, var: Tensor, mean: Tensor | None) -> Tensor:
        ctx.how = how
        ctx.save_for_backward(var, mean)
        return how.compute(var, mean)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        how, (var, mean) = ctx.how, ctx.saved_tensors
        centred = mean is None
        by_var = by_mean = None
        if ctx.needs_input_grad[1]:
            try:
                slope = how.of(2, centred)(var, mean) / 2
            except UnsupportedOperationError:
                slope = how.of(1, centred, 1)(var, mean)
                slope = slope if mean is None else slope - mean * how.of(1, centred)(var, mean)
                slope = slope * (inverse(var) / 2)
            by_var = grad * slope
        if mean is not None and ctx.needs_input_grad[2]:
            by_mean = (grad * how.of(1, False)(var, mean)).sum_to_size(mean.shape)
        return None, by_var, by_mean
