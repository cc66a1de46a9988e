"""Exact evaluation with random outputs at initialisation: their law is carried as formal generators."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import stats
from torch import Tensor, nn
from zoo import mlp

import tpcompile as tp
from tpcompile.errors import UsageError

X = torch.tensor([[1.0, 0.5], [-0.5, 1.0]], dtype=torch.float64)
Y = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
RATE = 0.05
ONE, TARGET = X[:1], 0.3


def square(depth: int = 1, parametrization: str = "ntk", **options: Any):
    """Perceptrons of ``x^2 / 2``."""
    return mlp("square", depth, parametrization, d=2, lr=RATE, **options)


def quartic(f: Tensor, y: Tensor) -> Tensor:
    return ((f - y) ** 4).mean()


@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
def test_agree_with_particles(parametrization):
    compiled = tp.compile(square(1, parametrization), X, Y, F.mse_loss, steps=2, test_inputs=2 * X[:1])
    exact = compiled.evaluate()
    assert exact.evaluator == "exact"
    assert not exact.outputs_stderr.any()
    sampled = compiled.evaluate("particles", particles=8192, replicas=32)
    pairs: list[Any] = [
        (exact.outputs, sampled.outputs, sampled.outputs_stderr),
        (exact.test_outputs, sampled.test_outputs, sampled.test_outputs_stderr),
        (exact.loss, sampled.loss, sampled.loss_stderr),
        (exact.outputs_cov, sampled.outputs_cov, sampled.outputs_cov_stderr),
        (exact.test_outputs_cov, sampled.test_outputs_cov, sampled.test_outputs_cov_stderr),
    ]
    most = stats.t.ppf(1 - 0.01 / (2 * sum(e.numel() for e, _, _ in pairs)), df=31)
    for one, other, stderr in pairs:
        assert float(((one - other).abs() / (stderr + 1e-12)).max()) < most


def squared(s: Tensor) -> Tensor:
    """``E[phi phi']`` of phi = x^2 / 2 under the covariance s; that of the derivatives is s itself."""
    return (s.diagonal()[:, None] * s.diagonal() + 2 * s**2) / 4


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
def test_kernel_regime_in_closed_form(depth, parametrization):
    """Gradient descent moves a Gaussian function with covariance S by the fixed kernel K."""
    steps = 4
    result = tp.compile(square(depth, parametrization), X, Y, F.mse_loss, steps=steps).evaluate(evaluator="exact")
    s = X @ X.T
    k = s if parametrization == "ntk" else 0 * s  # the first layer's rate is too small in the standard one
    for _ in range(depth):
        k, s = squared(s) + s * k, squared(s)
    moved = torch.eye(2, dtype=torch.float64) - RATE * k  # 2/N = 1
    assert result.outputs_cov is not None
    for t in range(steps + 1):
        power = torch.linalg.matrix_power(moved, t)
        assert torch.allclose(result.outputs[t], Y - power @ Y, atol=1e-12)
        assert torch.allclose(result.outputs_cov[t], power @ s @ power.T, atol=1e-12)


@pytest.mark.parametrize("phi", ["linear", "square"])
def test_a_loss_of_fourth_degree(phi):
    """One input: ``f_1 = f_0 - 4 k (f_0 - y)^3`` with a normal f_0; no function of its covariance alone."""
    make = mlp(phi, 1, "ntk", d=2, lr=RATE)
    y = torch.full((1, 1), TARGET, dtype=torch.float64)
    compiled = tp.compile(make, ONE, y, quartic, steps=1)
    result = compiled.evaluate()
    assert result.evaluator == "exact"
    assert "polynomial" in result.why
    g = float((ONE @ ONE.T)[0, 0])
    s, k = (g, 2 * g * RATE) if phi == "linear" else (3 * g**2 / 4, 7 * g**2 / 4 * RATE)
    t, w = np.polynomial.hermite_e.hermegauss(12)
    points, weights = math.sqrt(s) * torch.tensor(t), torch.tensor(w / w.sum())
    after = points - 4 * k * (points - TARGET) ** 3
    mean = float(weights @ after)
    assert result.loss is not None
    assert result.outputs_cov is not None
    assert float(result.outputs[1]) == pytest.approx(mean, rel=1e-12)
    assert float(result.outputs_cov[1]) == pytest.approx(float(weights @ (after - mean) ** 2), rel=1e-12)
    assert float(result.loss[1]) == pytest.approx(float(weights @ (after - TARGET) ** 4), rel=1e-12)


class Shifted(nn.Module):
    """A random bias at the readout, which is a random number of finite size."""

    def __init__(self, n: int, uniform: bool) -> None:
        super().__init__()
        self.hidden = nn.Linear(2, n, bias=False, dtype=torch.float64)
        self.readout = nn.Linear(n, 1, dtype=torch.float64)
        nn.init.normal_(self.hidden.weight)
        nn.init.normal_(self.readout.weight, std=n**-0.5)
        if uniform:
            nn.init.uniform_(self.readout.bias, -1, 3)
        else:
            nn.init.normal_(self.readout.bias, mean=1.0, std=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.hidden(x) ** 2)


@pytest.mark.parametrize("uniform", [False, True])
def test_random_parameters_of_finite_size(uniform):
    result = tp.compile(lambda n: Shifted(n, uniform), X).evaluate(evaluator="exact")
    g = X @ X.T
    assert torch.allclose(result.outputs, torch.ones_like(result.outputs))
    variance = 16 / 12 if uniform else 0.25
    expected = g.diagonal()[:, None] * g.diagonal() + 2 * g**2 + variance
    assert result.outputs_cov is not None
    assert torch.allclose(result.outputs_cov[0], expected, atol=1e-12)


def test_finite_networks_have_this_mean_and_covariance():
    compiled = tp.compile(square(), X, Y, F.mse_loss, steps=1)
    limit = compiled.evaluate(evaluator="exact")
    found = torch.stack([compiled.simulate(512, seed).outputs[1, :, 0].double() for seed in range(400)])
    error = found.mean(0) - limit.outputs[1, :, 0]
    assert float((error.abs() / (found.std(0) / 20)).max()) < 3
    assert limit.outputs_cov is not None
    variance = limit.outputs_cov[1].diagonal()
    assert float(((found.var(0) / variance).log().abs() / math.sqrt(2 / 399)).max()) < 3


def test_what_has_no_exact_average_is_said():
    classes = tp.compile(square(k=3), X, torch.arange(2), F.cross_entropy, steps=1)
    with pytest.raises(UsageError, match="not a polynomial in the random outputs"):
        classes.evaluate(evaluator="exact")
    compiled = tp.compile(square(), X, Y, F.mse_loss, steps=1)
    assert compiled.evaluate(particles=256, replicas=2, ensemble=8).evaluator == "particles"
    zero = compiled.evaluate(output_init="zero")
    assert zero.evaluator == "exact"
    assert zero.outputs_cov is None
