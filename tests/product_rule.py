"""Expectations of functions of up to three independent weights of bounded law, by a product rule over the weights.

An independent check of :mod:`tpcompile.evaluate.duals.fourier`: ``E f(u) g(v)`` for ``u = sum_c x_c w_c`` and
``v = sum_c y_c w_c``, the w_c i.i.d. with a symmetric bounded density.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tpcompile.errors import EvaluationError, UsageError
from tpcompile.evaluate.duals.panels import legendre

Fn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SymmetricLaw:
    """The uniform law on ``[-bound, bound]``, or the normal law of deviation ``sigma`` cut off there."""

    bound: float
    sigma: float | None = None

    def density(self, w: Tensor) -> Tensor:
        if self.sigma is None:
            return torch.full_like(w, 0.5 / self.bound)
        inside = math.erf(self.bound / (math.sqrt(2) * self.sigma))
        return torch.exp(-0.5 * (w / self.sigma) ** 2) / (math.sqrt(2 * math.pi) * self.sigma * inside)


_PANELS = {1: (64, 128, 256, 512, 1024), 2: (8, 16, 32, 64, 96), 3: (2, 4, 8, 12)}
_NODES = 12


def first_layer(f: Fn, g: Fn, x: Tensor, y: Tensor, law: SymmetricLaw) -> tuple[Tensor, float]:
    """``E f(x . w) g(y . w)`` for x (N1, d) and y (N2, d), d up to 3: (N1, N2), and its error as refinement shows it.

    The error is the largest absolute change under the last refinement; EvaluationError if less than three digits are
    right. Functions with kinks converge like the square of the panels' width.
    """
    d = x.shape[1]
    if d not in _PANELS or y.shape[1] != d:
        raise UsageError(
            f"the product rule over non-Gaussian weights takes one to three inputs, not {d}",
            advice="give the first layer normal weights, or use the particle evaluator",
        )
    value, error, size = None, math.inf, 1.0
    for panels in _PANELS[d]:
        better, size = _product_rule(f, g, x.double(), y.double(), law, panels)
        if value is not None:
            error = float((better - value).abs().max())
            if error <= 1e-12 * size:
                return better.to(x.dtype), error
        value = better
    assert value is not None
    if not error <= 1e-3 * size:
        raise EvaluationError(
            "an expectation over non-Gaussian weights does not converge under refinement of its quadrature",
            advice="use the particle evaluator",
        )
    return value.to(x.dtype), error


def _product_rule(f: Fn, g: Fn, x: Tensor, y: Tensor, law: SymmetricLaw, panels: int) -> tuple[Tensor, float]:
    nodes, weights = legendre(_NODES)
    edges = torch.linspace(-law.bound, law.bound, panels + 1, dtype=torch.float64)
    width = 2 * law.bound / panels
    points = (edges[:-1, None] + width * nodes).flatten()
    mass = (width * weights).repeat(panels) * law.density(points)
    d, total, size = x.shape[1], torch.zeros(len(x), len(y), dtype=torch.float64), 0.0
    rest = torch.cartesian_prod(*[points] * (d - 1)).reshape(-1, d - 1) if d > 1 else torch.zeros(1, 0).double()
    rest_mass = torch.ones(1, dtype=torch.float64)
    if d > 1:
        rest_mass = torch.cartesian_prod(*[mass] * (d - 1)).reshape(-1, d - 1).prod(-1)
    step = max(1, (1 << 22) // (len(rest) * max(len(x), len(y))))
    for start in range(0, len(points), step):
        first, w = points[start : start + step], mass[start : start + step]
        grid = torch.cat([first.repeat_interleave(len(rest))[:, None], rest.repeat(len(first), 1)], 1)
        weight = (w[:, None] * rest_mass).flatten()
        values = f(grid @ x.T)
        total += (values * weight[:, None]).T @ g(grid @ y.T)
        size += float((weight[:, None] * values.square()).sum(0).max())
    return total, max(size, float(total.abs().max()))
