"""Exact evaluation over polynomials: square and cubic networks against particles, closed forms, symbols."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sympy as sp
import torch
import torch.nn.functional as F
from scipy import stats
from torch import nn

import tpcompile as tp
from tpcompile.errors import UsageError

X = torch.tensor([[1.0, 0.5], [-0.5, 1.0]], dtype=torch.float64)
Y = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)


class Power(nn.Module):
    def __init__(self, k: int) -> None:
        super().__init__()
        self.k = k

    def forward(self, h):
        return h**self.k


def mup(activation, depth: int = 1, rate: float = 0.05, outputs: int = 1):
    """A perceptron in the maximal update parametrization."""

    def make(width: int):
        layers: list[nn.Module] = []
        for i in range(depth):
            linear = nn.Linear(width if i else 2, width, bias=False, dtype=torch.float64)
            nn.init.normal_(linear.weight, std=width**-0.5 if i else 1.0)
            layers += [linear, activation]
        layers.append(nn.Linear(width, outputs, bias=False, dtype=torch.float64))
        nn.init.normal_(layers[-1].weight, std=1 / width)  # type: ignore[arg-type]
        model = nn.Sequential(*layers)
        groups = []
        for name, p in model.named_parameters():
            scale = width if name.startswith("0.") else 1 / width if name.startswith(f"{2 * depth}.") else 1.0
            groups.append({"params": [p], "lr": rate * scale})
        return model, torch.optim.SGD(groups, lr=rate)

    return make


CASES = {
    "square": (mup(Power(2)), 2),
    "cubic": (mup(Power(3), rate=0.01), 1),
    "two layers, square": (mup(Power(2), depth=2, rate=0.002), 1),
}


@pytest.mark.parametrize("name", CASES)
def test_polynomial_networks_agree_with_particles(name):
    make, steps = CASES[name]
    compiled = tp.compile(make, X, Y, F.mse_loss, steps=steps)
    exact = compiled.evaluate(evaluator="exact")
    sampled = compiled.evaluate(evaluator="particles", particles=65536, replicas=8)
    assert exact.evaluator == "exact"
    assert "polynomial" in exact.why
    assert not exact.outputs_stderr.any()
    assert exact.loss is not None
    assert sampled.loss is not None
    assert float(exact.loss[0] - exact.loss[-1]) > 1e-3
    comparisons = [(exact.outputs, sampled.outputs, sampled.outputs_stderr)]
    for a in exact.activations:
        comparisons.append((exact.feature_kernel(a), sampled.feature_kernel(a), sampled.kernels_stderr[a]))
    count = sum(one.numel() for one, _, _ in comparisons)
    most = stats.t.ppf(1 - 0.01 / (2 * count), df=7)  # of so many comparisons with eight replicas, at 1 %
    for one, other, stderr in comparisons:
        assert float(((one - other).abs() / (stderr + 1e-9)).max()) < most


@pytest.mark.parametrize("k", [2, 3])
def test_one_step_by_quadrature(k):
    """One hidden layer: an integral over two input weights and the readout, of low degree."""
    rate = 0.01
    exact = tp.compile(mup(Power(k), rate=rate), X, Y, F.mse_loss, steps=1).evaluate(evaluator="exact").outputs[1]
    t, w = np.polynomial.hermite_e.hermegauss(24)
    grid = np.meshgrid(t, t, t, indexing="ij")
    weight = np.einsum("i,j,k->ijk", w, w, w) / w.sum() ** 3
    x, error = X.numpy(), -Y.numpy().ravel()  # 2/N (f - y) for N = 2 and f = 0
    h, v = [grid[0] * a + grid[1] * b for a, b in x], grid[2]
    readout = v - rate * sum(e * z**k for e, z in zip(error, h, strict=True))
    for b in range(2):
        moved = h[b] - rate * sum(error[a] * v * k * h[a] ** (k - 1) * (x[a] @ x[b]) for a in range(2))
        assert float(exact[b]) == pytest.approx((weight * readout * moved**k).sum(), rel=1e-11)


def test_finite_networks_are_within_three_standard_errors():
    compiled = tp.compile(mup(Power(2)), X, Y, F.mse_loss, steps=2)
    limit = compiled.evaluate(evaluator="exact").outputs[1:]
    found = torch.stack([compiled.simulate(512, seed).outputs[1:] for seed in range(16)])
    assert float(((found.mean(0) - limit).abs() / (found.std(0) / 16**0.5)).max()) < 3


def test_the_evaluator_is_chosen_by_its_cost():
    assert tp.compile(mup(Power(2)), X, Y, F.mse_loss, steps=1).evaluate().evaluator == "exact"
    compiled = tp.compile(mup(Power(2), depth=3, rate=1e-5), X, Y, F.mse_loss, steps=4)
    auto = compiled.evaluate(particles=1024, replicas=2)
    assert auto.evaluator == "particles"
    assert "monomials" in auto.why
    with pytest.raises(UsageError, match="monomials"):
        compiled.evaluate(evaluator="exact")


def test_response_terms_count():
    compiled = tp.compile(mup(Power(2), depth=2, rate=0.02), X, Y, F.mse_loss, steps=1)
    exact = [compiled.evaluate(evaluator="exact", dot=dot).outputs[1] for dot in (True, False)]
    sampled = [compiled.evaluate("particles", 16384, 8, dot=dot).outputs[1] for dot in (True, False)]
    assert float((exact[0] - exact[1]).abs().max()) > 0.1 * float(exact[0].abs().max())
    assert torch.allclose(exact[1], sampled[1], rtol=0.05)


def test_formula_of_a_linear_network():
    compiled = tp.compile(mup(nn.Identity(), rate=0.5), X, Y, F.mse_loss, steps=1)
    s: Any = compiled.symbolic()
    eta, g, y = s.eta, s.gram, s.targets
    assert y is not None
    expected = eta * g * y  # both layers move the function by <x, x'>, times rate 1/2 and 2/N = 1
    assert sp.expand(s.outputs[1] - expected) == sp.zeros(2, 1)
    assert s.loss is not None
    assert sp.expand(s.loss[0] - (y[0] ** 2 + y[1] ** 2) / 2) == 0
    assert str(s).splitlines()[0] == "f_0[0, 0] = 0"


@pytest.mark.parametrize("activation", [nn.Identity(), Power(2)], ids=["linear", "square"])
def test_formulas_give_the_numbers(activation):
    tests = torch.tensor([[0.25, -1.0]], dtype=torch.float64)
    x = torch.cat([X, torch.zeros(2, 1, dtype=torch.float64)], 1)

    def make(width):
        model, _ = mup(activation, rate=0.25)(width)
        first = model[0] = nn.Linear(3, width, bias=False, dtype=torch.float64)
        nn.init.normal_(first.weight)
        groups = [{"params": [first.weight], "lr": 0.25 * width}, {"params": [model[2].weight], "lr": 0.25 / width}]
        return model, torch.optim.SGD(groups, lr=0.25)

    compiled = tp.compile(make, x, Y, F.mse_loss, steps=1, test_inputs=torch.nn.functional.pad(tests, (0, 1)))
    s: Any = compiled.symbolic()
    rows = torch.cat([X, tests])
    values = {s.eta: 1} | dict(zip(s.targets, Y.ravel().tolist(), strict=True))
    values |= {s.gram[i, j]: float(rows[i] @ rows[j]) for i in range(3) for j in range(3)}
    numbers: Any = compiled.evaluate(evaluator="exact")
    for formulas, found in ((s.outputs, numbers.outputs), (s.test_outputs, numbers.test_outputs)):
        got = np.array([m.subs(values).tolist() for m in formulas], dtype=float)  # type: ignore[union-attr]
        assert np.allclose(got, found, atol=1e-12)
    assert np.allclose(np.array(s.kernels["0"][1].subs(values), dtype=float), numbers.feature_kernel("0")[1, :2, :2])


def test_rational_data_stay_rational():
    compiled = tp.compile(mup(Power(2), rate=0.25), X, Y, F.mse_loss, steps=1)
    s: Any = compiled.symbolic(symbols=())
    assert all(value.is_Rational for value in s.outputs[1])
    assert s.eta == 1
    eta = compiled.symbolic(symbols=("eta",))
    assert eta.outputs[1].free_symbols == {eta.eta}
    assert eta.outputs[1].subs(eta.eta, 1) == s.outputs[1]
    assert np.allclose(np.array(s.outputs[1], dtype=float), compiled.evaluate(evaluator="exact").outputs[1])


def test_roots_in_formulas():
    def make(width):
        model, optimizer = mup(nn.Identity(), rate=0.5)(width)

        class Scaled(nn.Module):
            def __init__(self):
                super().__init__()
                self.model = model

            def forward(self, x):
                return self.model(x / 2**0.5)

        return Scaled(), optimizer

    s = tp.compile(make, X, Y, F.mse_loss, steps=1).symbolic(symbols=("gram",))
    assert sp.expand(s.outputs[1] - s.gram * sp.Matrix([1, sp.Rational(-1, 2)]) / 2) == sp.zeros(2, 1)


def test_what_has_no_formula_is_said():
    with pytest.raises(tp.TpcompileError, match="tanh"):
        tp.compile(mup(nn.Tanh(), depth=2), X, Y, F.mse_loss, steps=1).symbolic()
    with pytest.raises(UsageError, match="symbols must be among"):
        tp.compile(mup(Power(2)), X, Y, F.mse_loss, steps=1).symbolic(symbols=("lr",))
    inputs = torch.cat([X, X + 0.5])
    with pytest.raises(UsageError, match="full rank"):
        tp.compile(mup(Power(2)), inputs, torch.cat([Y, Y]), F.mse_loss, steps=1).symbolic()
    with pytest.raises(tp.TpcompileError, match="stands for no rational"):
        tp.compile(mup(Power(2)), X * torch.pi, Y, F.mse_loss, steps=1).symbolic(symbols=())
