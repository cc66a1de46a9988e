"""Limiting kernels for scikit-learn: a ``Kernel`` whose hyperparameters are the variances of parameters."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpcompile.kernels.extras import require
from tpcompile.kernels.hyperparameters import check_scalar_output, chosen_variances, from_rows, value_and_gradient
from tpcompile.kernels.kernel import Kernel

_base = require("sklearn.gaussian_process.kernels", "sklearn")


class SklearnKernel(_base.Kernel):
    """The NNGP or tangent kernel of a model in ``sklearn.gaussian_process``.

    ``kernel`` is a :class:`tpcompile.Kernel`, ``variances`` variances to adapt by the names of parameters (no powers
    of n; those of all parameters by default), ``bounds`` a pair for each or ``"fixed"``. ``theta`` holds
    the logarithms of the variances in that order. Inputs are rows, reshaped to those of the model.
    """

    def __init__(
        self,
        kernel: Kernel,
        get: str = "nngp",
        variances: dict[str, float] | None = None,
        bounds: tuple[float, float] | str = (1e-5, 1e5),
    ) -> None:
        # scikit-learn asks for arguments as they are: its clones compare them by identity
        self.kernel = kernel
        self.get = get
        self.variances = variances
        self.variance_bounds = bounds
        check_scalar_output(kernel, get)
        chosen_variances(kernel, variances)

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Arguments of the constructor."""
        return {
            "kernel": self.kernel,
            "get": self.get,
            "variances": self.variances,
            "bounds": self.variance_bounds,
        }

    def set_params(self, **params: Any) -> SklearnKernel:
        """Replace arguments of the constructor."""
        unknown = set(params) - set(self.get_params())
        if unknown:
            raise ValueError(f"invalid parameters {sorted(unknown)} of SklearnKernel")
        self.__init__(**(self.get_params() | params))
        return self

    @property
    def values(self) -> dict[str, float]:
        """Variances by name."""
        return chosen_variances(self.kernel, self.variances)

    @property
    def hyperparameters(self) -> list[Any]:
        """One hyperparameter of as many elements as there are variances."""
        return [_base.Hyperparameter("variances", "numeric", self.variance_bounds, len(self.values))]

    @property
    def theta(self) -> np.ndarray:
        """Logarithms of the variances."""
        return np.array([]) if self.variance_bounds == "fixed" else np.log(list(self.values.values()))

    @theta.setter
    def theta(self, theta: np.ndarray) -> None:
        if len(theta) != len(self.theta):
            raise ValueError(f"theta has {len(theta)} entries, expected {len(self.theta)}")
        if len(theta):
            self.variances = dict(zip(self.values, np.exp(theta).tolist(), strict=True))

    def __call__(self, X: Any, Y: Any = None, eval_gradient: bool = False) -> Any:
        """Kernel ``(N, N2)``; with ``eval_gradient`` its derivatives ``(N, N, P)`` with respect to theta beside it."""
        x = self._inputs(X)
        if eval_gradient:
            if Y is not None:
                raise ValueError("the gradient can be evaluated only where Y is None")
            adapted = {} if self.variance_bounds == "fixed" else self.values
            if adapted:
                matrix, gradient = value_and_gradient(self.kernel, x, self.get, adapted)
                return matrix.numpy(), gradient.numpy()
            matrix = self(X)
            return matrix, np.empty((*matrix.shape, 0))
        y = None if Y is None else self._inputs(Y)
        return self.kernel(x, y, self.get, variances=self.values).detach().numpy()

    def diag(self, X: Any) -> np.ndarray:
        """The kernel of every input with itself, ``(N,)``."""
        found = self.kernel(self._inputs(X), None, self.get, variances=self.values, diagonal=True)
        return found.detach().numpy()

    def is_stationary(self) -> bool:
        """False: it depends on more than the difference of inputs."""
        return False

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}={value:.3g}" for name, value in self.values.items())
        return f"{type(self).__name__}({self.get}; {parts})"

    def _inputs(self, x: Any) -> Tensor:
        return from_rows(torch.from_numpy(np.atleast_2d(np.asarray(x, dtype=np.float64))), self.kernel)
