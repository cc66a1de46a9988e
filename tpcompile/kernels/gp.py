"""``k.gp(...)``: the Gaussian process of an infinitely wide model at initialisation, given data."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.kernels.arrays import Array, as_tensor, like
from tpcompile.kernels.layout import Layout
from tpcompile.kernels.predict import Prediction, cholesky, posterior

if TYPE_CHECKING:
    from tpcompile.kernels.kernel import Kernel

COVARIANCES = ("full", "diagonal", None)


@dataclass(frozen=True, eq=False)
class GaussianProcess:
    """The posterior of the NNGP of a model given noisy outputs. Made by :meth:`tpcompile.Kernel.gp`."""

    kernel: Kernel
    x: Tensor
    y: Array
    noise: float
    dtype: torch.dtype

    def predict(self, x: Array, covariance: str | None = "full") -> Prediction:
        """Mean and covariance of the outputs (without noise) at inputs ``(M, ...)``.

        ``covariance`` is ``"full"``, ``"diagonal"`` or None.
        """
        test = checked(x, covariance)
        k_st = self._nngp(test, self.x)
        k_ss = None
        if covariance == "full":
            k_ss = self._nngp(test, None)
        elif covariance == "diagonal":
            k_ss = self._layout.diagonal(
                self.kernel.nngp(test, diagonal=True, dtype=self.dtype), self.kernel.pairs("nngp")
            )
        mean, found = posterior(self._k_tt, self._rows, k_st, k_ss, self.noise)
        mean = self._layout.outputs(mean, tuple(as_tensor(self.y, "y_train").shape[1:]))
        return returned(Prediction(mean, self._layout.covariance(found, covariance == "full")), x, self.y)

    def log_marginal_likelihood(self) -> Tensor:
        """Log density of the training outputs under the prior with noise; differentiable in torch."""
        factor = cholesky(self._k_tt, self.noise)
        rows = self._rows
        half = torch.linalg.solve_triangular(factor, rows, upper=False)
        count = rows.shape[1]
        constant = 0.5 * rows.numel() * math.log(2 * math.pi)
        return -0.5 * half.square().sum() - count * factor.diagonal().log().sum() - constant

    @cached_property
    def _layout(self) -> Layout:
        return Layout.of(self.kernel.pairs("nngp"))

    @cached_property
    def _rows(self) -> Tensor:
        return self._layout.rows(as_tensor(self.y, "y_train").to(self.dtype), "y_train")

    @cached_property
    def _k_tt(self) -> Tensor:
        return self._nngp(self.x, None)

    def _nngp(self, x1: Tensor, x2: Tensor | None) -> Tensor:
        return self._layout.matrix(self.kernel.nngp(x1, x2, dtype=self.dtype), self.kernel.pairs("nngp"))


def gaussian_process(kernel: Kernel, x_train: Array, y_train: Array, noise: float, dtype: torch.dtype) -> Any:
    """See :meth:`tpcompile.Kernel.gp`."""
    x, y = training_data(x_train, y_train)
    if not y.is_floating_point():
        raise UsageError(f"y_train must be floating point, found {y.dtype}", advice="encode classes as numbers")
    if not noise >= 0:
        raise UsageError(f"noise is a variance, found {noise}")
    process = GaussianProcess(kernel, x, y_train, noise, dtype)
    process._rows  # noqa: B018  checks the shape now
    return process


def training_data(x_train: Array, y_train: Array) -> tuple[Tensor, Tensor]:
    """Both as tensors. Raises UsageError where they do not fit."""
    x, y = as_tensor(x_train, "x_train"), as_tensor(y_train, "y_train")
    if x.dim() == 0 or y.dim() == 0 or len(x) != len(y) or len(x) == 0:
        raise UsageError(f"x_train of shape {tuple(x.shape)} with y_train of shape {tuple(y.shape)}")
    return x, y


def checked(x: Array, covariance: str | None) -> Tensor:
    """Test inputs as a tensor."""
    if covariance not in COVARIANCES:
        raise UsageError(f"covariance must be 'full', 'diagonal' or None, found {covariance!r}")
    return as_tensor(x, "x")


def returned(found: Prediction, x: Array, y: Array) -> Prediction:
    """A prediction in the precision of the targets ``y`` and as the kind of array that ``x`` is."""
    dtype = as_tensor(y, "y_train").dtype

    def cast(value: Tensor | None) -> Any:
        if value is None:
            return None
        return like(value.to(dtype) if dtype.is_floating_point else value, x)

    return Prediction(cast(found.mean), cast(found.covariance), cast(found.stderr))
