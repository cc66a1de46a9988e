"""Expectations without closed form: Mehler's series where it is certified, graded panels elsewhere."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tpcompile.errors import UnsupportedOperationError
from tpcompile.evaluate.duals import mehler, panels
from tpcompile.evaluate.duals.functions import Function, kinks, pointwise
from tpcompile.evaluate.duals.pair import Pair

ERROR = 1e-10
"""Stated error, relative to ``sqrt(E f^2 E g^2)``."""


def two_variables(f: Function | None, g: Function | None) -> tuple[str, float, Callable[[Pair], Tensor]]:
    """Form, error and function of ``E f(u) g(v)``."""
    f, g = _known(f), _known(g)
    fn_f, fn_g, kinks_f, kinks_g = pointwise(f), pointwise(g), kinks(f), kinks(g)
    rule = panels.Rule()

    def by_panels(pair: Pair) -> Tensor:
        return panels.two_variables(fn_f, fn_g, kinks_f, kinks_g, pair, rule).to(pair.cov.dtype)

    def by_series(pair: Pair) -> Tensor:
        value, bad = mehler.two_variables(fn_f, fn_g, pair)
        if bad is not None:
            value[bad] = by_panels(_select(pair, bad))
        return value

    if kinks_f or kinks_g:
        return "quadrature: panels split at the kinks", ERROR, by_panels
    return "quadrature: Hermite series, panels where it is not certified", ERROR, by_series


def one_variable(f: Function | None) -> tuple[str, float, Callable[[Tensor, Tensor | None], Tensor]]:
    """Form, error and function of ``E f(u)``."""
    f = _known(f)
    fn, points, rule = pointwise(f), kinks(f), panels.Rule()

    def compute(var: Tensor, mean: Tensor | None) -> Tensor:
        mean = None if mean is None else mean.double()
        return panels.one_variable(fn, points, var.double(), mean, rule).to(var.dtype)

    return "quadrature: Gauss-Legendre panels", ERROR, compute


def _known(f: Function | None) -> Function:
    if f is None:
        raise UnsupportedOperationError(
            "the expectation of a measure has no closed form here",
            advice="use the particle evaluator, or ask for fewer derivatives",
        )
    return f


def _select(pair: Pair, where: Tensor) -> Pair:
    """The chosen pairs, as a list."""
    columns = (pair.cov, pair.var_u, pair.var_v, pair.mean_u, pair.mean_v)
    chosen = (None if c is None else c.expand(where.shape)[where].double() for c in columns)
    return Pair(*chosen)  # type: ignore[arg-type]


__all__ = ["ERROR", "one_variable", "two_variables"]
