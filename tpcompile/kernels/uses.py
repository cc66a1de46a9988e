"""What users do with kernels, as methods: predictions, finite-width kernels, matrices on disk."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from fractions import Fraction
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.kernels.arrays import Array
from tpcompile.kernels.empirical import empirical_kernels
from tpcompile.kernels.gp import GaussianProcess, gaussian_process
from tpcompile.kernels.losses import Solver
from tpcompile.kernels.plan import Pairs
from tpcompile.kernels.store import Tick, to_zarr
from tpcompile.kernels.training import KernelTraining, Loss, kernel_training
from tpcompile.kernels.variances import check_names, variances_of

if TYPE_CHECKING:
    from tpcompile.kernels.kernel import Kernel


class Uses:
    """Methods of :class:`tpcompile.Kernel` that are made of its values."""

    program: Any
    nngp_exponent: Fraction
    arguments: tuple[Any, ...]
    example: Tensor

    def pairs(self, get: str) -> Pairs:
        raise NotImplementedError

    @property
    def variances(self) -> dict[str, float]:
        """Variances of the entries of random parameters by name, without powers of n: the kernel's hyperparameters."""
        return variances_of(self.program)

    def check_variances(self: Any, names: Iterable[str]) -> None:
        """UsageError for names that are not in :attr:`variances`."""
        names = list(names)
        if names:
            check_names(names, self.variances)

    def check_exact(self: Any, what: str) -> None:
        """UsageError for a kernel that is estimated on particles, on all of its inputs together."""
        if self.evaluator == "particles":
            raise UsageError(
                f"{what} takes kernels that are computed block by block; this one is estimated on all inputs together",
                advice="evaluate the kernel and use the matrices",
            )

    def gp(
        self: Any, x_train: Array, y_train: Array, noise: float = 0.0, *, dtype: torch.dtype = torch.float64
    ) -> GaussianProcess:
        """The Gaussian process of the model at initialisation given outputs ``y_train`` ``(N, ...)`` at ``x_train``.

        ``noise`` is the variance of the observations and ``dtype`` the precision of the computation; predictions have
        the precision of ``y_train``. Independent outputs are columns of ``y_train``, any number of them. Both the
        kernel and the noise are in units of ``n ** nngp_exponent``.
        """
        return gaussian_process(self, x_train, y_train, noise, dtype)

    def gradient_flow(
        self: Any,
        x_train: Array,
        y_train: Array,
        lr: float = 1.0,
        loss: str | Loss = "mse",
        *,
        output_init: str = "random",
        outputs: tuple[int, ...] | None = None,
        method: str = "RK45",
        rtol: float = 1e-6,
        atol: float = 1e-8,
        draws: int = 64,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> KernelTraining:
        """Training in continuous time, parameters moving with velocity ``-lr * gradient``, kernel fixed.

        ``loss`` is ``"mse"`` (``F.mse_loss``, the mean over all N k entries: closed form at any time and at infinity)
        or a function of outputs and targets that gives a scalar tensor (``F.cross_entropy``): an ordinary differential
        equation by ``scipy.integrate.solve_ivp`` with ``method``, ``rtol`` and ``atol``. The initial output is the
        Gaussian of the NNGP (``output_init="random"``; averaged over ``draws`` for a function) or zero. ``outputs`` are
        the axes of the output for one input where the targets do not show them (classes: those of the model).
        The tangent kernel counts in units of ``n ** ntk_exponent``: there lr is the learning rate times that.
        """
        return kernel_training(
            self,
            x_train,
            y_train,
            lr=lr,
            loss=loss,
            steps=False,
            output_init=output_init,
            outputs=outputs,
            solver=Solver(method, rtol, atol, draws, seed),
            dtype=dtype,
        )

    def gradient_descent(
        self: Any,
        x_train: Array,
        y_train: Array,
        lr: float = 1.0,
        loss: str | Loss = "mse",
        *,
        output_init: str = "random",
        outputs: tuple[int, ...] | None = None,
        draws: int = 64,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
    ) -> KernelTraining:
        """Full-batch gradient descent with the fixed tangent kernel; as :meth:`gradient_flow` with steps for times."""
        return kernel_training(
            self,
            x_train,
            y_train,
            lr=lr,
            loss=loss,
            steps=True,
            output_init=output_init,
            outputs=outputs,
            solver=Solver(draws=draws, seed=seed),
            dtype=dtype,
        )

    def empirical(
        self: Any,
        width: int,
        x1: Array,
        x2: Array | None = None,
        seed: int = 0,
        get: str = "both",
        *,
        draws: int = 1,
        dtype: torch.dtype | None = None,
    ) -> Any:
        """Kernels of the model itself at a finite width by ``torch.func``, in the shapes of ``k(x1, x2, get)``.

        They are averages over independent outputs and over ``draws`` networks, with the seeds from ``seed`` on, in
        units of the same powers of n. The NNGP of one network is the product of its outputs: only its average over many
        draws or outputs comes near the limit, while the tangent kernel of one wide network does.
        """
        return empirical_kernels(self, width, x1, x2, seed, get, draws, dtype)

    def to_zarr(
        self: Any,
        x: Array,
        path: str | PathLike[str],
        x2: Array | None = None,
        get: str = "both",
        *,
        block: int = 1024,
        diagonal: bool = False,
        client: Any = None,
        progress: bool | Tick = True,
        dtype: torch.dtype | None = None,
        variances: Mapping[str, Tensor | float] | None = None,
        samples: int = 16384,
        replicas: int = 4,
        seed: int = 0,
    ) -> Any:
        """A kernel matrix larger than memory, in blocks of ``block`` times ``block`` pairs in a zarr group at ``path``.

        Returns the zarr array (both for ``get="both"``), in the shape of ``k(x, x2, get)``. Where it was stopped the
        same call takes it up: only blocks that were not completely written are computed. A path with other inputs,
        another program or other options is a UsageError. ``x`` may be anything that is cut by rows (a tensor,
        ``numpy.memmap``, a zarr array); the store keeps a copy. Of a symmetric matrix the blocks on and above the
        diagonal are computed; ``diagonal`` gives ``(N,)`` values of each input with itself, ``block`` at a time.
        ``client`` is a ``dask.distributed.Client`` whose workers see ``path`` and can import the factory's module: they
        compute the same blocks, on processors of one kind to the same bits. Otherwise as many threads as torch uses do.
        ``progress`` is a bar on terminals, or a function of blocks done and in all. The other options are those of the
        call. Raises MissingExtraError without zarr.
        """
        self.check_exact("to_zarr")
        options = {"variances": variances, "samples": samples, "replicas": replicas, "seed": seed}
        return to_zarr(self, x, path, x2, get, block, diagonal, client, progress, dtype, options)

    def sklearn(
        self: Any,
        get: str = "nngp",
        variances: dict[str, float] | None = None,
        bounds: tuple[float, float] | str = (1e-5, 1e5),
    ) -> Any:
        """This kernel for ``sklearn.gaussian_process``; see ``tpcompile.kernels.sklearn_kernel.SklearnKernel``.

        Raises MissingExtraError without scikit-learn.
        """
        self.check_exact("sklearn")
        from tpcompile.kernels.sklearn_kernel import SklearnKernel

        return SklearnKernel(self, get, variances, bounds)

    def gpytorch(
        self: Any, get: str = "nngp", variances: Mapping[str, float] | None = None, constraint: Any = None
    ) -> Any:
        """This kernel for GPyTorch; see ``tpcompile.kernels.gpytorch_kernel.GPyTorchKernel``.

        Raises MissingExtraError without GPyTorch.
        """
        self.check_exact("gpytorch")
        from tpcompile.kernels.gpytorch_kernel import GPyTorchKernel

        return GPyTorchKernel(self, get, variances, constraint)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self  # nothing of a compiled kernel changes

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return type(self), self.arguments


def rebuilt(*arguments: Any) -> Kernel:
    from tpcompile.kernels.kernel import Kernel

    return Kernel(*arguments)
