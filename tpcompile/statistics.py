"""Extrapolation in the width and fitted rates, with their standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tpcompile.errors import UsageError


@dataclass(frozen=True, eq=False)
class Extrapolation:
    """The mean at infinite width: ``mean`` and ``stderr`` of the shape of one sample.

    ``dof`` are the effective degrees of freedom of ``stderr`` (Welch 1947, Satterthwaite 1946), which matter with
    few seeds; ``weights[n]`` is the factor of the mean at width n in ``mean`` (they sum to one);
    ``misfit`` is the root mean square, over entries and spare widths, of the residuals in standard
    errors: about 1 where the powers fit, None where they fit exactly.
    """

    mean: Tensor
    stderr: Tensor
    dof: Tensor
    weights: dict[int, float]
    powers: tuple[float, ...]
    misfit: float | None


@dataclass(frozen=True)
class Slope:
    """``distance ~ factor * width**slope``, fitted in logarithms."""

    slope: float
    stderr: float
    factor: float


def extrapolate(
    samples: Mapping[int, Tensor], powers: Sequence[float] = (1,), variance_power: float = 1
) -> Extrapolation:
    """Richardson extrapolation of means to infinite width by weighted least squares.

    ``samples[n]`` is ``(seeds, ...)``, independent between seeds and widths. The model is
    ``mean_n = limit + sum_p c_p n^-p`` over ``powers``, for each entry. The weights of the fit are
    ``seeds_n * n**variance_power``: they do not depend on the samples, so ``mean`` is linear in them
    and its variance ``sum_n weight_n^2 var_n / seeds_n`` is unbiased, whatever the true variances are.

    Raises :class:`UsageError` with fewer widths than unknowns, one seed, or shapes that differ.
    """
    widths = sorted(samples)
    powers = tuple(powers)
    if any(power <= 0 for power in powers) or len(set(powers)) != len(powers):
        raise UsageError(f"powers must be positive and distinct, found {powers}")
    if len(widths) < len(powers) + 1:
        raise UsageError(
            f"{len(widths)} widths cannot determine a limit and {len(powers)} powers of the width",
            advice=f"give {len(powers) + 1} widths or more, or fewer powers",
        )
    if any(samples[n].ndim == 0 or samples[n].shape[0] < 2 for n in widths):
        raise UsageError("a standard error needs two seeds or more at every width")
    if len({samples[n].shape[1:] for n in widths}) > 1:
        raise UsageError(f"samples differ in shape: {[tuple(samples[n].shape) for n in widths]}")
    means = torch.stack([samples[n].double().mean(0) for n in widths])
    seeds = torch.tensor([samples[n].shape[0] for n in widths], dtype=torch.float64)
    variances = torch.stack([samples[n].double().var(0) for n in widths])
    column = (len(widths),) + (1,) * (means.ndim - 1)
    mean_variances = variances / seeds.reshape(column)

    design = np.array([[1.0, *((widths[0] / n) ** p for p in powers)] for n in widths])
    root = np.sqrt(seeds.numpy() * np.array(widths, dtype=float) ** variance_power)
    solver = np.linalg.pinv(design * root[:, None]) * root  # coefficients = solver @ means
    row = torch.from_numpy(solver[0].copy())

    parts = row.square().reshape(column) * mean_variances
    variance = parts.sum(0)
    freedom = variance.square() / (parts.square() / (seeds - 1).reshape(column)).sum(0)
    return Extrapolation(
        mean=(row.reshape(column) * means).sum(0),
        stderr=variance.sqrt(),
        dof=torch.nan_to_num(freedom, nan=math.inf),
        weights={n: float(weight) for n, weight in zip(widths, row, strict=True)},
        powers=powers,
        misfit=_misfit(design @ solver, means, mean_variances),
    )


def fit_slope(
    widths: Sequence[int], distances: Sequence[float] | Tensor, stderrs: Sequence[float] | Tensor | None = None
) -> Slope:
    """Slope of ``log distance`` against ``log width`` with its standard error.

    With ``stderrs`` of the distances (first order: the relative error is the error of the logarithm) the
    fit is weighted and the error propagated; without, it comes from the residuals of three widths or more
    (NaN with two). Raises :class:`UsageError` for fewer than two widths or distances that are not positive.
    """
    x = np.log(np.asarray(widths, dtype=float))
    values = np.asarray(distances, dtype=float)
    if len(x) < 2 or len(np.unique(x)) < 2 or values.shape != x.shape:
        raise UsageError(f"a slope needs a distance at two widths or more, found {values.size} at {list(widths)}")
    if not (np.isfinite(values).all() and (values > 0).all()):
        raise UsageError(f"distances must be positive and finite, found {values.tolist()}")
    y = np.log(values)
    errors = None if stderrs is None else np.asarray(stderrs, dtype=float) / values
    if errors is not None and not (np.isfinite(errors).all() and (errors > 0).all()):
        errors = None
    weight = np.ones_like(x) if errors is None else errors**-2.0
    centre = (weight * x).sum() / weight.sum()
    spread = (weight * (x - centre) ** 2).sum()
    slope = float((weight * (x - centre) * y).sum() / spread)
    offset = float((weight * y).sum() / weight.sum() - slope * centre)
    if errors is not None:
        stderr = float(spread**-0.5)
    elif len(x) > 2:
        stderr = float(np.sqrt(((y - offset - slope * x) ** 2).sum() / (len(x) - 2) / spread))
    else:
        stderr = math.nan
    return Slope(slope, stderr, math.exp(offset))


def combined_dof(variances: Sequence[Tensor], dofs: Sequence[Tensor | float]) -> Tensor:
    """Effective degrees of freedom of a sum of independent estimated variances (Welch-Satterthwaite)."""
    total = torch.stack([v.double() for v in variances]).sum(0)
    parts = [v.double().square() / d for v, d in zip(variances, dofs, strict=True)]
    return torch.nan_to_num(total.square() / torch.stack(parts).sum(0), nan=math.inf)


def normal_score(t: Tensor, dof: Tensor) -> Tensor:
    """The z of a standard normal with the same two-sided p-value as Student's ``t`` at ``dof``, sign kept.

    Where the p-value underflows, Wallace's approximation ``z = sqrt(dof log(1 + t^2 / dof))`` (1959) is used.
    """
    from scipy import stats

    size = t.double().abs().numpy()
    freedom = np.minimum(np.broadcast_to(dof.double().numpy(), size.shape), 1e8)
    tail = stats.t.sf(size, freedom)
    far = np.sqrt(freedom * np.log1p(size**2 / freedom))
    z = np.where(tail > 1e-280, stats.norm.isf(np.maximum(tail, 1e-290)), far)
    return torch.sign(t).double() * torch.from_numpy(z)


def bonferroni_threshold(comparisons: int, level: float) -> float:
    """The ``|z|`` that ``comparisons`` standard normals exceed together with probability at most ``level``."""
    from scipy import stats

    return float(stats.norm.isf(level / max(comparisons, 1) / 2))


def _misfit(hat: np.ndarray, means: Tensor, variances: Tensor) -> float | None:
    """RMS of the residuals in units of their standard errors under independent means."""
    rest = np.eye(len(hat)) - hat
    if np.abs(rest).max() < 1e-9:
        return None
    flat, spread = means.flatten(1).numpy(), variances.flatten(1).numpy()
    residuals, sizes = rest @ flat, (rest**2) @ spread
    usable = sizes > 0
    return float(np.sqrt((residuals[usable] ** 2 / sizes[usable]).mean())) if usable.any() else None
