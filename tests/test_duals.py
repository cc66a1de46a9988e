"""Dual activations: closed forms against quadrature, against formulas by hand, and at the edges."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from closed_forms import dual as by_hand
from torch import Tensor

from tpcompile.errors import EvaluationError, UnsupportedOperationError
from tpcompile.evaluate.duals import Factor, Function, Pair, dual, integral, numeric

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
    if how.form.startswith("quadrature"):
        pytest.skip("not closed")
    for var_u, var_v, rho in POINTS[:: 1 if f == g else 3]:
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


@pytest.mark.parametrize("name", ["relu", "heaviside", "erf", "gelu", "sin", "hardtanh", "elu", "tanh"])
def test_derivatives_are_right_and_finite_at_coincident_inputs(name: str) -> None:
    how = dual(factor((name, 0)), factor((name, 0)))
    cov = torch.tensor([[0.5, -0.3]], dtype=torch.float64, requires_grad=True)
    var_u = torch.tensor([[1.3]], dtype=torch.float64, requires_grad=True)
    var_v = torch.tensor([[0.7, 2.0]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(how, (cov, var_u, var_v))
    assert torch.autograd.gradcheck(how.diagonal, (var_v,))
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    x = torch.cat([x, x[:1], -x[:1], torch.zeros(1, 4)]).requires_grad_()
    var = x.square().sum(1)
    value = how(x @ x.T, var[:, None], var[None])
    assert torch.isfinite(value).all()
    assert torch.isfinite(torch.autograd.grad(value.sum(), x)[0]).all()


def test_means_and_second_derivatives() -> None:
    how = dual(factor(("erf", 0)), factor(("relu", 0)))
    inputs = [torch.tensor([[x]], dtype=torch.float64, requires_grad=True) for x in (0.4, 1.1, 0.9, 0.3, -0.2)]
    assert torch.autograd.gradcheck(how, inputs)
    smooth = dual(factor(("gelu", 0)), factor(("erf", 0)))
    assert torch.autograd.gradgradcheck(smooth, inputs[:3])
    kinked = dual(factor(("heaviside", 0)), factor(("heaviside", 0)))
    (slope,) = torch.autograd.grad(kinked(*inputs[:3]), inputs[0], create_graph=True)
    with pytest.raises(UnsupportedOperationError, match="infinite at a kink"):
        torch.autograd.grad(slope, inputs[1])


@pytest.mark.parametrize("name", ["relu", "erf", "gelu", "tanh", "hardtanh", "elu", "softplus"])
@pytest.mark.parametrize("exponent", [-16, -8, 4, 16])
def test_extreme_variances(name: str, exponent: int) -> None:
    if (name, exponent) == ("hardtanh", 16):
        exponent = 6  # beyond, only panels are right, at milliseconds a pair
    how = dual(factor((name, 0)), factor((name, 0)))
    var = 10.0**exponent * torch.tensor([1.0, 1.0, 0.5], dtype=torch.float64)
    cov = 10.0**exponent * torch.tensor([[1.0, 1.0, 0.3], [1.0, 1.0, 0.3], [0.3, 0.3, 0.5]], dtype=torch.float64)
    value, diagonal = how(cov, var[:, None], var[None]), how.diagonal(var)
    # erf is a step at 1e16: what the covariance's own rounding leaves of a correlation of one is its square root
    torch.testing.assert_close(value.diagonal(), diagonal, rtol=2e-8 if exponent == 16 else 1e-10, atol=0)
    assert torch.linalg.eigvalsh(value / diagonal.max()).min() > -2e-8
    limit = {"relu": "relu", "gelu": "relu", "elu": "relu", "softplus": "relu"}.get(name, "sign")
    if exponent == 16:
        expected = dual(factor((limit, 0)), factor((limit, 0)))(cov, var[:, None], var[None])
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)


def test_zero_variance_is_zero_or_independence() -> None:
    zero, one = t(0.0), t(1.0)
    for name, expected in (("relu", 0.0), ("erf", 0.0), ("tanh", 0.0), ("sigmoid", 0.25), ("heaviside", 0.25)):
        how = dual(factor((name, 0)), factor((name, 0)))
        assert how(zero, zero, zero).item() == pytest.approx(expected, abs=1e-14)
        assert math.isfinite(how(zero, zero, one).item())
    step = dual(factor(("heaviside", 0)), factor(("heaviside", 0)))
    assert step.diagonal(t(0.3)).item() == 0.5


def test_integral_of_three_variables_and_of_kinks() -> None:
    x = torch.randn(3, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    cov = x @ x.T / 3
    value, error = integral(lambda a, b, c: a * b * c.square(), cov)
    assert error < 1e-10
    expected = cov[0, 1] * cov[2, 2] + 2 * cov[0, 2] * cov[1, 2]
    assert value.item() == pytest.approx(expected.item(), rel=1e-12)
    value, error = integral(lambda a, b: torch.relu(a) * torch.relu(b), cov[:2, :2], kinks=((0.0,), (0.0,)))
    how = dual(factor(("relu", 0)), factor(("relu", 0)))
    assert value.item() == pytest.approx(how(*(c.reshape(1, 1) for c in cov[[0, 0, 1], [1, 0, 1]])).item(), abs=1e-9)


def test_what_does_not_settle_is_an_error() -> None:
    wave = factor(("sin", 0), ("tanh", 0))
    with pytest.raises(EvaluationError, match="does not settle"):
        dual(wave, wave).diagonal(t(1e8))
