"""Kernels of infinitely wide models: the NNGP and the tangent kernel of any traced module."""

from tpcompile.kernels.kernel import Kernel, Kernels, kernel

__all__ = ["Kernel", "Kernels", "kernel"]
