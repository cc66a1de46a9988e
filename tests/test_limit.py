"""The limit against closed forms and exact statements; agreement with finite widths is in test_convergence.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from closed_forms import hidden_layer_by_quadrature, linear_by_hand, ntk_recursion
from finite_width import Setup, deviation
from scipy import stats
from torch import Tensor, nn
from zoo import ABC, ACTIVATIONS, PARAMETRIZATIONS, cases, data, mlp

import tpcompile as tp
from tpcompile.results import LimitResult
from tpcompile.statistics import bonferroni_threshold, normal_score

X, Y = data()


@pytest.fixture(autouse=True)
def _one_thread():
    """The tensors are small: threads only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def limit(make, x=X, y=Y, steps=5, loss=F.mse_loss, particles=2048, replicas=4, **options) -> LimitResult:
    return tp.compile(make, x, y, loss, steps=steps).evaluate(particles=particles, replicas=replicas, **options)


def close(a: Tensor, b: Tensor, tolerance: float) -> bool:
    """Equal to rounding: relative to the largest entry."""
    return float((a - b).abs().max()) <= tolerance * float(b.abs().max())


def within_errors(found: Tensor, error: Tensor, wanted: Tensor, dof: int, level: float = 1e-3) -> bool:
    """Every entry within its standard error: Student's t, Bonferroni over the entries."""
    scale = float(wanted.abs().max())
    used = (found - wanted).abs() > 1e-9 * scale
    z = normal_score(((found - wanted) / error)[used], torch.tensor(float(dof)))
    return bool((z.abs() < bonferroni_threshold(found.numel(), level)).all())


# exact networks ------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9}, {"weight_decay": 0.2, "momentum": 0.5, "nesterov": True}], ids=str
)
def test_deep_linear_networks_have_no_sampling_error(depth, options):
    compiled = tp.compile(mlp("linear", depth, lr=0.05, **options), X, Y, F.mse_loss, steps=5)
    a, b = (compiled.evaluate(particles=1024, replicas=2, seed=s, evaluator="particles") for s in (0, 1))
    assert a.loss is not None
    assert float(a.loss[0] - a.loss[-1]) > 0.2
    assert close(a.outputs, b.outputs, 1e-10)
    for name in compiled.activations:
        assert close(a.feature_kernel(name), b.feature_kernel(name), 1e-10)


@pytest.mark.parametrize("depth", [1, 3])
def test_linear_kernel_regime_has_no_sampling_error(depth):
    compiled = tp.compile(mlp("linear", depth, "ntk", lr=0.05), X, Y, F.mse_loss, steps=5)
    a, b = (
        compiled.evaluate(particles=1024, replicas=2, seed=s, evaluator="particles", output_init="zero") for s in (0, 1)
    )
    assert close(a.outputs, b.outputs, 1e-10)
    tangent = (depth + 1) * 0.05 * X @ X.T
    assert close(a.ntk()[0], tangent, 1e-10)


@pytest.mark.parametrize("options", [{}, {"momentum": 0.7, "weight_decay": 0.3}], ids=str)
def test_one_hidden_linear_layer_by_hand(options):
    outputs, kernels = linear_by_hand(X, Y, 5, lr=0.1, **options)
    found = limit(mlp("linear", 1, lr=0.1, **options))
    assert close(found.outputs, outputs, 1e-10)
    assert close(found.feature_kernel("0"), kernels, 1e-10)


@pytest.mark.parametrize("phi", ["erf", "tanh"])
@pytest.mark.parametrize("parametrization", ["mup", "mean field"])
def test_one_hidden_layer_by_quadrature(phi, parametrization):
    x, y = data(3, 2, seed=1)
    f = getattr(torch, phi)
    outputs, kernels = hidden_layer_by_quadrature(f, x, y, 5, lr=0.5, nodes=64)
    coarse, _ = hidden_layer_by_quadrature(f, x, y, 5, lr=0.5, nodes=48)
    found = limit(mlp(phi, 1, parametrization, d=2, lr=0.5), x, y, particles=8192, replicas=8)
    quadrature = float((coarse - outputs).abs().max())
    assert quadrature < 0.2 * float(found.outputs_stderr[1:].min())
    assert float((outputs[5] - outputs[0]).abs().max()) > 0.3
    assert within_errors(found.outputs, found.outputs_stderr, outputs, 7)
    assert within_errors(found.feature_kernel("1"), found.feature_kernel_stderr("1"), kernels, 7)


# kernels at initialisation -------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("phi", ["relu", "erf"])
def test_kernels_at_initialisation(phi, depth):
    kernels, tangent = ntk_recursion(phi, depth, X)
    compiled = tp.compile(mlp(phi, depth, "ntk", lr=0.1), X, Y, F.mse_loss, steps=1)
    found = compiled.evaluate(particles=8192, replicas=8, output_init="zero")
    for i, kernel in enumerate(kernels):
        name = str(2 * i + 1)
        assert within_errors(found.feature_kernel(name)[0], found.feature_kernel_stderr(name)[0], kernel, 7)
        assert close(found.feature_kernel(name)[0], kernel, 5e-3)
    assert within_errors(found.ntk()[0], found.ntk_stderr()[0], 0.1 * tangent, 7)
    assert close(found.ntk()[0], 0.1 * tangent, 5e-3)


@pytest.mark.parametrize("parametrization", ["mup", "ntk"])
def test_first_kernels_do_not_depend_on_the_parametrization(parametrization):
    kernels, _ = ntk_recursion("relu", 2, X)
    found = tp.compile(mlp("relu", 2, parametrization), X).evaluate(particles=8192, replicas=8)
    assert within_errors(found.feature_kernel("3")[0], found.feature_kernel_stderr("3")[0], kernels[1], 7)


@pytest.mark.parametrize("phi", ["relu", "erf"])
def test_kernel_regime_is_linear_in_the_tangent_kernel(phi):
    found = limit(mlp(phi, 2, "ntk", lr=0.3), particles=8192, replicas=8, output_init="zero")
    kernel, f = found.ntk()[0], torch.zeros_like(Y)
    assert close(found.ntk()[5], kernel, 1e-12)
    outputs = [f]
    for _ in range(5):
        f = f - kernel @ (2 / len(Y) * (f - Y))
        outputs.append(f)
    assert float((outputs[5] - outputs[0]).abs().max()) > 0.5
    # both sides are estimates: one step of the flow carries the kernel's error over to the outputs
    error = float(found.outputs_stderr.max()) + float(found.ntk_stderr().max())
    assert error < 5e-3
    assert close(found.outputs, torch.stack(outputs), 4 * error)
    assert within_errors(found.outputs, found.outputs_stderr, torch.stack(outputs), 7)


# invariances ---------------------------------------------------------------------------------


def abc(parametrization: str, theta: float, phi: str = "tanh", depth: int = 2, lr: float = 0.3, **sgd):
    """The symmetry of SGD: (a, b, c) -> (a + theta, b - theta, c - 2 theta) in every layer."""
    first, hidden, last, c = PARAMETRIZATIONS[parametrization]

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate([first] + [hidden] * (depth - 1)):
            layers += [ABC(n, 4 if i == 0 else n, n, a + theta, b - theta), ACTIVATIONS[phi]()]
        model = nn.Sequential(*layers, ABC(n, n, 1, last[0] + theta, last[1] - theta))
        return model, torch.optim.SGD(model.parameters(), lr=lr * n ** (2 * theta - c), **sgd)

    return make


@pytest.mark.parametrize("theta", [0.5, -0.5, 0.25])
@pytest.mark.parametrize(
    ("parametrization", "depth", "options"),
    [("mup", 2, {"momentum": 0.9}), ("mup", 1, {}), ("ntk", 2, {}), ("mean field", 1, {}), ("standard", 2, {})],
)
def test_symmetry_of_abc_parametrizations(parametrization, depth, options, theta):
    a, b = (
        limit(abc(parametrization, t, depth=depth, **options), steps=4, particles=1024, output_init="zero")
        for t in (0.0, theta)
    )
    assert close(b.outputs, a.outputs, 1e-10)
    for name in a.activations:
        assert close(b.feature_kernel(name), a.feature_kernel(name), 1e-10)


def test_mup_and_mean_field_are_the_same_limit_of_one_hidden_layer():
    a, b = (limit(mlp("relu", 1, p, lr=0.3), particles=1024) for p in ("mup", "mean field"))
    assert float(a.outputs[-1].abs().max()) > 0.3
    assert close(b.outputs, a.outputs, 1e-10)
    assert close(b.feature_kernel("1"), a.feature_kernel("1"), 1e-10)


def test_permuting_inputs_permutes_outputs():
    order = torch.tensor([2, 0, 1])
    a = limit(mlp("tanh", 2), particles=4096, replicas=8)
    b = limit(mlp("tanh", 2), X[order], Y[order], particles=4096, replicas=8, seed=1)
    error = (a.outputs_stderr[:, order].square() + b.outputs_stderr.square()).sqrt()
    assert float(error.max()) < 5e-3
    assert within_errors(a.outputs[:, order], error, b.outputs, 14)


def test_one_class_more_is_no_change_of_the_others():
    """A readout whose outputs share the hidden layer: a zero target of an unused output leaves the others alone."""
    a = limit(mlp("tanh", 2, k=1), loss=lambda f, y: ((f - y) ** 2).sum() / 3, particles=4096, replicas=8)
    b = limit(
        mlp("tanh", 2, k=2), y=Y, loss=lambda f, y: ((f[:, :1] - y) ** 2).sum() / 3, particles=4096, replicas=8, seed=1
    )
    error = (a.outputs_stderr.square() + b.outputs_stderr[..., :1].square()).sqrt()
    assert within_errors(b.outputs[..., :1], error, a.outputs, 14)


# the estimate itself -------------------------------------------------------------------------


def test_a_seed_decides_every_bit():
    compiled = tp.compile(mlp("relu", 2, lr=0.3), X, Y, F.mse_loss, steps=3)
    a, b, c = (compiled.evaluate(particles=1024, seed=s) for s in (3, 3, 4))
    assert torch.equal(a.outputs, b.outputs)
    assert torch.equal(a.feature_kernel("3"), b.feature_kernel("3"))
    assert not torch.equal(a.outputs, c.outputs)
    again = tp.compile(mlp("relu", 2, lr=0.3), X, Y, F.mse_loss, steps=3).evaluate(particles=1024, seed=3)
    assert torch.equal(a.outputs, again.outputs)


@pytest.mark.parametrize(("phi", "parametrization"), [("tanh", "mup"), ("relu", "ntk")])
def test_standard_errors_are_honest(phi, parametrization):
    """Over 20 seeds the spread of the 4-replica mean is the reported error: F tests, 19 and 60 degrees of freedom."""
    compiled = tp.compile(mlp(phi, 2, parametrization, lr=0.3), X, Y, F.mse_loss, steps=3)
    runs = [compiled.evaluate(particles=1024, replicas=4, seed=s, output_init="zero") for s in range(20)]
    pairs = [[(r.outputs[-1, i, 0], r.outputs_stderr[-1, i, 0]) for r in runs] for i in range(3)]
    pairs.append([(r.feature_kernel("3")[-1, 0, 1], r.feature_kernel_stderr("3")[-1, 0, 1]) for r in runs])
    for pair in pairs:
        means, errors = (torch.stack(v) for v in zip(*pair, strict=True))
        ratio = float(means.var() / errors.square().mean())
        low, high = stats.f.ppf([1e-3, 1 - 1e-3], 19, 60)
        assert low < ratio < high


def test_float32_is_close_to_float64():
    compiled = tp.compile(mlp("tanh", 3), X, Y, F.mse_loss, steps=3)
    a, b = (compiled.evaluate(particles=2048, dtype=d) for d in (torch.float64, torch.float32))
    assert close(b.outputs.double(), a.outputs, 1e-3)
    assert not torch.equal(b.outputs.double(), a.outputs)


# the simulator of the slow tests --------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["ntk", "nesterov", "dampening", "minibatches", "recurrent", "tied", "widths", "cross entropy"]
)
def test_fast_simulator_is_the_real_one(name):
    case = cases()[name]
    compiled = tp.compile(case.make, case.inputs, case.targets, case.loss, steps=case.steps)
    start = "zero" if name == "ntk" else None
    assert case.loss is not None
    setup = Setup(case.make, case.inputs, case.targets, case.loss, case.steps, start)
    assert deviation(setup, 32, 0, compiled.activations, torch.float64) < 1e-12
    assert deviation(setup, 32, 0, compiled.activations, torch.float32) < 1e-4


class Normalised(nn.Module):
    """Divided by the Frobenius norm of a growing matrix of entries of variance 1/(4n)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.5 * torch.randn(2 * n, n) / n**0.5)
        self.scale = n**-0.5

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.weight.norm() * self.scale)


def test_norm_of_an_initial_matrix():
    x = torch.tensor([[1.0, -2.0], [0.5, 3.0]])
    found = tp.compile(Normalised, x).evaluate().outputs[0]
    torch.testing.assert_close(found, x.double() * 0.5**0.5, rtol=1e-6, atol=0)
