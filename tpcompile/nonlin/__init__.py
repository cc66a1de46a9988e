"""Nonlinearities: one record per pointwise function, one file per function or family.

The folder is scanned: a new file with a :class:`Nonlinearity` in it is all that a new one needs.
"""

from tpcompile.nonlin.binding import BackwardCall, ForwardCall, bind, bind_backward
from tpcompile.nonlin.calculus import derivative, evaluate, has_derivative, homogeneity, kinks, parity, smoothness
from tpcompile.nonlin.record import Apply, Backward, Domain, Growth, Nonlinearity, Parity, always
from tpcompile.nonlin.registry import (
    Row,
    all_nonlinearities,
    backward_by_target,
    by_target,
    complete,
    lookup,
    scan,
    table,
)

__all__ = [
    "Apply",
    "Backward",
    "BackwardCall",
    "Domain",
    "ForwardCall",
    "Growth",
    "Nonlinearity",
    "Parity",
    "Row",
    "all_nonlinearities",
    "always",
    "backward_by_target",
    "bind",
    "bind_backward",
    "by_target",
    "complete",
    "derivative",
    "evaluate",
    "has_derivative",
    "homogeneity",
    "kinks",
    "lookup",
    "parity",
    "scan",
    "smoothness",
    "table",
]
