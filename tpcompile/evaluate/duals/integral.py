"""Expectation of any function of up to three jointly Gaussian numbers, by a tensor product of one-dimensional rules."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tpcompile.errors import EvaluationError, UsageError
from tpcompile.evaluate.duals.panels import ELEMENTS, Rule, bulk, panel_nodes

TOLERANCE = 1e-10
"""Change under refinement, relative to ``E |fn|``, at which refining ends."""
_WORST = 1e-3
_NODES = {1: (64, 96, 128, 256, 512, 1024, 4096, 16384), 2: (48, 64, 96, 128, 256, 512, 1024), 3: (32, 48, 64, 96, 128)}
_REACH = 9.0


def integral(
    fn: Callable[..., Tensor],
    cov: Tensor,
    mean: Tensor | None = None,
    *,
    kinks: Sequence[Sequence[float]] = (),
    tolerance: float = TOLERANCE,
) -> tuple[Tensor, float]:
    """``E fn(x_1, .., x_k)``, and its absolute error as refinement shows it (the largest of the batch).

    ``cov`` is (.., k, k) with any batch axes, singular if need be, and ``mean`` (.., k); ``fn`` takes k tensors of one
    shape. Smooth functions: trapezoids in a whitened basis, which for analytic ones converge faster than Gauss-Hermite.
    With ``kinks``, one list of points for each variable: Gauss-Legendre panels split there. EvaluationError if less
    than three digits are right.
    """
    k = cov.shape[-1]
    if k not in _NODES or cov.shape[-2] != k:
        raise UsageError(f"integral takes one to three Gaussian variables, not a covariance of {tuple(cov.shape)}")
    batch = cov.shape[:-2] if mean is None else np.broadcast_shapes(cov.shape[:-2], mean.shape[:-1])
    factor = _cholesky(cov.double().expand(*batch, k, k).reshape(-1, k, k))
    centre = torch.zeros(len(factor), k, dtype=torch.float64)
    if mean is not None:
        centre = mean.double().expand(*batch, k).reshape(-1, k)
    value: Tensor | None = None
    error, size = math.inf, torch.ones(())
    split = any(len(points) for points in kinks)
    rules = [Rule(nodes=n) for n in ((8, 12, 16, 24, 32) if k < 3 else (6, 8, 12))] if split else _NODES[k]
    for rule in rules:
        better, size = _apply(fn, factor, centre, rule, kinks)
        if value is not None:
            change = (better - value).detach().abs()
            error = float(change.nan_to_num(nan=math.inf).max()) if change.numel() else 0.0
            if bool((change <= tolerance * size).all()):
                return better.reshape(batch).to(cov.dtype), error
        value = better
    assert value is not None
    if not bool((change <= _WORST * size).all()):
        raise EvaluationError(
            f"a Gaussian expectation of {k} variables does not converge under refinement of its quadrature",
            advice="use the particle evaluator",
        )
    return value.reshape(batch).to(cov.dtype), error


def _cholesky(cov: Tensor) -> Tensor:
    """Lower factor of each covariance; a pivot that is zero to rounding has a zero column."""
    k = cov.shape[-1]
    zero = torch.zeros_like(cov[:, 0, 0])
    rows: list[list[Tensor]] = [[] for _ in range(k)]  # no entry is overwritten: autograd goes through them
    for j in range(k):
        pivot = cov[:, j, j] - sum((x.square() for x in rows[j]), zero)
        kept = pivot > 4 * torch.finfo(cov.dtype).eps * cov[:, j, j]
        root = torch.where(kept, pivot, 1.0).sqrt()
        for i in range(j, k):
            rest = cov[:, i, j] - sum((x * y for x, y in zip(rows[i], rows[j], strict=False)), zero)
            rows[i].append(torch.where(kept, rest / root, 0.0))
    return torch.stack([torch.stack(row + [zero] * (k - len(row)), -1) for row in rows], -2)


def _apply(
    fn: Callable[..., Tensor], factor: Tensor, mean: Tensor, rule: Rule | int, kinks: Sequence[Sequence[float]]
) -> tuple[Tensor, Tensor]:
    """``E fn`` and ``E |fn|`` of every batch entry."""
    out, size = (torch.zeros(len(factor), dtype=torch.float64) for _ in range(2))
    k = factor.shape[-1]
    a_axis = rule if isinstance(rule, int) else (len(bulk(rule)) + 2) * rule.nodes
    step = max(1, ELEMENTS // a_axis**k)
    for start in range(0, len(factor), step):
        rows = slice(start, start + step)
        weight = torch.ones(len(factor[rows]), 1, dtype=torch.float64)
        normals: list[Tensor] = []
        values: list[Tensor] = []
        for i in range(k):
            given = mean[rows, i, None]
            for j, z in enumerate(normals):
                given = given + factor[rows, i, j, None] * z
            std = factor[rows, i, i, None]
            nodes, weights = _axis(rule, kinks[i] if i < len(kinks) else (), given, std)
            count = nodes.shape[-1]
            weight = (weight[..., None] * weights).flatten(1)
            normals = [z.repeat_interleave(count, 1) for z in normals]
            values = [x.repeat_interleave(count, 1) for x in values]
            nodes = nodes.expand(*given.shape, count)
            values.append((given[..., None] + std[..., None] * nodes).expand(len(weight), -1, -1).flatten(1))
            normals.append(nodes.expand(len(weight), -1, -1).flatten(1))
        product = weight * fn(*values)
        out[rows], size[rows] = product.sum(1), product.detach().abs().sum(1)
    return out, size


def _axis(rule: Rule | int, points: Sequence[float], given: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes and weights of one variable given the ones before, (batch, before, nodes) or broadcastable."""
    if isinstance(rule, int):
        nodes = torch.linspace(-_REACH, _REACH, rule, dtype=torch.float64)
        weights = torch.exp(nodes * nodes * -0.5) * (2 * _REACH / (rule - 1) / math.sqrt(2 * math.pi))
        return nodes, weights
    tiny = torch.finfo(torch.float64).tiny
    at = (torch.tensor(tuple(points), dtype=torch.float64) - given[..., None]) / std[..., None].clamp(min=tiny)
    return panel_nodes(torch.cat([at, bulk(rule).expand(*given.shape, -1)], -1), rule)
