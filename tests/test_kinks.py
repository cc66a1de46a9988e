"""Functions at their kinks, sums that meet a matrix from both sides, functions of vanishing outputs.

Where the leading term of a value is a constant, or has atoms, it may sit on a kink; these models do.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import data

import tpcompile as tp
from tpcompile.errors import EvaluationError, UndeterminedLimitError

X, Y = data()


class Net(nn.Module):
    """A first layer U (n, 4), a square matrix W, a readout v (k, n) of size 1/n, and any forward of these."""

    def __init__(self, n: int, forward: Callable[[Net, Tensor], Tensor], k: int = 1) -> None:
        super().__init__()
        self.n = n
        self.U = nn.Parameter(torch.randn(n, 4))
        self.W = nn.Parameter(torch.randn(n, n) / n**0.5)
        self.v = nn.Parameter(torch.randn(k, n) / n)
        self.f = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


def factory(
    forward: Callable[[Net, Tensor], Tensor], k: int = 1
) -> Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]:
    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        m = Net(n, forward, k)
        rates = [{"params": [m.U], "lr": 0.5 * n}, {"params": [m.W], "lr": 0.5}, {"params": [m.v], "lr": 0.5 / n}]
        return m, torch.optim.SGD(rates, lr=1.0)

    return make


def out(m: Net, x: Tensor) -> Tensor:
    return torch.tanh(x @ m.U.T) @ m.v.T


TRAINED = {
    "relu6 of a vanishing output": (lambda m, x: F.relu6(out(m, x)), Y, F.mse_loss),
    "clamp at its bound": (lambda m, x: (1 + out(m, x)).clamp(0.8, 1.0), Y, F.mse_loss),
    "l1 loss with a target of zero": (out, torch.tensor([[0.0], [1.0], [-1.0]]).double(), F.l1_loss),
    "hinge at zero": (out, torch.tensor([[0.0], [1.0], [0.5]]).double(), lambda f, y: F.relu(y - f).mean()),
    "where": (lambda m, x: torch.where(x @ m.U.T > 0, x @ m.U.T, 0.1 * (x @ m.U.T)) @ m.W.T @ m.v.T, Y, F.mse_loss),
}


@pytest.mark.parametrize("name", TRAINED)
def test_trained_models_on_kinks_agree_with_finite_width(name):
    forward, targets, loss = TRAINED[name]
    compiled = tp.compile(factory(forward), X, targets, loss, steps=1)
    limit = compiled.evaluate(particles=4096, ensemble=256)
    seeds = 64
    runs = torch.stack([compiled.simulate(512, seed=s).outputs for s in range(seeds)])
    error = (runs.var(0) / seeds + limit.outputs_stderr**2).sqrt() + 0.01 * limit.outputs.abs() + 1e-9
    # after the step; before it relu6 of a vanishing output has a mean of order n^(-1/2)
    assert float(((runs.mean(0) - limit.outputs) / error)[-1].abs().max()) < 5


@pytest.mark.parametrize("phi", [F.selu, F.relu6, lambda z: F.elu(z, 0.5), lambda z: z.clamp(0, 1)])
def test_a_function_of_a_small_argument_uses_both_sides_of_its_kink(phi):
    def forward(m: Net, x: Tensor) -> Tensor:
        return (m.n**0.5 * phi(x @ m.U.T / m.n**0.5)).mean(-1, keepdim=True)

    limit = tp.compile(factory(forward), X).evaluate(particles=4096)
    # E of slope(+) relu(Z) - slope(-) relu(-Z), with |x|/sqrt(2 pi) for either side
    z = torch.tensor([1e-7, -1e-7], dtype=torch.float64)
    right, left = (phi(z) / z).tolist()
    expected = (right - left) * X.norm(dim=1, keepdim=True) / (2 * torch.pi) ** 0.5
    assert torch.allclose(limit.outputs[0], expected, rtol=2e-3)


@pytest.mark.parametrize(("phi", "slope"), [(F.relu, 0.5), (torch.abs, 1.0)])
def test_a_difference_whose_leading_term_cancels_is_lowered_deeper(phi, slope):
    def forward(m: Net, x: Tensor) -> Tensor:
        h = x @ m.U.T
        return (m.n**0.5 * phi((h + m.n**-0.5 * (h @ m.W.T)) - h)).mean(-1, keepdim=True)

    limit = tp.compile(factory(forward), X).evaluate(particles=4096)
    expected = 2 * slope * X.norm(dim=1, keepdim=True) / (2 * torch.pi) ** 0.5
    assert torch.allclose(limit.outputs[0], expected, rtol=2e-3)


def test_a_sum_that_meets_a_matrix_from_both_sides_is_an_error():
    def forward(m: Net, x: Tensor) -> Tensor:
        h = x @ m.U.T
        return ((h @ m.W.T + h @ m.W) * h).sum(-1, keepdim=True) / m.n**0.5

    with pytest.raises(EvaluationError, match="both sides"):
        tp.compile(factory(forward), X).evaluate(particles=256)


def test_a_vanishing_output_divided_by_its_largest_entry_is_not_zero():
    with pytest.raises(UndeterminedLimitError, match="random"):
        tp.compile(factory(lambda m, x: out(m, x) / out(m, x).abs().amax(-1, keepdim=True), k=3), X)


def test_a_vanishing_output_divided_by_its_deviation_is_random_and_of_order_one():
    def forward(m: Net, x: Tensor) -> Tensor:
        o = out(m, x)
        return (o - o.mean(-1, keepdim=True)) / o.std(-1, keepdim=True)

    cov = tp.compile(factory(forward, k=3), X).evaluate(particles=256, ensemble=1024).outputs_cov
    assert cov is not None
    for block in (cov.reshape(3, 3, 3, 3)[i, :, i] for i in range(3)):
        assert abs(float(block.trace()) - 2) < 1e-6  # the squares of every member add up to k - 1
        # equal outputs: variance 2/3, covariance -1/3, from 4 x 1024 members
        assert torch.allclose(block, torch.eye(3, dtype=torch.float64) - 1 / 3, atol=4 * 0.6 / 4096**0.5)


def test_a_random_output_bias_has_its_variance_exactly():
    class Biased(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.net = Net(n, lambda m, x: m.n**0.5 * out(m, x))
            self.b = nn.Parameter(torch.randn(1))

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x) + self.b

    result = tp.compile(Biased, X).evaluate(particles=4096)
    plain = tp.compile(factory(lambda m, x: m.n**0.5 * out(m, x)), X).evaluate(particles=4096)
    assert result.outputs_cov is not None
    assert plain.outputs_cov is not None
    assert torch.allclose(result.outputs_cov[0], plain.outputs_cov[0] + 1.0, atol=1e-9)
