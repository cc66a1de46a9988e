"""Expectations without closed form: Mehler's series where it is certified, graded panels elsewhere.

What is stated is checked on the call: of the extreme and some other pairs or rows the panels are refined, all of them
where that makes a difference, and an EvaluationError is raised where refining does not settle it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tpcompile.errors import EvaluationError, UnsupportedOperationError
from tpcompile.evaluate.duals import mehler, panels
from tpcompile.evaluate.duals.functions import Function, kinks, pointwise
from tpcompile.evaluate.duals.pair import Pair

ERROR = 1e-10
"""Stated error, relative to ``sqrt(E f^2 E g^2)``."""
_REFINEMENTS = 3
_SAMPLE = 6

Compute = Callable[[Pair], Tensor]


def two_variables(f: Function | None, g: Function | None) -> tuple[str, float, Compute]:
    """Form, error and function of ``E f(u) g(v)``."""
    f, g = known(f), known(g)
    by_panels = panels_of_pairs(f, g)
    fn_f, fn_g = pointwise(f), pointwise(g)

    def by_series(pair: Pair) -> Tensor:
        value, bad = mehler.two_variables(fn_f, fn_g, pair)
        if bad is not None:
            value[bad] = by_panels(pair.select(bad))
        return value

    if kinks(f) or kinks(g):
        return "quadrature: panels split at the kinks", ERROR, by_panels
    return "quadrature: Hermite series, panels where it is not certified", ERROR, by_series


def panels_of_pairs(f: Function, g: Function, conditional: panels.Conditional | None = None) -> Compute:
    """``E f(u) g(v)`` by panels; ``conditional(var, mean)`` is ``E g(v)`` where that is closed."""
    fn_f, fn_g, kinks_f, kinks_g = pointwise(f), pointwise(g), kinks(f), kinks(g)

    def compute(pair: Pair, rule: panels.Rule, inner: panels.Conditional | None = None) -> Tensor:
        return panels.two_variables(fn_f, fn_g, kinks_f, kinks_g, pair, rule, inner)

    def by_panels(pair: Pair) -> Tensor:
        chosen = torch.zeros(pair.cov.shape, dtype=torch.bool)
        chosen.view(-1)[_extremes(pair.rho.abs(), (pair.std_u * pair.std_v).expand(pair.cov.shape))] = True
        sample = pair.select(chosen)
        norms = [
            panels.one_variable(lambda x, h=h: h(x).square(), points, std.square(), mean, panels.Rule())
            for h, points, std, mean in (
                (fn_f, kinks_f, sample.std_u, sample.mean_u),
                (fn_g, kinks_g, sample.std_v, sample.mean_v),
            )
        ]
        size = (norms[0] * norms[1]).sqrt()
        rule = _settle(lambda rule: compute(sample, rule), size)
        inner = conditional
        if inner is not None:  # the closed conditional expectation may cancel, too
            gap = (compute(sample, rule, inner) - compute(sample, rule)).abs()
            inner = inner if bool((gap <= ERROR / 10 * size).all()) else None
        return compute(pair, rule, inner).to(pair.cov.dtype)

    return by_panels


def one_variable(f: Function | None) -> tuple[str, float, Callable[[Tensor, Tensor | None], Tensor]]:
    """Form, error and function of ``E f(u)``."""
    f = known(f)
    fn, points = pointwise(f), kinks(f)

    def compute(var: Tensor, mean: Tensor | None) -> Tensor:
        if not var.numel():
            return torch.zeros_like(var)
        wide, mean = var.double(), None if mean is None else mean.double().expand(var.shape)
        some = _extremes(wide if mean is None else wide + mean.square())
        part = wide.flatten()[some], None if mean is None else mean.flatten()[some]
        size = panels.one_variable(lambda x: fn(x).abs(), points, *part, panels.Rule())
        rule = _settle(lambda rule: panels.one_variable(fn, points, *part, rule), size)
        return panels.one_variable(fn, points, wide, mean, rule).to(var.dtype)

    return "quadrature: Gauss-Legendre panels", ERROR, compute


def _extremes(*sizes: Tensor) -> Tensor:
    """Indices of the smallest, the largest and some others of each."""
    chosen = []
    for size in sizes:
        order = size.flatten().argsort()
        chosen.append(order[torch.linspace(0, len(order) - 1, min(_SAMPLE, len(order))).long()])
    return torch.cat(chosen).unique()


def _settle(compute: Callable[[panels.Rule], Tensor], size: Tensor) -> panels.Rule:
    """The coarsest rule whose refinement changes nothing beyond the stated error."""
    rule = panels.Rule()
    value = compute(rule)
    for _ in range(_REFINEMENTS):
        finer = rule.finer()
        better = compute(finer)
        if not torch.isfinite(better).all():
            break
        if bool(((better - value).abs() <= ERROR * size + torch.finfo(torch.float64).tiny).all()):
            return rule
        rule, value = finer, better
    raise EvaluationError(
        "a Gaussian expectation of a nonlinearity does not settle under refinement of its quadrature",
        advice="its argument varies over a range where the function oscillates or grows too fast; "
        "use the particle evaluator, or smaller inputs",
    )


def known(f: Function | None) -> Function:
    """The function; UnsupportedOperationError if it is a measure."""
    if f is None:
        raise UnsupportedOperationError(
            "the expectation of a measure has no closed form here",
            advice="use the particle evaluator, or ask for fewer derivatives",
        )
    return f
