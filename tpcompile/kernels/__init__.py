"""Kernels of infinitely wide models: the NNGP and the tangent kernel of any traced module."""

from tpcompile.kernels.arrays import Kernels
from tpcompile.kernels.gp import GaussianProcess
from tpcompile.kernels.kernel import Kernel, kernel
from tpcompile.kernels.predict import Prediction
from tpcompile.kernels.training import KernelTraining

__all__ = ["GaussianProcess", "Kernel", "KernelTraining", "Kernels", "Prediction", "kernel"]
