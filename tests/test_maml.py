"""First-order MAML: gradient steps inside the forward pass; the limit by a closed form, by widths, by its kernel."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from test_examples import load
from torch import Tensor, nn

import tpcompile as tp

example = load("maml_digits")
X, Y = example.inputs[:4], example.targets[:4]
P = example.PIXELS
Net = Callable[[list[Tensor], Tensor], Tensor]
Gradients = Callable[[Net, list[Tensor], Tensor, Tensor], list[Tensor]]
Activation = Callable[[Tensor], Tensor]
Factory = Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]


def shaped(found: Tensor) -> Tensor:
    return found.reshape(-1, len(X), example.WAYS, example.WAYS * example.QUERIES).double()


@pytest.fixture(scope="module")
def compiled():
    return tp.compile(example.make, X, Y, F.cross_entropy, steps=6)


@pytest.fixture(scope="module")
def limit(compiled):
    return compiled.evaluate(evaluator="exact")


def test_the_limit_is_a_network_of_orthogonal_weights(limit):
    """All coordinates are combinations of those of W_0 and V_0, one generator a column: a width of P + WAYS will do."""
    lr, inner = example.LEARNING_RATE, example.INNER_RATE
    model = example.Maml(P + example.WAYS, multiplier=1.0, readout_std=0.0, rates=(inner, inner))
    with torch.no_grad():
        model.hidden.weight.copy_(torch.eye(P + example.WAYS)[:, :P])
        model.readout.weight.copy_(torch.eye(P + example.WAYS)[P:])
    model.double()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    found = []
    for step in range(7):
        out = model(X.double())
        found.append(out.detach())
        if step < 6:
            optimizer.zero_grad()
            F.cross_entropy(out, Y).backward()
            optimizer.step()
    assert torch.allclose(shaped(limit.outputs), torch.stack(found), atol=1e-6)  # the rates are in single precision


def test_the_limit_adapts_and_learns(limit):
    assert limit.evaluator == "exact"
    assert limit.loss[-1] < 0.9 * limit.loss[0]


def test_finite_widths_tend_to_the_limit_as_the_inverse_square_root(compiled, limit):
    rms = {}
    for width in (128, 2048):
        errors = [compiled.simulate(width, seed=s).outputs - limit.outputs for s in range(4)]
        rms[width] = float(torch.stack(errors).square().mean().sqrt())
    assert math.log(rms[128] / rms[2048]) / math.log(16) == pytest.approx(0.5, abs=0.15)


def _loss(net: Net, weights: list[Tensor], x: Tensor, y: Tensor) -> Tensor:
    return F.mse_loss(net(weights, x), y)


def _by_autograd(net: Net, weights: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(_loss(net, weights, x, y), weights))


def _by_func(net: Net, weights: list[Tensor], x: Tensor, y: Tensor) -> list[Tensor]:
    return [g.detach() for g in torch.func.grad(lambda w: _loss(net, w, x, y))(weights)]


class Adapted(nn.Module):
    """Outputs on three queries a task after a step on three items of the task, without the second derivative.

    ``maximal`` is the maximal update parametrization, the NTK parametrization without.
    """

    def __init__(self, width: int, gradients: Gradients, batched: bool, activation: Activation, maximal: bool) -> None:
        super().__init__()
        self.hidden, self.readout = nn.Linear(4, width, bias=False), nn.Linear(width, 2, bias=False)
        nn.init.normal_(self.hidden.weight)
        nn.init.normal_(self.readout.weight, std=1 / width if maximal else 1.0)
        self.multiplier = 1.0 if maximal else width**-0.5
        self.rates = (0.5 * width, 0.5 / width) if maximal else (0.5, 0.5)
        self.gradients, self.batched, self.activation = gradients, batched, activation

    def net(self, weights: list[Tensor], x: Tensor) -> Tensor:
        hidden, readout = weights
        return self.multiplier * self.activation(x @ hidden.mT) @ readout.mT

    def forward(self, tasks: Tensor) -> Tensor:
        x, y, queries = tasks[:, :3, :4], tasks[:, :3, 4:], tasks[:, 3:, :4]
        weights = [self.hidden.weight, self.readout.weight]

        def adapt(x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
            steps = zip(weights, self.rates, self.gradients(self.net, weights, x, y), strict=True)
            return self.net([w - r * g for w, r, g in steps], queries)

        if self.batched:
            return torch.func.vmap(adapt)(x, y, queries)
        return torch.stack([adapt(*task) for task in zip(x, y, queries, strict=True)])


def adapted(gradients: Gradients, batched: bool, activation: Activation, maximal: bool) -> Factory:
    def make(width: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Adapted(width, gradients, batched, activation, maximal)
        scales = (width, 1 / width) if maximal else (1, 1)
        rates = zip((model.hidden, model.readout), scales, strict=True)
        return model, torch.optim.SGD([{"params": m.parameters(), "lr": 0.3 * s} for m, s in rates], lr=0.3)

    return make


@pytest.fixture(scope="module")
def data() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 6, 6, generator=generator), torch.randn(2, 3, 2, generator=generator)


def test_inner_steps_may_be_written_in_any_way(data: tuple[Tensor, Tensor]):
    found = []
    for gradients, batched in ((_by_autograd, False), (_by_func, False), (_by_func, True)):
        compiled = tp.compile(adapted(gradients, batched, torch.tanh, True), *data, F.mse_loss, steps=2)
        result, network = compiled.evaluate(particles=1024, replicas=2), compiled.simulate(64)
        found.append((result.outputs, result.ntk(), network.outputs, network.ntk()))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            assert torch.allclose(a, b, atol=1e-10)


def test_the_ntk_limit_is_that_of_its_kernel(data: tuple[Tensor, Tensor]):
    """From a zero function, inner and outer steps move the outputs by the kernel, twice the Gram matrix.

    Zero on six queries in four dimensions is zero everywhere.
    """
    result = tp.compile(adapted(_by_func, True, _identity, False), *data, F.mse_loss, steps=3).evaluate(
        evaluator="particles", particles=512, replicas=2, output_init="zero"
    )
    tasks, targets = (x.double() for x in data)
    gram = 2 * torch.einsum("aid,bjd->aibj", tasks[..., :4], tasks[..., :4])
    within = torch.stack([gram[i, 3:, i, :3] for i in range(2)])
    f, found = torch.zeros(2, 6, 2, dtype=torch.float64), []
    for _ in range(4):
        out = f[:, 3:] - 0.5 * within @ (f[:, :3] - tasks[:, :3, 4:]) / 3
        found.append(out)
        f = f - 0.3 * torch.einsum("aibj,bjk->aik", gram[..., 3:], out - targets) / 6
    assert torch.allclose(result.outputs.reshape(4, 2, 3, 2), torch.stack(found), atol=1e-6)


def _identity(x: Tensor) -> Tensor:
    return x
