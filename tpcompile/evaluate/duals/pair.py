"""Two jointly Gaussian numbers, broadcast over all pairs, with what several expectations share computed once."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpcompile.evaluate.duals.elementary import asin, recording, sqrt_

_ROUNDING = 16
"""Units of rounding by which the correlation of equal variables may miss one."""


class Pair:
    """Covariances of ``(u, v)``: ``cov`` for all pairs, ``var_u`` and ``var_v`` broadcastable to it.

    Where a variance is zero the correlation is taken as zero (0/0; the convention of neural-tangents): functions
    continuous at zero do not see it, and ``E step(u) step(v)`` is 1/4 there, as for independent u and v. A correlation
    that misses one by rounding is one: a kink would see the root of the difference. Not to be changed after
    construction.
    """

    def __init__(
        self, cov: Tensor, var_u: Tensor, var_v: Tensor, mean_u: Tensor | None = None, mean_v: Tensor | None = None
    ) -> None:
        shape = np.broadcast_shapes(cov.shape, var_u.shape, var_v.shape)
        self.cov, self.var_u, self.var_v = cov.expand(shape), var_u, var_v
        self.mean_u, self.mean_v = mean_u, mean_v
        self.memo: dict[Any, Any] = {}
        """Expectations of the closed engine that several duals share."""

    @property
    def centred(self) -> bool:
        return self.mean_u is None and self.mean_v is None

    @cached_property
    def std_u(self) -> Tensor:
        return self.var_u.clamp(min=0).sqrt()

    @cached_property
    def std_v(self) -> Tensor:
        return self.var_v.clamp(min=0).sqrt()

    @cached_property
    def rho(self) -> Tensor:
        """Correlation, in [-1, 1], and one where it is within rounding of it."""
        rho = (self.cov * inverse(self.std_u)).mul_(inverse(self.std_v))
        if not rho.numel():
            return rho
        near = 1 - _ROUNDING * torch.finfo(rho.dtype).eps
        if not recording():  # a tape looks first, too
            least, most = torch.aminmax(rho)
            if bool(most <= near) and bool(least >= -near):
                return rho
        return torch.where(rho.abs() < near, rho, rho.sign())

    @cached_property
    def asin(self) -> Tensor:
        return asin(self.rho)

    @cached_property
    def root(self) -> Tensor:
        """``sqrt(1 - rho^2)``, accurate also near one: ``1 - rho`` is exact there."""
        return sqrt_(torch.addcmul(a := 1 - self.rho, a, self.rho))  # not negative, being a - |a rho| or more

    def select(self, where: Tensor) -> Pair:
        """The pairs where a mask of the covariance's shape is true, as lists of float64."""
        columns = (self.cov, self.var_u, self.var_v, self.mean_u, self.mean_v)
        chosen = (None if c is None else c.expand(where.shape)[where].double() for c in columns)
        return Pair(*chosen)  # type: ignore[arg-type]

    def double(self) -> Pair:
        """In float64."""
        columns = (self.cov, self.var_u, self.var_v, self.mean_u, self.mean_v)
        return Pair(*(None if c is None else c.double() for c in columns))  # type: ignore[arg-type]

    def rows(self, start: int, stop: int) -> Pair:
        """The pairs of some indices of the first axis."""
        lead = self.cov.dim()
        columns = (self.cov, self.var_u, self.var_v, self.mean_u, self.mean_v)
        return Pair(*(c if c is None or c.dim() < lead or c.shape[0] == 1 else c[start:stop] for c in columns))  # type: ignore[arg-type]

    def columns(self) -> Pair:
        """The same pair the other way round."""
        return Pair(self.cov, self.var_v, self.var_u, self.mean_v, self.mean_u)


def inverse(x: Tensor) -> Tensor:
    """``1/x``, and 0 at 0."""
    return torch.where(x > 0, x.reciprocal(), torch.zeros_like(x))
