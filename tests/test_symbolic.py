"""Formulas in hyperparameters, of minibatches and of random outputs, against numbers of the exact evaluator."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import sympy as sp
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import mlp

import tpcompile as tp
from tpcompile.errors import EvaluationError, UsageError
from tpcompile.evaluate.exact.interpolation import polynomials

X = torch.tensor([[1.0, 0.5], [-0.5, 1.0]], dtype=torch.float64)
Y = torch.tensor([[1.0], [-0.5]], dtype=torch.float64)
EVERYTHING = ("eta", "momentum", "decay", "gram", "targets")


def mup(momentum: float = 0.0, decay: float = 0.0, rate: float = 0.5, nesterov: bool = False):
    """A linear network with one hidden layer in the maximal update parametrization."""

    def make(width: int):
        first, last = nn.Linear(2, width, bias=False), nn.Linear(width, 1, bias=False)
        nn.init.normal_(first.weight)
        nn.init.normal_(last.weight, std=1 / width)
        groups = [
            {"params": first.parameters(), "lr": rate * width, "weight_decay": decay / width},
            {"params": last.parameters(), "lr": rate / width, "weight_decay": decay * width},
        ]
        model = nn.Sequential(first, last).double()
        return model, torch.optim.SGD(groups, lr=rate, momentum=momentum, nesterov=nesterov)

    return make


def assert_numbers(formulas: Any, compiled: Any, inputs: Tensor, targets: Tensor) -> None:
    """The formulas at the values of a run are its numbers."""
    values = {s: 1.0 for s in (formulas.eta, formulas.momentum, formulas.decay) if s.is_Symbol}
    count = len(inputs)
    gram = (inputs @ inputs.T).tolist()
    values |= {formulas.gram[i, j]: gram[i][j] for i in range(count) for j in range(count)}
    values |= dict(zip(formulas.targets, targets.ravel().tolist(), strict=True))
    numbers = compiled.evaluate(evaluator="exact")

    def at(expression: Any) -> Any:
        return np.asarray(sp.lambdify(list(values), formulas.mean(expression))(*values.values()), dtype=float)

    for t, f in enumerate(formulas.outputs):
        assert np.allclose(at(f), numbers.outputs[t], atol=1e-12)
    assert float(at(formulas.loss[1])) == pytest.approx(float(numbers.loss[1]), rel=1e-12)


CASES = {
    "momentum": (mup(momentum=0.9), ("eta", "momentum", "gram", "targets")),
    "Nesterov's momentum": (mup(momentum=0.5, nesterov=True), ("momentum", "gram", "targets")),
    "weight decay": (mup(decay=0.1), ("eta", "decay", "gram", "targets")),
}


@pytest.mark.parametrize("name", CASES)
def test_hyperparameters(name):
    make, symbols = CASES[name]
    compiled = tp.compile(make, X, Y, F.mse_loss, steps=2)
    assert_numbers(compiled.symbolic(symbols), compiled, X, Y)


def test_one_step_by_hand():
    """``<u - e (d u - 2 y v x), v - e (d v - 2 y u x)>`` for initial weights u and v with <u, v> = 0, one input x."""
    s: Any = tp.compile(mup(0.5, 0.25), X[:1], Y[:1], F.mse_loss, steps=1).symbolic(EVERYTHING)
    e, d = s.eta / 2, s.decay / 4
    assert sp.expand(s.outputs[1][0] - 4 * e * (1 - e * d) * s.targets[0] * s.gram[0, 0]) == 0
    assert s.momentum.is_Symbol  # which enters at the second step


def test_minibatches():
    """Two minibatches that share an input; equal inputs are one symbol."""
    batches, labels = [X, X[1:]], [Y, Y[1:]]
    compiled = tp.compile(mup(momentum=0.5, rate=0.25), batches, labels, F.mse_loss, steps=2)
    s: Any = compiled.symbolic()
    assert s.gram.shape == (3, 3)
    assert s.gram.free_symbols == {sp.Symbol(n) for n in ("G11", "G12", "G22")}
    assert s.targets[1] == s.targets[2]  # the same input with the same target
    assert_numbers(s, compiled, torch.cat(batches), torch.cat(labels))
    other = tp.compile(mup(), batches, [Y, -Y[1:]], F.mse_loss, steps=2).symbolic(("targets",))
    assert other.targets is not None
    assert other.targets[1] != other.targets[2]  # another target


def test_a_minibatch_of_one_number_stays_data():
    """Once its target was taken for a constant of the model: nothing else in the program changes with it."""
    results = []
    for target in (1.0, -2.0):
        labels = [Y, torch.tensor([[target]], dtype=torch.float64)]
        results.append(tp.compile(mup(), [X, X[:1]], labels, F.mse_loss, steps=2))
    assert sum("targets/1" in str(node.op) for node in results[0].program.nodes) == 1


def test_random_outputs_are_symbols():
    compiled = tp.compile(mlp("square", 1, "ntk", d=2, lr=0.05), X, Y, F.mse_loss, steps=1)
    s: Any = compiled.symbolic()
    assert len(s.random) == 2
    assert list(s.outputs[0]) == [x / 2 for x in s.random]  # the activation is half a square
    g = s.gram
    assert sp.expand(s.covariance[0, 1] - g[0, 0] * g[1, 1] - 2 * g[0, 1] ** 2) == 0
    assert s.mean(s.outputs[0]) == sp.zeros(2, 1)
    assert_numbers(s, compiled, X, Y)
    f = s.outputs[1][0]
    values = {s.eta: 1} | dict(zip(s.targets, Y.ravel().tolist(), strict=True))
    values |= {g[i, j]: float(X[i] @ X[j]) for i in range(2) for j in range(2)}
    variance = s.mean(f**2) - s.mean(f) ** 2
    numbers: Any = compiled.evaluate(evaluator="exact").outputs_cov
    assert float(variance.subs(values)) == pytest.approx(float(numbers[1, 0, 0]), rel=1e-12)


def test_all_rational():
    """Momentum, decay and minibatches of rationals give rationals, equal to the floats."""
    compiled = tp.compile(mup(0.9, 0.1), [X, X[:1]], [Y, Y[:1]], F.mse_loss, steps=2)
    s: Any = compiled.symbolic(symbols=())
    assert all(value.is_Rational for m in s.outputs for value in m)
    assert (s.eta, s.momentum, s.decay) == (1, 1, 1)
    assert np.allclose(np.array(s.outputs[2], dtype=float), compiled.evaluate(evaluator="exact").outputs[2])


def test_symbols_of_nothing_are_refused():
    compiled = tp.compile(mup(), X, Y, F.mse_loss, steps=1)
    for name, key in (("momentum", "momentum"), ("decay", "weight_decay")):
        with pytest.raises(UsageError, match=f"the optimizer has no {key}"):
            compiled.symbolic(("eta", name))


def test_interpolation():
    def sample(point):
        x, y = map(float, point)
        return [1 - 0.1 * x * y, 3.0, x**3 / 7 - 2**0.5 * y, 0.0, 1e-6 * x**2]

    found = polynomials(sample, ("x", "y"))
    assert found[0] == {(0, 0): 1, (1, 1): Fraction(-1, 10)}
    assert found[1] == {(0, 0): 3}
    assert found[2][3, 0] == Fraction(1, 7)
    assert float(found[2][0, 1]) == pytest.approx(-(2**0.5), abs=1e-15)
    assert not isinstance(found[2][0, 1], float)
    assert found[3] == {}
    assert found[4] == {(2, 0): Fraction(1, 10**6)}
    with pytest.raises(EvaluationError, match="no polynomial"):
        polynomials(lambda point: [1 / (2 + float(point[0]))], ("x",))
