"""Limiting kernels for GPyTorch: a ``Kernel`` with the variances of parameters as its own parameters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tpcompile.kernels.extras import require
from tpcompile.kernels.hyperparameters import check_scalar_output, chosen_variances, from_rows
from tpcompile.kernels.kernel import Kernel

_kernels = require("gpytorch.kernels", "gpytorch")
_constraints = require("gpytorch.constraints", "gpytorch")


class GPyTorchKernel(_kernels.Kernel):
    """The NNGP or tangent kernel of a model in GPyTorch.

    ``variances`` are those of parameters to adapt by name (without powers of n; the model's own of all parameters by
    default). That of ``layer.weight`` is the parameter ``raw_layer_weight`` under ``constraint`` (positive by default).
    Inputs are rows, reshaped to those of the model; batches of inputs are allowed.
    """

    has_lengthscale = False

    def __init__(
        self,
        kernel: Kernel,
        get: str = "nngp",
        variances: Mapping[str, float] | None = None,
        constraint: Any = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        check_scalar_output(kernel, get)
        self.limit = kernel
        self.get = get
        self.names = {name: "raw_" + name.replace(".", "_") for name in chosen_variances(kernel, variances)}
        for name, value in chosen_variances(kernel, variances).items():
            raw = self.names[name]
            self.register_parameter(raw, nn.Parameter(torch.zeros(())))
            self.register_constraint(raw, constraint or _constraints.Positive())
            self.initialize(**{raw: self._constraint(raw).inverse_transform(torch.tensor(float(value)))})

    @property
    def variances(self) -> dict[str, Tensor]:
        """Variances of parameters by name, differentiable."""
        return {name: self._constraint(raw).transform(getattr(self, raw)) for name, raw in self.names.items()}

    def forward(
        self, x1: Tensor, x2: Tensor, diag: bool = False, last_dim_is_batch: bool = False, **params: Any
    ) -> Tensor:
        """Kernel ``(..., N1, N2)`` of rows ``(..., N1, d)`` and ``(..., N2, d)``, or its diagonal ``(..., N)``."""
        if last_dim_is_batch:
            x1, x2 = (x.transpose(-1, -2).unsqueeze(-1) for x in (x1, x2))
        lead = torch.broadcast_shapes(x1.shape[:-2], x2.shape[:-2])
        first, second = (x.expand(*lead, *x.shape[-2:]).reshape(-1, *x.shape[-2:]) for x in (x1, x2))
        found = [self._pair(a, b, diag) for a, b in zip(first, second, strict=True)]
        return torch.stack(found).reshape(*lead, *found[0].shape)

    def _pair(self, x1: Tensor, x2: Tensor, diag: bool) -> Tensor:
        same = x1.shape == x2.shape and torch.equal(x1, x2)
        a, b = from_rows(x1, self.limit), from_rows(x2, self.limit)
        if diag and same:
            return self.limit(a, None, self.get, variances=self.variances, diagonal=True)
        if diag:
            rows = [
                self.limit(p[None], q[None], self.get, variances=self.variances)[0, 0]
                for p, q in zip(a, b, strict=True)
            ]
            return torch.stack(rows)
        return self.limit(a, None if same else b, self.get, variances=self.variances)

    def _constraint(self, raw: str) -> Any:
        return getattr(self, raw + "_constraint")
