"""Dual activations: closed forms against quadrature, against formulas by hand, and at the edges."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from closed_forms import dual as by_hand
from torch import Tensor

from tpcompile.evaluate.duals import Factor, Function, Pair, dual, numeric

POINTS = ((1.3, 0.7, 0.5), (2.0, 3.0, -0.8), (0.5, 0.5, 0.9999), (1.0, 1.0, 1.0), (1.0, 2.0, -1.0), (1e-4, 9.0, 0.3))
"""Variances and correlation."""


def factor(*parts: tuple[str, int]) -> Factor:
    return Factor(tuple((name, order, ()) for name, order in parts))


def t(x: float) -> Tensor:
    return torch.tensor([[x]], dtype=torch.float64)


FUNCTIONS = {
    "linear": factor(("linear", 0)),
    "relu": factor(("relu", 0)),
    "relu'": factor(("relu", 1)),
    "relu^2": factor(("relu", 0), ("relu", 0)),
    "leaky_relu": factor(("leaky_relu", 0)),
    "abs": factor(("abs", 0)),
    "sign": factor(("sign", 0)),
    "erf": factor(("erf", 0)),
    "erf'": factor(("erf", 1)),
    "erf relu": factor(("erf", 0), ("relu", 0)),
    "gelu": factor(("gelu", 0)),
    "gelu'": factor(("gelu", 1)),
    "sin": factor(("sin", 0)),
    "x cos": factor(("linear", 0), ("cos", 0)),
    "hardtanh": factor(("hardtanh", 0)),
    "hardswish": factor(("hardswish", 0)),
    "softshrink": factor(("softshrink", 0)),
    "elu": factor(("elu", 0)),
    "elu'": factor(("elu", 1)),
    "x^2": factor(("square", 0)),
}


@pytest.mark.parametrize(("f", "g"), list(itertools.combinations_with_replacement(FUNCTIONS, 2)))
def test_closed_forms_agree_with_quadrature(f: str, g: str) -> None:
    a, b = FUNCTIONS[f], FUNCTIONS[g]
    how = dual(a, b)
    if how.error is not None:
        pytest.skip("not closed")
    for var_u, var_v, rho in POINTS[:: 1 if f == g else 2]:
        cov = rho * math.sqrt(var_u * var_v)
        value = how(t(cov), t(var_u), t(var_v)).item()
        reference = numeric.two_variables(a, b)[2](Pair(t(cov), t(var_u), t(var_v))).item()
        size = math.sqrt(dual(a, a).diagonal(t(var_u)).item() * dual(b, b).diagonal(t(var_v)).item())
        assert value == pytest.approx(reference, abs=2e-12 * size + 1e-300)


@pytest.mark.parametrize("name", ["relu", "erf"])
def test_matrices_agree_with_the_formulas_of_the_literature(name: str) -> None:
    x = torch.randn(30, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cov = x @ x.T
    var = cov.diagonal()
    for order, expected in enumerate(by_hand(name, cov)):
        how = dual(factor((name, order)), factor((name, order)))
        off = ~torch.eye(30, dtype=torch.bool)
        torch.testing.assert_close(how(cov, var[:, None], var[None])[off], expected[off], rtol=0, atol=1e-13)
        torch.testing.assert_close(how.diagonal(var), expected.diagonal(), rtol=0, atol=2e-8)


@pytest.mark.parametrize("name", ["tanh", "silu", "softplus", "sigmoid"])
def test_series_is_accurate_on_the_diagonal(name: str) -> None:
    x = torch.randn(40, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    cov = x @ x.T / 4
    var = cov.diagonal()
    function: Function = factor((name, 0))
    how = dual(function, function)
    assert how.error == numeric.ERROR
    value = how(cov, var[:, None], var[None])
    torch.testing.assert_close(value.diagonal(), how.diagonal(var), rtol=2e-12, atol=0)
    torch.testing.assert_close(value, value.T, rtol=0, atol=1e-14)
