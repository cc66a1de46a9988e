"""tpcompile: a compiler for the infinite-width limit of neural networks."""

from tpcompile import errors, ir
from tpcompile.capture.tap import tap
from tpcompile.compiled import Compiled, compile
from tpcompile.errors import TpcompileError
from tpcompile.kernels import Kernel, Kernels, kernel
from tpcompile.laws import Constant, Law, Normal, Orthogonal, TruncatedNormal, Uniform
from tpcompile.parametrization import CoordinateCheck, Report, Rules, abc, abcd, coordinate_check, mup, verify
from tpcompile.results import LimitResult, Result, SimulationResult, load_result
from tpcompile.spectra import Moments, Spectrum, moments, spectrum

__version__ = "0.1.0"

__all__ = [
    "Compiled",
    "Constant",
    "CoordinateCheck",
    "Kernel",
    "Kernels",
    "Law",
    "LimitResult",
    "Moments",
    "Normal",
    "Orthogonal",
    "Report",
    "Result",
    "Rules",
    "SimulationResult",
    "Spectrum",
    "TpcompileError",
    "TruncatedNormal",
    "Uniform",
    "abc",
    "abcd",
    "compile",
    "coordinate_check",
    "errors",
    "ir",
    "kernel",
    "load_result",
    "moments",
    "mup",
    "spectrum",
    "tap",
    "verify",
]
