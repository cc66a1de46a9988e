"""Predictions with kernels against brute force, trained networks of finite width, and the compiled training run."""

from __future__ import annotations

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from test_kernel import scaled_mlp
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.errors import EvaluationError, UsageError


def data(n: int, d: int = 3, seed: int = 0) -> Tensor:
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


X, XS, Y = data(5), data(3, seed=1), data(5, 2, seed=2)


@pytest.fixture(scope="module")
def kernel() -> tp.Kernel:
    return tp.kernel(scaled_mlp(torch.tanh), torch.zeros(3))


class Tokens(nn.Module):
    """A network applied to each of three positions: outputs ``(N, 2 channels, 3 positions)``."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(n, 2))
        self.second = nn.Parameter(torch.randn(2, n))

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(x @ self.first.T)
        return (hidden @ self.second.T / hidden.shape[-1] ** 0.5).transpose(1, 2)


def positions_last(cov: Tensor, m: int) -> Tensor:
    """``(M, M, 3, 3)`` over positions of one channel as a matrix over (channel, position) of two channels."""
    own = torch.einsum("mnpq,cd->mcpndq", cov, torch.eye(2, dtype=cov.dtype))
    return own.reshape(m * 6, m * 6)


def test_posterior_is_the_conditional_gaussian(kernel: tp.Kernel) -> None:
    process = kernel.gp(X, Y, noise=0.1)
    found = process.predict(XS)
    inverse = torch.linalg.inv(kernel.nngp(X) + 0.1 * torch.eye(5))
    cross, prior = kernel.nngp(XS, X), kernel.nngp(XS)
    torch.testing.assert_close(found.mean, cross @ inverse @ Y)
    torch.testing.assert_close(found.covariance, prior - cross @ inverse @ cross.T)
    diagonal = process.predict(XS, "diagonal").covariance
    torch.testing.assert_close(diagonal, found.covariance.diagonal())
    law = torch.distributions.MultivariateNormal(torch.zeros(5).double(), kernel.nngp(X) + 0.1 * torch.eye(5))
    torch.testing.assert_close(process.log_marginal_likelihood(), law.log_prob(Y.T).sum())
    torch.testing.assert_close(kernel.gp(X, Y[:, 0], noise=0.1).predict(XS).mean, found.mean[:, 0])


def test_numpy_in_numpy_out(kernel: tp.Kernel) -> None:
    x, y, s = (v.numpy().astype(np.float32) for v in (X, Y, XS))
    for found, wanted in zip(kernel(x, s), kernel(X, XS), strict=True):
        assert isinstance(found, np.ndarray)
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    prediction = kernel.gradient_flow(x, y).predict(s, t=[1.0, math.inf])
    assert isinstance(prediction.mean, np.ndarray)
    assert isinstance(prediction.covariance, np.ndarray)
    assert prediction.mean.dtype == np.float32
    wanted = kernel.gradient_flow(X, Y).predict(XS, t=[1.0, math.inf])
    np.testing.assert_allclose(prediction.mean, wanted.mean, rtol=1e-3, atol=1e-4)
    assert isinstance(kernel.empirical(16, x, get="ntk"), np.ndarray)


def affine(kernel: tp.Kernel, step: float, count: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance after steps under MSE, by iterating the joint affine map of training and test outputs."""
    both = torch.cat([X, XS])
    theta, nngp = kernel.ntk(both)[:, :5], kernel.nngp(both)
    one = torch.eye(8, dtype=torch.float64)
    move = one - step * 2 / Y.numel() * theta @ one[:5]
    shift = step * 2 / Y.numel() * theta @ Y
    mean, spread = torch.zeros(8, 2, dtype=torch.float64), one
    for _ in range(count):
        mean, spread = move @ mean + shift, move @ spread
    return mean, spread @ nngp @ spread.T


def test_gradient_descent_is_the_iteration(kernel: tp.Kernel) -> None:
    training = kernel.gradient_descent(X, Y, lr=0.4)
    found = training.predict(XS, t=[0, 1, 7])
    assert found.mean.shape == (3, 3, 2)
    for i, steps in enumerate((0, 1, 7)):
        mean, covariance = affine(kernel, 0.4, steps)
        torch.testing.assert_close(found.mean[i], mean[5:], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(found.covariance[i], covariance[5:, 5:], rtol=1e-10, atol=1e-10)
        own = training.predict(t=steps, covariance="diagonal")
        torch.testing.assert_close(own.mean, mean[:5], rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(own.covariance, covariance.diagonal()[:5], rtol=1e-10, atol=1e-10)


def test_gradient_flow_is_the_limit_of_small_steps(kernel: tp.Kernel) -> None:
    flow = kernel.gradient_flow(X, Y).predict(XS, t=3.0)
    means, covariances = zip(*(affine(kernel, 3.0 / count, count) for count in (2000, 4000)), strict=True)
    torch.testing.assert_close(flow.mean, (2 * means[1] - means[0])[5:], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(flow.covariance, (2 * covariances[1] - covariances[0])[5:, 5:], rtol=1e-5, atol=1e-5)
    end, late = (kernel.gradient_flow(X, Y).predict(XS, t=t) for t in (math.inf, 1e9))
    torch.testing.assert_close(end.mean, late.mean)
    torch.testing.assert_close(end.covariance, late.covariance)
    torch.testing.assert_close(kernel.gradient_flow(X, Y).predict(t=math.inf).mean, Y)
    steps = kernel.gradient_descent(X, Y, lr=0.4).predict(XS, t=math.inf)
    torch.testing.assert_close(steps.mean, end.mean)


def test_repeated_inputs_learn_their_mean(kernel: tp.Kernel) -> None:
    x, y = X[:2].repeat(2, 1), Y[:4]
    for t in (math.inf, 1e6):
        found = kernel.gradient_flow(x, y).predict(t=t)
        torch.testing.assert_close(found.mean, ((y[:2] + y[2:]) / 2).repeat(2, 1), rtol=1e-6, atol=1e-6)


def test_any_loss_agrees_with_mse(kernel: tp.Kernel) -> None:
    def loss(f: Tensor, y: Tensor) -> Tensor:
        return (f - y).square().mean()

    t = [5.0, 0.0, 0.5]
    closed = kernel.gradient_flow(X, Y, output_init="zero").predict(XS, t)
    solved = kernel.gradient_flow(X, Y, loss=loss, output_init="zero", rtol=1e-9, atol=1e-10).predict(XS, t)
    torch.testing.assert_close(solved.mean, closed.mean, rtol=1e-6, atol=1e-7)
    assert not closed.covariance.any()
    assert not solved.covariance.any()
    closed = kernel.gradient_flow(X, Y).predict(XS, t)
    solved = kernel.gradient_flow(X, Y, loss=loss, draws=400, rtol=1e-4).predict(XS, t)
    assert bool(((solved.mean - closed.mean).abs() < 4.5 * solved.stderr).all())
    wanted = torch.einsum("tmn,kl->tmnkl", closed.covariance, torch.eye(2))
    scale = torch.einsum("tmm,tnn->tmn", closed.covariance, closed.covariance).sqrt()[..., None, None]
    assert float(((solved.covariance - wanted) / scale).abs().max()) < 5 * (2 / 400) ** 0.5
    diagonal = kernel.gradient_flow(X, Y, loss=loss, draws=400, rtol=1e-4).predict(XS, t, "diagonal").covariance
    own = solved.covariance.diagonal(dim1=1, dim2=2).diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(diagonal, own, rtol=1e-8, atol=1e-8)


def test_classes_by_gradient_descent_are_the_iteration(kernel: tp.Kernel) -> None:
    labels = torch.tensor([0, 1, 1, 0, 1])
    found = kernel.gradient_descent(X, labels, lr=0.7, loss=F.cross_entropy, output_init="zero").predict(XS, t=[3, 20])
    theta = kernel.ntk(torch.cat([X, XS]))[:, :5]
    f, wanted = torch.zeros(8, 2, dtype=torch.float64), []
    for step in range(21):
        if step in (3, 20):
            wanted.append(f[5:])
        g = f[:5].clone().requires_grad_()
        (slope,) = torch.autograd.grad(F.cross_entropy(g, labels), g)
        f = f - 0.7 * theta @ slope
    torch.testing.assert_close(found.mean, torch.stack(wanted), rtol=1e-10, atol=1e-10)


def test_positions_are_correlated_and_channels_are_not() -> None:
    kernel = tp.kernel(Tokens, torch.zeros(3, 2))
    x = data(4, 6).reshape(4, 3, 2)
    y = data(4, 6, seed=3).reshape(4, 2, 3)
    test = data(2, 6, seed=4).reshape(2, 3, 2)
    assert kernel.nngp(x).shape == (4, 4, 3, 3)
    inputs, outputs = x.reshape(12, 2), y.transpose(1, 2).reshape(12, 2)  # the network treats positions alike
    plain = tp.kernel(lambda n: nn.Sequential(Tokens(n), nn.Flatten()), torch.zeros(1, 2))
    for name in ("gp", "gradient_flow"):
        one, other = getattr(kernel, name)(x, y), getattr(plain, name)(inputs[:, None], outputs)
        found, wanted = one.predict(test), other.predict(test.reshape(6, 1, 2))
        torch.testing.assert_close(found.mean, wanted.mean.reshape(2, 3, 2).transpose(1, 2))
        split = wanted.covariance.reshape(2, 3, 2, 3).permute(0, 2, 1, 3)
        torch.testing.assert_close(found.covariance, split)
        diagonal = one.predict(test, covariance="diagonal").covariance
        torch.testing.assert_close(diagonal, wanted.covariance.diagonal().reshape(2, 3))
    closed = kernel.gradient_flow(x, y).predict(test, t=2.0)
    solved = kernel.gradient_flow(x, y, loss=lambda f, y: (f - y).square().mean(), draws=300).predict(test, t=2.0)
    assert bool(((solved.mean - closed.mean).abs() < 4.5 * solved.stderr).all())
    wanted = positions_last(closed.covariance, 2)
    found = solved.covariance.permute(0, 2, 1, 3).reshape(12, 12)
    scale = wanted.diagonal().outer(wanted.diagonal()).sqrt()
    assert float(((found - wanted) / scale).abs().max()) < 5 * (2 / 300) ** 0.5


def test_trained_networks_scatter_as_predicted(kernel: tp.Kernel) -> None:
    """An ensemble of wide networks, really trained: mean and variance of their test outputs."""
    width, draws, steps, lr = 256, 200, 10, 0.4
    make = scaled_mlp(torch.tanh)
    torch.manual_seed(0)
    models = [make(width) for _ in range(draws)]
    parameters, buffers = torch.func.stack_module_state(models)

    def outputs(p: dict[str, Tensor], x: Tensor) -> Tensor:
        return torch.func.functional_call(models[0], (p, buffers), (x,))

    slope = torch.vmap(torch.func.grad(lambda p: F.mse_loss(outputs(p, X.float()), Y.float())))
    parameters = {name: p.detach() for name, p in parameters.items()}
    for _ in range(steps):
        moved = slope(parameters)
        parameters = {name: p - lr * moved[name] for name, p in parameters.items()}
    found = torch.vmap(outputs, (0, None))(parameters, XS.float()).double()
    predicted = kernel.gradient_descent(X, Y, lr=lr).predict(XS, t=steps)
    variance = predicted.covariance.diagonal()[:, None]
    z = (found.mean(0) - predicted.mean) / (variance / draws).sqrt()
    assert float(z.abs().max()) < 4
    ratio = found.var(0) / variance
    assert float((ratio - 1).abs().max()) < 4 * (2 / draws) ** 0.5


def test_the_compiled_training_run_is_the_prediction() -> None:
    make = scaled_mlp(torch.tanh, k=1)
    compiled = tp.compile(make, X, Y[:, :1], F.mse_loss, lambda p: torch.optim.SGD(p, lr=0.3), steps=4, test_inputs=XS)
    result = compiled.evaluate(particles=4096, replicas=16, output_init="zero", seed=1)
    training = tp.kernel(make, torch.zeros(3)).gradient_descent(X, Y[:, :1], lr=0.3, output_init="zero")
    predicted = training.predict(XS, t=range(5), covariance=None)
    assert result.test_outputs is not None
    assert result.test_outputs_stderr is not None
    error = (predicted.mean - result.test_outputs).abs()
    assert float((error[1:] / result.test_outputs_stderr[1:]).max()) < 4.2  # 12 of Student's t, 15 degrees: 0.1 %
    assert float(error.max()) < 2e-3
    assert predicted.covariance is None


def test_finite_width_kernels(kernel: tp.Kernel) -> None:
    small, wide = kernel.empirical(64, X, XS), kernel.empirical(2048, X, XS)
    torch.testing.assert_close(wide.ntk, kernel.ntk(X, XS), rtol=0.1, atol=0.1)
    assert (small.ntk - kernel.ntk(X, XS)).norm() > (wide.ntk - kernel.ntk(X, XS)).norm()
    own = kernel.empirical(64, X, get="ntk", seed=3)
    torch.testing.assert_close(kernel.empirical(64, X, X[:2], get="ntk", seed=3), own[:, :2])
    many = kernel.empirical(128, X, get="nngp", draws=400)
    limit = kernel.nngp(X)
    scale = (limit.diagonal().outer(limit.diagonal()) + limit**2).sqrt()  # of one product of two outputs
    assert float(((many - limit) / scale).abs().max()) < 4.5 / (2 * 400) ** 0.5
    tokens = tp.kernel(Tokens, torch.zeros(3, 2))
    x = data(2, 6).reshape(2, 3, 2)
    found, limit = tokens.empirical(4096, x), tokens(x)
    assert found.nngp.shape == limit.nngp.shape == (2, 2, 3, 3)
    torch.testing.assert_close(found.ntk, limit.ntk, rtol=0.1, atol=0.1)


def test_units_of_the_width() -> None:
    def standard(n: int) -> nn.Module:
        layers = [nn.Linear(i, o, bias=False) for i, o in itertools.pairwise((3, n, n, 1))]
        for layer in layers:
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)
        return nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2])

    kernel = tp.kernel(standard, torch.zeros(3))
    assert (kernel.nngp_exponent, kernel.ntk_exponent) == (0, 1)
    torch.testing.assert_close(kernel.empirical(4096, X, get="ntk"), kernel.ntk(X), rtol=0.1, atol=0.02)

    def mup(n: int) -> nn.Module:
        model = standard(n)
        assert isinstance(model, nn.Sequential)
        nn.init.normal_(model[-1].weight, std=1 / n)  # type: ignore[arg-type]
        return model

    kernel = tp.kernel(mup, torch.zeros(3))
    with pytest.raises(UsageError, match=r"n\^\(-1/2\).*output_init='zero'"):
        kernel.gradient_flow(X, Y)
    kernel.gradient_flow(X, Y, output_init="zero").predict(XS, 1.0)


def test_hyperparameters_and_copies(kernel: tp.Kernel) -> None:
    assert kernel.variances == {f"{kind}.{i}": 1.0 for kind in ("weights", "biases") for i in range(3)}
    with pytest.raises(UsageError, match=r"did you mean 'weights\.1'"):
        kernel.nngp(X, variances={"weight.1": 2.0})
    assert copy.deepcopy(kernel) is kernel
    tokens = tp.kernel(Tokens, torch.zeros(3, 2))
    x = data(2, 6).reshape(2, 3, 2)
    assert torch.equal(pickle.loads(pickle.dumps(tokens)).nngp(x), tokens.nngp(x))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda k: k.gp(X, Y[:3]), "x_train of shape"),
        (lambda k: k.gp(X, Y, noise=-1.0), "noise"),
        (lambda k: k.gp(X, torch.arange(5)), "floating"),
        (lambda k: k.gp(X.tolist(), Y), "NumPy array"),
        (lambda k: k.gp(X, Y).predict(XS, "whole"), "covariance"),
        (lambda k: k.gp(X, Y).predict(XS[:, :2]), "shape"),
        (lambda k: k.gradient_flow(X, Y, loss="mae"), "loss"),
        (lambda k: k.gradient_flow(X, Y, lr=0.0), "lr"),
        (lambda k: k.gradient_flow(X, Y, output_init="one"), "output_init"),
        (lambda k: k.gradient_flow(X, Y).predict(XS, -1.0), "time"),
        (lambda k: k.gradient_descent(X, Y).predict(XS, 1.5), "integer"),
        (lambda k: k.gradient_descent(X, Y, lr=1e3).predict(XS), "does not converge"),
        (lambda k: k.gradient_flow(X, Y, loss=F.l1_loss).predict(XS), "infinite time"),
        (lambda k: k.gradient_flow(X, Y, loss=lambda f, y: f - y).predict(XS, 1.0), "scalar"),
        (lambda k: k.gradient_flow(X, Y, loss=F.l1_loss, method="none").predict(XS, 1.0), "method"),
        (lambda k: k.empirical(0, X), "width"),
    ],
)
def test_bad_use_is_named(kernel: tp.Kernel, call, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        call(kernel)


def test_a_singular_covariance_is_named(kernel: tp.Kernel) -> None:
    with pytest.raises(EvaluationError, match="noise"):
        kernel.gp(X[:1].repeat(3, 1), Y[:3]).predict(XS)
