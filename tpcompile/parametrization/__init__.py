"""Verdicts on parametrizations, the maximal update parametrization of any model, and the geometry of both."""

from tpcompile.parametrization import abc, abcd
from tpcompile.parametrization.empirical import CoordinateCheck, coordinate_check
from tpcompile.parametrization.mup import Rule, Rules, mup
from tpcompile.parametrization.report import ParameterReport, Report
from tpcompile.parametrization.sizes import Size
from tpcompile.parametrization.verify import verify

__all__ = [
    "CoordinateCheck",
    "ParameterReport",
    "Report",
    "Rule",
    "Rules",
    "Size",
    "abc",
    "abcd",
    "coordinate_check",
    "mup",
    "verify",
]
