"""``k.gradient_flow(...)`` and ``k.gradient_descent(...)``: training with the fixed tangent kernel.

The model is linearised around its initialisation, which is exact at infinite width in the kernel regime (NTK
parametrization). The loss is a mean over all entries of the output, as ``F.mse_loss`` and ``F.cross_entropy``, and the
parameters move along ``-lr * gradient``, with the optimizer's own learning rates times ``lr`` where the kernel was made
with an optimizer. For MSE over N points and k outputs the residual then decays at the rates ``2 lr / (N k)`` times
the eigenvalues of the tangent kernel.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.kernels.arrays import Array, as_tensor
from tpcompile.kernels.gp import checked, returned, training_data
from tpcompile.kernels.layout import Layout
from tpcompile.kernels.losses import Solver, dual_paths, factor, gradient_of
from tpcompile.kernels.predict import Modes, Prediction, times, trained

if TYPE_CHECKING:
    from tpcompile.kernels.kernel import Kernel

Loss = Callable[[Tensor, Any], Tensor]
OUTPUT_INITS = ("random", "zero")


@dataclass(frozen=True, eq=False)
class KernelTraining:
    """Training of a model with its limiting tangent kernel: outputs at any inputs and any times.

    Made by :meth:`tpcompile.Kernel.gradient_flow` and :meth:`tpcompile.Kernel.gradient_descent`.
    """

    kernel: Kernel
    x: Tensor
    y: Array
    lr: float
    loss: Loss | None  # None is MSE
    steps: bool  # gradient descent; else gradient flow
    output_init: str
    outputs: tuple[int, ...]  # axes of the output for one input
    solver: Solver
    dtype: torch.dtype

    def predict(self, x: Array | None = None, t: Any = math.inf, covariance: str | None = "full") -> Prediction:
        """Mean and covariance, over random initial outputs, at inputs ``(M, ...)`` (the training inputs by default).

        ``t`` is a time or a sequence of times (steps of gradient descent), ``math.inf`` included for MSE; a sequence
        gives a leading axis. ``covariance`` is ``"full"``, ``"diagonal"`` or None; it is zero with
        ``output_init="zero"``. Losses other than MSE with random initial outputs are averaged over draws, and give
        their standard error.
        """
        test = self.x if x is None else checked(x, covariance)
        moments, single = times(t, self.steps)
        theta_st = self._matrix("ntk", test, self.x)
        random = self.output_init == "random"
        k_st = self._matrix("nngp", test, self.x) if random else None
        k_ss = None if covariance is None else self._prior(test, covariance == "diagonal", random)
        kind = self.y if x is None else x
        if self.loss is not None:
            found = self._any_loss(moments, theta_st, k_st, k_ss, covariance == "full")
        else:
            found = self._mse(moments, theta_st, k_st, k_ss, covariance == "full")
        if single:
            found = Prediction(*(None if v is None else v[0] for v in (found.mean, found.covariance, found.stderr)))
        return returned(found, kind, self.y)

    # parts ---------------------------------------------------------------------------------

    def _mse(self, t: Tensor, theta_st: Tensor, k_st: Tensor | None, k_ss: Tensor | None, full: bool) -> Prediction:
        mean, cov = trained(self._modes, self._rows, theta_st, t, self._k_tt, k_st, k_ss)
        if cov is None and k_ss is not None:
            cov = k_ss.expand(len(t), *k_ss.shape)
        return Prediction(self._layout.outputs(mean, self.outputs), self._layout.covariance(cov, full))

    def _any_loss(
        self, t: Tensor, theta_st: Tensor, k_st: Tensor | None, k_ss: Tensor | None, full: bool
    ) -> Prediction:
        layout, rows = self._layout, len(self._theta_tt)
        columns = len(self.x) * math.prod(self.outputs) // rows
        start = torch.zeros(1, rows, columns, dtype=self.dtype)
        forget: Tensor | None = None
        if self._k_tt is not None:
            root, inverse = factor(self._k_tt)
            generator = torch.Generator().manual_seed(self.solver.seed)
            normal = torch.randn(self.solver.draws, rows, columns, generator=generator, dtype=torch.float64)
            start = root @ normal.to(self.dtype)
            assert k_st is not None
            forget = k_st @ inverse
        y = as_tensor(self.y, "y_train")
        y = y.to(self.dtype) if y.is_floating_point() else y
        loss = self.loss
        assert loss is not None
        gradient = gradient_of(lambda f: loss(layout.outputs(f, self.outputs), y))
        dual = dual_paths(self._theta_tt, start, gradient, self.lr, t, self.steps, self.solver)
        paths = -(theta_st @ dual)
        if forget is None:
            mean, stderr = paths[:, 0], None
            paths = torch.zeros_like(paths)
        else:
            paths = paths + forget @ start
            mean, stderr = paths.mean(1), layout.outputs(paths.std(1) / len(start) ** 0.5, self.outputs)
            paths = paths - mean[:, None]
        cov = None
        if k_ss is not None:
            if forget is not None and k_st is not None:
                k_ss = k_ss - (forget @ k_st.T if full else (forget * k_st).sum(1))
            cov = layout.coupled(k_ss if full else k_ss.clamp(min=0), paths, self.outputs, full)
        return Prediction(layout.outputs(mean, self.outputs), cov, stderr)

    @cached_property
    def _layout(self) -> Layout:
        return Layout.of(self.kernel.pairs("nngp"), self.kernel.pairs("ntk"))

    @cached_property
    def _modes(self) -> Modes:
        return Modes.of(self._theta_tt, 2 * self.lr / as_tensor(self.y, "y_train").numel(), self.steps)

    @cached_property
    def _rows(self) -> Tensor:
        return self._layout.rows(as_tensor(self.y, "y_train").to(self.dtype), "y_train")

    @cached_property
    def _theta_tt(self) -> Tensor:
        return self._matrix("ntk", self.x, None)

    @cached_property
    def _k_tt(self) -> Tensor | None:
        return self._matrix("nngp", self.x, None) if self.output_init == "random" else None

    def _matrix(self, get: str, x1: Tensor, x2: Tensor | None) -> Tensor:
        return self._layout.matrix(self.kernel(x1, x2, get, dtype=self.dtype), self.kernel.pairs(get))

    def _prior(self, x: Tensor, diagonal: bool, random: bool) -> Tensor:
        if not random:
            count = len(x) * math.prod(self._layout.positions)
            return torch.zeros(count if diagonal else (count, count), dtype=self.dtype)
        if diagonal:
            return self._layout.diagonal(
                self.kernel.nngp(x, diagonal=True, dtype=self.dtype), self.kernel.pairs("nngp")
            )
        return self._matrix("nngp", x, None)


def kernel_training(
    kernel: Kernel,
    x_train: Array,
    y_train: Array,
    *,
    lr: float,
    loss: str | Loss,
    steps: bool,
    output_init: str,
    outputs: tuple[int, ...] | None,
    solver: Solver,
    dtype: torch.dtype,
) -> KernelTraining:
    """See :meth:`tpcompile.Kernel.gradient_flow`."""
    x, y = training_data(x_train, y_train)
    if output_init not in OUTPUT_INITS:
        raise UsageError(f"output_init must be 'random' or 'zero', found {output_init!r}")
    if not (lr > 0 and math.isfinite(lr)):
        raise UsageError(f"lr must be positive, found {lr}")
    if isinstance(loss, str) and loss != "mse":
        raise UsageError(f"loss must be 'mse' or a function of output and target, found {loss!r}")
    other = None if isinstance(loss, str) or loss is F.mse_loss else loss
    if other is None and not y.is_floating_point():
        raise UsageError(f"y_train must be floating point for MSE, found {y.dtype}")
    if output_init == "random" and kernel.nngp_exponent != 0:
        raise UsageError(
            f"the initial output is of order n^({kernel.nngp_exponent / 2}): the tangent kernel of initialisation is "
            "the limit of training where it is of order one",
            advice="tp.compile takes any parametrization; output_init='zero' trains the linearised model all the same",
        )
    if outputs is None:
        outputs = tuple(y.shape[1:]) if y.is_floating_point() else Layout.of(kernel.pairs("nngp")).dims
    found = KernelTraining(
        kernel,
        x,
        y_train,
        lr,
        other,
        steps,
        output_init,
        outputs,
        solver,
        dtype,
    )
    if other is None:
        found._rows  # noqa: B018  checks the shape now
    return found
