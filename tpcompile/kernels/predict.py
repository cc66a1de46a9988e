"""Predictions with fixed kernels as pure functions of matrices: the Gaussian process posterior, training under MSE.

Shapes: ``N`` training points, ``M`` test points, ``k`` independent outputs; kernels with positions come as matrices
over all (point, position) pairs. Suffixes: t training, s test, so that ``k_st`` is ``(M, N)``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpcompile.errors import EvaluationError, UsageError

RESOLUTION = 1e-9  # of kernels relative to their largest values: quadratures, and arcs of cosines near one


@dataclass(frozen=True)
class Prediction:
    """Mean and covariance of the outputs at test points; leading axes are those of the times where there are any.

    ``mean`` is ``(M, ...)`` with the axes of the targets. ``covariance`` is that of one output between test points,
    in the shape of the kernel: ``(M, M)`` (with positions ``(M, M, *P, *P)``), the same for each of the independent
    outputs; its diagonal ``(M,)`` (``(M, *P)``) if only that was asked for, None if nothing was. Where the loss
    couples the outputs it is ``(M, M, k, k)`` or the diagonal ``(M, k)``. ``stderr`` is the standard error of the
    mean where it was estimated from draws, else None.
    """

    mean: Any
    covariance: Any = None
    stderr: Any = None


def posterior(k_tt: Tensor, y: Tensor, k_st: Tensor, k_ss: Tensor | None, noise: float = 0.0) -> tuple[Tensor, Any]:
    """Mean ``(M, k)`` and covariance of a Gaussian process given noisy values ``y`` ``(N, k)`` (Lee et al. 2018).

    ``noise`` is the variance of the observations. ``k_ss`` is the whole ``(M, M)`` prior covariance of the test points
    or its diagonal ``(M,)``, and the covariance comes likewise; None gives None. Differentiable.
    Raises EvaluationError if ``k_tt`` plus noise is singular to the precision that kernels have (``RESOLUTION``).
    """
    factor = cholesky(k_tt, noise)
    mean = k_st @ torch.cholesky_solve(y, factor)
    if k_ss is None:
        return mean, None
    half = torch.linalg.solve_triangular(factor, k_st.T, upper=False)
    if k_ss.dim() == 1:
        return mean, (k_ss - half.square().sum(0)).clamp(min=0)
    return mean, k_ss - half.T @ half


def cholesky(k_tt: Tensor, noise: float | Tensor) -> Tensor:
    """The lower Cholesky factor of a covariance with noise on its diagonal."""
    if not isinstance(noise, Tensor) and noise < 0:
        raise UsageError(f"noise is a variance, found {noise}")
    eye = torch.eye(len(k_tt), dtype=k_tt.dtype)
    factor, failed = torch.linalg.cholesky_ex(k_tt + noise * eye)
    pivots = factor.detach().diagonal().square()
    if int(failed) or float(pivots.min()) < _resolution(pivots) * float(k_tt.detach().diagonal().max()):
        raise EvaluationError(
            f"the covariance of the {len(k_tt)} training values is singular to the precision of kernels",
            advice="pass a noise variance that is larger, or remove repeated inputs",
        )
    return factor


@dataclass(frozen=True)
class Modes:
    """Training under MSE with a fixed tangent kernel, mode by mode.

    The residual along an eigenvector of the tangent kernel with eigenvalue ``values[i]`` shrinks by
    ``exp(-rate * value * t)`` in gradient flow, by ``(1 - rate * value) ** t`` in ``t`` steps of gradient descent. With
    ``F.mse_loss``, the mean over N points times k outputs, ``rate`` is ``2 lr / (N k)``. Modes below the precision
    that kernels have (``RESOLUTION`` of the largest) are not learnt: those of repeated inputs are zero.
    """

    values: Tensor  # (N,)
    vectors: Tensor  # (N, N), one a column
    rate: float
    steps: bool  # gradient descent

    @classmethod
    def of(cls, theta_tt: Tensor, rate: float, steps: bool) -> Modes:
        """The decomposition of a tangent kernel ``(N, N)``."""
        values, vectors = torch.linalg.eigh(theta_tt)
        null = values <= _resolution(values) * values[-1].abs()
        return cls(torch.where(null, 0.0, values), vectors, rate, steps)

    def gain(self, t: Tensor) -> Tensor:
        """``(1 - what is left of the residual) / value`` at times ``t`` ``(T,)``: ``(T, N)``, 0 for zero modes.

        Raises UsageError at infinity where gradient descent does not converge.
        """
        null = self.values == 0
        return torch.where(null, 0.0, self._learnt(t) / torch.where(null, 1.0, self.values))

    def _learnt(self, t: Tensor) -> Tensor:
        speed, t = self.rate * self.values, t[:, None]
        end = (speed > 0).to(t.dtype)
        if self.steps:
            if bool(torch.isinf(t).any()) and float(speed.max()) >= 2:
                raise UsageError(
                    "gradient descent does not converge: the fastest mode is multiplied by "
                    f"{1 - float(speed.max()):.3g} a step",
                    advice=f"divide the learning rate by more than {float(speed.max()) / 2:.3g}",
                )
            finite = torch.where(torch.isinf(t), 0.0, t)
            slow = -torch.expm1(finite * torch.log1p(-speed.clamp(max=0.5)))
            moved = torch.where(speed < 0.5, slow, 1 - (1 - speed) ** finite)
        else:
            moved = -torch.expm1(-speed * torch.where(torch.isinf(t), 0.0, t))
        return torch.where(torch.isinf(t), end, moved)


def trained(
    modes: Modes,
    y: Tensor,
    theta_st: Tensor,
    t: Tensor,
    k_tt: Tensor | None = None,
    k_st: Tensor | None = None,
    k_ss: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Outputs at test points after training under MSE: mean ``(T, M, k)`` and covariance over initial outputs.

    Equations 14 to 16 of Lee et al., arXiv:1902.06720, for gradient flow or descent and any times ``t`` ``(T,)``:
    with ``A = theta_st theta_tt^-1 (1 - exp(-rate t theta_tt))``, the output ``f_s + A (y - f_t)`` of Gaussian initial
    outputs ``f`` of covariance ``k``. ``k_ss`` is ``(M, M)`` and the covariance ``(T, M, M)``, or the diagonals
    ``(M,)`` and ``(T, M)``.
    """
    gain = modes.gain(t).to(theta_st.dtype)
    across = theta_st @ modes.vectors
    mean = (across * gain[:, None]) @ (modes.vectors.T @ y)
    if k_tt is None or k_st is None or k_ss is None:
        return mean, None
    own = modes.vectors.T @ k_tt @ modes.vectors
    cross = modes.vectors.T @ k_st.T
    found = []
    for g in gain:
        a = across * g
        if k_ss.dim() == 1:
            found.append((k_ss - 2 * (a * cross.T).sum(1) + ((a @ own) * a).sum(1)).clamp(min=0))
        else:
            half = a @ cross
            found.append(k_ss - half - half.T + a @ own @ a.T)
    return mean, torch.stack(found)


def times(t: Any, steps: bool) -> tuple[Tensor, bool]:
    """Times as ``(T,)`` and whether one number was given. Raises UsageError for what are no times."""
    given = torch.as_tensor(t, dtype=torch.float64)
    flat = given.reshape(-1)
    if given.dim() > 1 or bool((flat < 0).any()) or bool(flat.isnan().any()):
        raise UsageError("t must be a time from 0 to infinity, or a sequence of them")
    finite = flat[flat < math.inf]
    if steps and bool((finite != finite.round()).any()):
        raise UsageError("t counts steps of gradient descent: it must be an integer or infinity")
    return flat, given.dim() == 0


def _resolution(values: Tensor) -> float:
    return max(RESOLUTION, len(values) * torch.finfo(values.dtype).eps)
