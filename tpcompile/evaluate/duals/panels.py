"""Quadrature of last resort: Gauss-Legendre panels, graded towards every kink and every feature.

``E f(u) g(v)``: an outer integral over u whose panels are split at the kinks of f, graded from there and from zero in
powers of two (functions of unit-size features stay resolved at any variance), and graded towards the points where the
conditional mean of v passes a kink or feature of g (at high correlation a layer of width ``sqrt(1 - rho^2)``); an inner
integral over v given u of the same kind. Any variance, any correlation; the cost is 1e4 to 1e6 evaluations a pair.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tpcompile.evaluate.duals.pair import Pair

ELEMENTS = 1 << 21
"""Integrand values held at once."""


@dataclass(frozen=True)
class Rule:
    """How fine: nodes a panel, finest panel at a feature, width of panels in the bulk, and reach, in deviations."""

    nodes: int = 16
    feature: float = 0.5
    bulk: float = 2.0
    reach: float = 10.0

    def finer(self) -> Rule:
        return Rule(self.nodes + 4, self.feature / 4, self.bulk / 1.5, self.reach * 1.15)


@lru_cache(maxsize=32)
def legendre(nodes: int) -> tuple[Tensor, Tensor]:
    """Gauss-Legendre nodes and weights of [0, 1]."""
    x, w = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy((x + 1) / 2), torch.from_numpy(w / 2)


def panel_nodes(breaks: Tensor, rule: Rule) -> tuple[Tensor, Tensor]:
    """Nodes and weights against the standard normal density of panels between sorted breaks along the last axis."""
    breaks = breaks.clamp(-rule.reach, rule.reach).sort(-1).values
    x, w = (t.to(breaks) for t in legendre(rule.nodes))
    width = breaks.diff(dim=-1)[..., None]
    nodes = (breaks[..., :-1, None] + width * x).flatten(-2)
    weights = (width * w).flatten(-2) * torch.exp(nodes * nodes * -0.5) / math.sqrt(2 * math.pi)
    return nodes, weights


def _offsets(finest: float, farthest: float) -> Tensor:
    """0 and plus and minus ``finest`` times the powers of two up to ``farthest``."""
    levels = max(0, math.ceil(math.log2(max(farthest / finest, 1.0)))) + 1
    steps = finest * 2.0 ** torch.arange(levels, dtype=torch.float64)
    return torch.cat([-steps.flip(0), torch.zeros(1, dtype=torch.float64), steps])


def bulk(rule: Rule) -> Tensor:
    """Breaks that resolve the density, in deviations."""
    return torch.linspace(-rule.reach, rule.reach, 2 * math.ceil(rule.reach / rule.bulk) + 1, dtype=torch.float64)


def _features(points: tuple[float, ...], mean: Tensor, std: Tensor, rule: Rule) -> Tensor:
    """Breaks in standard units at the features of a function of ``mean + std x``; a last axis is added."""
    tiny = torch.finfo(torch.float64).tiny
    largest = float((rule.reach * std).max())
    offsets = _offsets(rule.feature, min(max(largest, rule.feature), rule.feature * 2.0**200))
    at = torch.tensor(sorted({*points, 0.0}), dtype=torch.float64)
    # a coordinate far beyond its feature needs no panels between neighbours that are closer than the finest
    grid = (at[:, None] + offsets).flatten().unique()
    return (grid - mean[..., None]) / std.clamp(min=tiny)[..., None]


Fn = Callable[[Tensor], Tensor]
Conditional = Callable[[Tensor, Tensor], Tensor]


def one_variable(fn: Fn, points: tuple[float, ...], var: Tensor, mean: Tensor | None, rule: Rule) -> Tensor:
    """``E fn(u)`` of the shape of ``var``, float64."""
    std = var.clamp(min=0).sqrt().flatten()
    mean = torch.zeros_like(std) if mean is None else mean.expand(var.shape).flatten()
    out = torch.empty_like(std)
    step = max(1, ELEMENTS // 4096)
    for start in range(0, len(std), step):
        rows = slice(start, start + step)
        features = _features(points, mean[rows], std[rows], rule)
        x, w = panel_nodes(torch.cat([features, bulk(rule).expand(len(features), -1)], -1), rule)
        value = fn(mean[rows, None] + std[rows, None] * x)
        out[rows] = torch.where(w > 0, w * value, 0.0).sum(-1)
    return out.reshape(var.shape)


def two_variables(
    f: Fn,
    g: Fn,
    points_f: tuple[float, ...],
    points_g: tuple[float, ...],
    pair: Pair,
    rule: Rule,
    conditional: Conditional | None = None,
) -> Tensor:
    """``E f(u) g(v)`` of the shape of ``pair.cov``, float64; ``conditional(var, mean)`` is ``E g(v)`` where closed."""
    shape = pair.cov.shape
    columns = [pair.std_u, pair.std_v, pair.rho, pair.root, pair.mean_u, pair.mean_v]
    flat = [torch.zeros(shape, dtype=torch.float64) if c is None else c.expand(shape) for c in columns]
    table = torch.stack([c.flatten() for c in flat])
    out = torch.empty(table.shape[1], dtype=torch.float64)
    order = table[3].argsort()  # pairs of like correlation together: they need like panels
    step = 8 if conditional is None else 512
    inner = conditional or (lambda var, mean: one_variable(g, points_g, var, mean, rule))
    for start in range(0, len(out), step):
        rows = order[start : start + step]
        out[rows] = _pairs(f, inner, points_f, points_g, table[:, rows], rule)
    return out.reshape(shape)


def _pairs(
    f: Fn, inner: Conditional, points_f: tuple[float, ...], points_g: tuple[float, ...], table: Tensor, rule: Rule
) -> Tensor:
    std_u, std_v, rho, root, mean_u, mean_v = table
    slope = std_v * rho
    tiny = torch.finfo(torch.float64).tiny
    layer = (root / rho.abs().clamp(min=tiny)).clamp(1e-9, 1e9)
    finest = float(layer.min()) / 2
    crossing = (torch.tensor(sorted({*points_g, 0.0}), dtype=torch.float64) - mean_v[:, None]) / torch.where(
        slope == 0, tiny, slope
    )[:, None]
    layers = crossing[..., None] + (_offsets(finest, 2.0) if finest < 2.0 else torch.zeros(1, dtype=torch.float64))
    features = _features(points_f, mean_u, std_u, rule)
    x, w = panel_nodes(torch.cat([features, layers.flatten(1), bulk(rule).expand(len(rho), -1)], -1), rule)
    outer = torch.where(w > 0, w * f(mean_u[:, None] + std_u[:, None] * x), 0.0)
    mean = mean_v[:, None] + slope[:, None] * x
    tau = (std_v * root)[:, None].expand_as(mean)
    values = torch.zeros_like(mean)
    use = outer.abs() > 1e-30 * outer.abs().amax(1, keepdim=True)
    values[use] = inner(tau[use].square(), mean[use])
    return (outer * values).sum(1)
