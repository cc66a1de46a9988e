"""Kernels in scikit-learn and GPyTorch: gradients, optimisation, copies."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from test_kernel import scaled_mlp
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.errors import EvaluationError, MissingExtraError, UsageError
from tpcompile.kernels.hyperparameters import value_and_gradient


class Net(nn.Module):
    """Two hidden layers without multipliers on the first weights; importable, so that it can be pickled."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(n, 3))
        self.bias = nn.Parameter(0.5 * torch.randn(n))
        self.readout = nn.Parameter(torch.randn(1, n))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x @ self.first.T + self.bias) @ self.readout.T / self.readout.shape[1] ** 0.5


@pytest.fixture(scope="module")
def kernel() -> tp.Kernel:
    return tp.kernel(Net, torch.zeros(3))


def data(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_variances_replace_those_of_the_model() -> None:
    x = data(4)
    plain = tp.kernel(scaled_mlp(torch.relu, w=2.0, b=0.1), torch.zeros(3))
    other = tp.kernel(scaled_mlp(torch.relu, w=3.0, b=0.2), torch.zeros(3))
    scaled = {f"weights.{i}": 1.5 for i in range(3)} | {f"biases.{i}": 2.0 for i in range(3)}
    torch.testing.assert_close(plain.nngp(x, variances=scaled), other.nngp(x))


@pytest.mark.parametrize("get", ["nngp", "ntk"])
def test_gradients_are_differences(kernel: tp.Kernel, get: str) -> None:
    x = data(5)
    values = {"first": 1.3, "bias": 0.4, "readout": 0.7}
    matrix, gradient = value_and_gradient(kernel, x, get, values)
    torch.testing.assert_close(matrix, kernel(x, None, get, variances=values))
    for i, name in enumerate(values):
        high, low = (kernel(x, None, get, variances=values | {name: values[name] * math.exp(e)}) for e in (1e-5, -1e-5))
        torch.testing.assert_close(gradient[..., i], (high - low) / 2e-5, rtol=1e-6, atol=1e-6)


class Truncated(nn.Module):
    """First weights of a normal law that is cut off: expectations are sampled."""

    def __init__(self, n: int, function: Callable[[Tensor], Tensor] = torch.tanh, scale: float = 1.0) -> None:
        super().__init__()
        self.function = function
        self.first = nn.Parameter(scale * nn.init.trunc_normal_(torch.empty(n, 3), a=-1, b=1))
        self.second, self.readout = nn.Parameter(torch.randn(n, n)), nn.Parameter(torch.randn(1, n))

    def forward(self, x: Tensor) -> Tensor:
        n = self.second.shape[0]
        x = self.function(x @ self.first.T)
        return self.function(x + x @ self.second.T * n**-0.5) @ self.readout.T * n**-0.5


def test_variances_of_sampled_expectations() -> None:
    x = data(4)
    x = torch.cat([x, x[:1]])  # coincident inputs: equal eigenvalues of the covariance that is drawn from
    plain = tp.kernel(Truncated, torch.zeros(3))
    variance = 1 - 2 * math.exp(-0.5) / math.sqrt(2 * math.pi) / math.erf(0.5**0.5)
    assert plain.variances["first"] == pytest.approx(variance)
    wide = tp.kernel(lambda n: Truncated(n, scale=2.0), torch.zeros(3))
    options: dict[str, Any] = {"samples": 1024, "replicas": 1}
    torch.testing.assert_close(plain.nngp(x, variances={"first": 4 * variance}, **options), wide.nngp(x, **options))
    values = {"first": 0.5, "second": 0.8, "readout": 1.2}
    errors = []
    for seed in range(8):

        def call(x: Tensor, x2: Tensor | None, get: str, seed: int = seed, **given: Any) -> Tensor:
            return plain(x, x2, get, seed=seed, **given, **options)

        _, gradient = value_and_gradient(call, x, "nngp", values)  # type: ignore[arg-type]
        slopes = []
        for name in values:
            changed = (values | {name: values[name] * math.exp(e)} for e in (1e-3, -1e-3))
            high, low = (call(x, None, "nngp", variances=v) for v in changed)
            slopes.append((high - low) / 2e-3)
        errors.append(gradient - torch.stack(slopes, -1))
    found = torch.stack(errors)
    assert float(found[..., 1:].abs().max()) < 1e-6
    # the first variance turns the eigenvectors that are drawn with: equal in the mean only (Student's t, 7 degrees)
    noise = found[..., 0].std(0) / 8**0.5
    assert float((found[..., 0].mean(0) / noise).abs().max()) < 6
    assert float(noise.max()) < 0.01 * float(plain.nngp(x).max())
    kinked = tp.kernel(lambda n: Truncated(n, torch.relu), torch.zeros(3))
    value = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    assert kinked.nngp(x, variances={"first": value}, **options).requires_grad
    with pytest.raises(EvaluationError, match="jump of a derivative of 'relu'"):
        kinked.ntk(x, variances={"first": value}, **options)


def test_scikit_learn(kernel: tp.Kernel) -> None:
    pytest.importorskip("sklearn")
    from sklearn.base import clone
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import WhiteKernel

    x, test = data(20).numpy(), data(4, 1).numpy()
    y = np.sin(x[:, 0]) + 0.5 * x[:, 1]
    own = kernel.sklearn()
    assert own.values == pytest.approx({"first": 1.0, "bias": 0.25, "readout": 1.0})
    np.testing.assert_allclose(own(x), kernel.nngp(x), rtol=1e-9)
    np.testing.assert_allclose(own(x, test), kernel.nngp(x, test), rtol=1e-9)
    np.testing.assert_allclose(own.diag(x), np.diag(own(x)), rtol=1e-9)
    untrained: Any = GaussianProcessRegressor(own, alpha=0.1, optimizer=None)  # type: ignore[arg-type]
    fixed = untrained.fit(x, y)
    mean, covariance = fixed.predict(test, return_cov=True)
    posterior = kernel.gp(x, y, noise=0.1).predict(test)
    np.testing.assert_allclose(mean, posterior.mean, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(covariance, posterior.covariance, rtol=1e-6, atol=1e-8)
    likelihood = kernel.gp(x, y, noise=0.1).log_marginal_likelihood()
    assert fixed.log_marginal_likelihood_value_ == pytest.approx(float(likelihood), rel=1e-8)

    free: Any = GaussianProcessRegressor(own + WhiteKernel(0.1), random_state=0)
    found = free.fit(x, y)
    assert found.log_marginal_likelihood_value_ > fixed.log_marginal_likelihood_value_ + 1
    _, slope = found.log_marginal_likelihood(found.kernel_.theta, eval_gradient=True)
    inside = np.abs(found.kernel_.theta - found.kernel_.bounds.T).min(0) > 1e-6
    assert np.abs(slope[inside]).max() < 1e-2
    copy: Any = clone(found.kernel_)
    np.testing.assert_array_equal(copy.theta, found.kernel_.theta)
    back = pickle.loads(pickle.dumps(found))
    np.testing.assert_allclose(back.predict(test), found.predict(test))
    assert "first=" in repr(found.kernel_)


def test_scikit_learn_arguments(kernel: tp.Kernel) -> None:
    pytest.importorskip("sklearn")
    part = kernel.sklearn("ntk", {"readout": 2.0})
    assert part.theta == pytest.approx([math.log(2.0)])
    part.theta = np.array([0.0])
    assert part.values == {"readout": 1.0}
    x = data(4).numpy()
    np.testing.assert_allclose(part(x), kernel.ntk(x))
    fixed = kernel.sklearn(bounds="fixed")
    assert fixed.theta.size == fixed.bounds.size == 0
    assert fixed(x, eval_gradient=True)[1].shape == (4, 4, 0)
    assert fixed.set_params(get="ntk").get == "ntk"
    for wrong, words in (({"last": 1.0}, "last"), ({"readout": 0.0}, "positive")):
        with pytest.raises(UsageError, match=words):
            kernel.sklearn(variances=wrong)
    with pytest.raises(UsageError, match="rows of 3"):
        part(x[:, :2])
    with pytest.raises(UsageError, match="get"):
        kernel.sklearn("both")


def test_gpytorch(kernel: tp.Kernel) -> None:
    gpytorch = pytest.importorskip("gpytorch")
    x, test = data(20), data(4, 1)
    y = torch.sin(x[:, 0]) + 0.5 * x[:, 1]

    class Model(gpytorch.models.ExactGP):
        def __init__(self, likelihood) -> None:
            super().__init__(x, y, likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            self.covar_module = kernel.gpytorch()

        def forward(self, inputs: Tensor):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(inputs), self.covar_module(inputs))

    likelihood = gpytorch.likelihoods.GaussianLikelihood()
    model = Model(likelihood).double()
    likelihood.noise = 0.1
    own = model.covar_module
    assert {name: v.item() for name, v in own.variances.items()} == pytest.approx(kernel.variances)
    torch.testing.assert_close(own(x).to_dense(), kernel.nngp(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own(x, test, diag=False).to_dense(), kernel.nngp(x, test), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own(x, diag=True), kernel.nngp(x, diagonal=True), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(own(x[:4], test, diag=True), kernel.nngp(x[:4], test).diagonal(), rtol=1e-6, atol=1e-6)
    assert own(x.reshape(2, 10, 3)).to_dense().shape == (2, 10, 10)

    model.train()
    exact = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    before = exact(model(x), y).item()
    expected = kernel.gp(x, y, noise=float(likelihood.noise)).log_marginal_likelihood() / len(x)
    assert before == pytest.approx(float(expected), rel=1e-4)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(15):
        optimizer.zero_grad()
        (-exact(model(x), y)).backward()
        optimizer.step()
    assert exact(model(x), y).item() > before + 0.1
    assert float(own.variances["readout"]) != pytest.approx(1.0, abs=1e-3)
    model.eval()
    likelihood.eval()
    with torch.no_grad():
        predicted = model(test)
    noise, values = float(likelihood.noise), {name: v.item() for name, v in own.variances.items()}
    k_tt = kernel.nngp(x, variances=values) + noise * torch.eye(20, dtype=torch.float64)
    wanted = kernel.nngp(test, x, variances=values) @ torch.linalg.solve(k_tt, y)
    torch.testing.assert_close(predicted.mean, wanted, rtol=1e-3, atol=1e-4)


def test_missing_packages_are_named(kernel: tp.Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name, module, call in (
        ("sklearn.gaussian_process.kernels", "tpcompile.kernels.sklearn_kernel", kernel.sklearn),
        ("gpytorch.kernels", "tpcompile.kernels.gpytorch_kernel", kernel.gpytorch),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.delitem(sys.modules, module, raising=False)
        with pytest.raises(MissingExtraError, match=r"pip install 'tpcompile\[(sklearn|gpytorch)\]'"):
            call()
