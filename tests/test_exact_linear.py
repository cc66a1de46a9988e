"""The exact evaluator on linear programs: against the particles, which are exact there up to rounding, and by hand."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import ABC, PARAMETRIZATIONS, Recurrent, Tied, data, mlp

import tpcompile as tp
from tpcompile.compiled import Compiled
from tpcompile.errors import UsageError
from tpcompile.evaluate.exact.degrees import coefficients, degrees
from tpcompile.evaluate.exact.generators import Generators, form_covariance
from tpcompile.results import LimitResult
from tpcompile.statistics import bonferroni_threshold, normal_score

X, Y = data()


class Mixed(nn.Module):
    """Uniform and constant initial values, a bias with a mean, a skip connection, two ways to read out."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.inp = nn.Linear(4, n)
        nn.init.uniform_(self.inp.weight, -1.0, 1.0)
        nn.init.normal_(self.inp.bias, mean=0.3, std=0.5)
        self.hidden = nn.Linear(n, 2 * n, bias=False)
        nn.init.uniform_(self.hidden.weight, -1 / math.sqrt(n), 1 / math.sqrt(n))
        self.shift = nn.Parameter(torch.full((2 * n,), 0.2))
        self.back = nn.Linear(2 * n, n, bias=False)
        nn.init.trunc_normal_(self.back.weight, std=1 / math.sqrt(n), a=-2 / math.sqrt(n), b=2 / math.sqrt(n))
        self.out = ABC(n, n, 2, 0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x)
        h = h + self.back(0.5 * self.hidden(h) + self.shift - 1.0)
        return self.out(h) + h.mean(-1, keepdim=True)


class LinearRecurrent(Recurrent):
    def forward(self, x: Tensor) -> Tensor:
        h = self.inp(x[:, 0])
        for t in range(1, x.shape[1]):
            h = self.cell(h) + self.inp(x[:, t])
        return self.out(h)


class Conv(nn.Module):
    """Convolutions of growing channels, padded, and mean pooling."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.inp = nn.Conv1d(2, n, 3, padding=1, bias=False)
        self.hidden = nn.Conv1d(n, n, 3, padding=1, bias=False)
        nn.init.normal_(self.inp.weight, std=0.5)
        nn.init.normal_(self.hidden.weight, std=0.5 / math.sqrt(n))
        self.out = ABC(n, n, 1, 0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(self.inp(x)).mean(-1))


def sgd(module: Callable[[int], nn.Module], lr: float = 0.05) -> Callable[[int], Any]:
    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = module(n)
        return model, torch.optim.SGD(model.parameters(), lr=lr)

    return make


def both(compiled: Compiled, **options: Any) -> tuple[LimitResult, LimitResult]:
    exact = compiled.evaluate(evaluator="exact", **options)
    return exact, compiled.evaluate(evaluator="particles", particles=1024, replicas=2, seed=3, **options)


def assert_equal(exact: LimitResult, sampled: LimitResult, tolerance: float = 1e-8) -> None:
    pairs = [(exact.outputs, sampled.outputs)]
    pairs += [(exact.feature_kernel(a), sampled.feature_kernel(a)) for a in exact.activations]
    pairs += [(exact.feature_change(a), sampled.feature_change(a)) for a in exact.activations]
    for a, b in pairs:
        assert float((a - b).abs().max()) <= tolerance * max(1.0, float(b.abs().max()))
    assert not exact.outputs_stderr.any()


CASES = {
    "one layer": (mlp("linear", 1, lr=0.05), X, Y),
    "three layers": (mlp("linear", 3, lr=0.05), X, Y),
    "momentum": (mlp("linear", 2, lr=0.02, momentum=0.9, nesterov=True), X, Y),
    "weight decay": (mlp("linear", 3, lr=0.05, weight_decay=0.2), X, Y),
    "widths in ratio": (mlp("linear", 3, lr=0.05, widths=(1, 3, 2)), X, Y),
    "two outputs": (mlp("linear", 2, lr=0.05, k=2, bias=True), X, torch.cat([Y, Y.flip(0)], 1)),
    "mean field": (mlp("linear", 1, "mean field", lr=0.05), X, Y),
    "tied": (sgd(lambda n: Tied(n, phi=lambda x: x)), X, X),
    "recurrent": (sgd(LinearRecurrent), data(3, 6)[0].reshape(3, 3, 2), data(3, 6)[1]),
    "convolution": (sgd(Conv, lr=0.5), data(3, 8)[0].reshape(3, 2, 4), data(3, 8)[1]),
    "mixed initial values": (sgd(Mixed), X, torch.cat([Y, Y.flip(0)], 1)),
}


@pytest.mark.parametrize("name", CASES)
def test_equal_to_the_particles(name):
    make, x, y = CASES[name]
    compiled = tp.compile(make, x, y, F.mse_loss, steps=4, test_inputs=2 * x[:2])
    # a mean over a width whose coordinates have a mean makes the output random at initialisation
    options: dict[str, Any] = {"output_init": "zero"} if name == "mixed initial values" else {}
    exact, sampled = both(compiled, **options)
    assert exact.loss is not None
    assert abs(float(exact.loss[0] - exact.loss[-1])) > 1e-2
    assert_equal(exact, sampled)
    auto = compiled.evaluate(**options)
    assert auto.evaluator == "exact"
    assert "linear" in auto.why


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("parametrization", ["ntk", "standard"])
def test_random_outputs_in_the_kernel_regime(depth, parametrization):
    """Mean and covariance of the outputs are functions of the covariance at initialisation: no sampling either."""
    compiled = tp.compile(mlp("linear", depth, parametrization, lr=0.05), X, Y, F.mse_loss, steps=3)
    exact, sampled = both(compiled)
    assert exact.evaluator == "exact"
    assert exact.outputs_cov is not None
    assert sampled.outputs_cov is not None
    assert_equal(exact, sampled)
    gram = (X @ X.T).double() * exact.outputs_cov[0].trace() / (X @ X.T).double().trace()
    assert torch.allclose(exact.outputs_cov[0], gram, atol=1e-12)  # the kernel of a linear network
    error = sampled.outputs_cov - exact.outputs_cov  # products of two vectors: sampled on the particles
    assert float(error.abs().max()) < 0.2 * float(exact.outputs_cov.abs().max())
    assert_equal(*both(compiled, output_init="zero"))


def test_a_tangent_kernel_is_exact():
    compiled = tp.compile(mlp("linear", 3, lr=0.05), X, Y, F.mse_loss, steps=2)
    exact, sampled = both(compiled)
    assert torch.allclose(exact.ntk(), sampled.ntk(), atol=1e-8)
    assert not exact.ntk_stderr().any()


def test_covariance_of_a_sum_of_products_of_uniform_entries():
    def make(n: int) -> nn.Module:
        class Product(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.a = nn.Parameter(torch.empty(n, 2).uniform_(-1, 1))
                self.b = nn.Parameter(torch.empty(n, 2).uniform_(-1, 1))

            def forward(self, x: Tensor) -> Tensor:
                u, v = x @ self.a.T, x @ self.b.T
                return (u[:, None, :] @ v[:, :, None])[:, 0] / math.sqrt(n)

        return Product()

    x = torch.tensor([[1.0, 0.5], [-0.3, 2.0]])
    found = tp.compile(make, x).evaluate(evaluator="exact").outputs_cov
    gram = x.double() @ x.double().T / 3
    assert found is not None
    assert torch.allclose(found[0], gram**2, atol=1e-12)


def test_covariance_of_quadratic_forms():
    """Against the sum over all outcomes: the constant one, a fair coin, a skewed coin, both standardised."""
    coins = [([1.0], [1.0]), ([0.5, 0.5], [-1.0, 1.0]), ([0.2, 0.8], [2.0, -0.5])]
    generators = Generators(
        [sum(p * v**3 for p, v in zip(*c, strict=True)) for c in coins],
        [sum(p * v**4 for p, v in zip(*c, strict=True)) - 3 for c in coins],
    )
    generators.skewness[0] = 0.0
    assert generators.excess[0] == Generators().excess[0]
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    a, b = a + a.mT, b + b.mT
    wanted = torch.zeros(2, 2, dtype=torch.float64)
    for outcome in product(*(list(zip(*c, strict=True)) for c in coins)):
        v = torch.tensor([x for _, x in outcome], dtype=torch.float64)
        p = math.prod(q for q, _ in outcome)
        wanted += p * torch.outer(torch.einsum("eij,i,j->e", a, v, v), torch.einsum("eij,i,j->e", b, v, v))
    assert torch.allclose(form_covariance(a, b, generators), wanted, atol=1e-12)


def test_without_the_response_terms_the_result_is_another():
    compiled = tp.compile(mlp("linear", 3, lr=0.05), X, Y, F.mse_loss, steps=3)
    exact, sampled = both(compiled, dot=False)
    assert_equal(exact, sampled)
    assert float((exact.outputs[-1] - compiled.evaluate().outputs[-1]).abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (mlp("tanh", 2), "tanh"),
        (mlp("relu", 2), "relu"),
    ],
)
def test_the_operation_that_stands_in_the_way_is_named(make, what):
    compiled = tp.compile(make, X, Y, F.mse_loss, steps=1)
    with pytest.raises(UsageError, match=what) as error:
        compiled.evaluate(evaluator="exact")
    assert "step 0" in str(error.value)
    result = compiled.evaluate(particles=64, replicas=1)
    assert result.evaluator == "particles"
    assert "does not apply" in result.why


def test_cross_entropy_of_random_outputs_is_left_to_the_particles():
    make = mlp("linear", 2, "ntk", k=3)
    compiled = tp.compile(make, X, torch.arange(len(X)) % 3, F.cross_entropy, steps=1)
    with pytest.raises(UsageError, match="not linear in the random outputs"):
        compiled.evaluate(evaluator="exact")
    assert compiled.evaluate(output_init="zero").evaluator == "exact"  # then nothing is random


def test_degrees():
    program = tp.compile(mlp("linear", 2, "ntk"), X, Y, F.mse_loss, steps=2).program
    found = degrees(program)
    assert found.linear is None
    random = {name: found.scalars[out.limit] for name, out in program.outputs.items() if out.limit is not None}
    assert random["outputs/2"] == 1
    assert random["loss/2"] == 2
    assert random["kernel/0/2/xx"] == 0
    assert coefficients("pow", 1, (("exponent", 3),)) == (0, 0, 3)
    assert coefficients("tanh", 0, ()) is None


@pytest.mark.slow
@pytest.mark.parametrize("parametrization", PARAMETRIZATIONS)
@pytest.mark.parametrize("depth", [1, 3])
def test_finite_width_is_within_three_standard_errors(parametrization, depth):
    compiled = tp.compile(mlp("linear", depth, parametrization, lr=0.05), X, Y, F.mse_loss, steps=3)
    limit = compiled.evaluate(evaluator="exact")
    widths, seeds = (512, 1024, 2048), 24
    rows = []
    for seed in range(seeds):
        runs = [compiled.simulate(n, seed=100 * seed + i).outputs.double() for i, n in enumerate(widths)]
        rows.append((runs[0] - 6 * runs[1] + 8 * runs[2]) / 3)  # the extrapolation that removes 1/n and 1/n^2
    found = torch.stack(rows)
    error = found.std(0) / math.sqrt(seeds)
    wanted = limit.outputs
    z = normal_score((found.mean(0) - wanted) / error, torch.tensor(float(seeds - 1)))
    assert float(z.abs().max()) < bonferroni_threshold(z.numel(), 1e-3)
    assert float((z.abs() < 3).double().mean()) >= 0.95
