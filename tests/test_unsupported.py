"""What has no lowering rule or no limit is one clear error that names the operation and the place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import mlp

import tpcompile as tp
from tpcompile.errors import InitialisationError, TpcompileError, UnstableError, UnsupportedOperationError

X, Y = torch.randn(3, 4), torch.randn(3, 1)


class Three(nn.Module):
    """Three linear layers and any forward of them."""

    def __init__(self, n: int, forward: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, n), nn.Linear(n, n), nn.Linear(n, 1)
        self.f = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.f(self, x)


FORWARDS: dict[str, tuple[Callable[[Any, Tensor], Tensor], str]] = {
    "softmax over the width": (lambda m, x: m.c(m.a(x).softmax(-1)), "_softmax"),
    "max over the width": (lambda m, x: m.a(x).max(-1, keepdim=True).values, "max"),
    "sort": (lambda m, x: m.c(m.a(x).sort(-1).values), "sort"),
    "cumsum": (lambda m, x: m.c(m.a(x).cumsum(-1)), "cumsum"),
    "roll": (lambda m, x: m.c(m.a(x).roll(1, -1)), "roll"),
    "flip": (lambda m, x: m.c(m.a(x).flip(-1)), "flip"),
    "fft": (lambda m, x: m.c(torch.fft.fft(m.a(x)).real), "fft"),
    "rounding": (lambda m, x: m.c(m.a(x).round()), "round"),
    "tan": (lambda m, x: m.c(m.a(x).tan()), "tan"),
    "one coordinate": (lambda m, x: m.a(x)[:, :1], "axis 1"),
    "function of a product": (lambda m, x: m.c(F.linear(m.a(x), (m.b.weight @ m.b.weight).tanh())), "of matrices"),
    "norm of a product": (lambda m, x: m.c(m.a(x)) / (m.b.weight @ m.b.weight).norm(), "two matrices"),
    "norm of a matrix": (lambda m, x: m.c(m.b(m.a(x))) / m.b.weight.norm(p=1), "norm of order 1"),
    "inverse": (lambda m, x: m.c(F.linear(m.a(x), m.b.weight.inverse())), "whole matrix"),
    "function of a matrix": (lambda m, x: m.c(F.linear(m.a(x), m.b.weight.relu())), "whole matrix"),
    "coordinates told apart": (lambda m, x: m.c(m.a(x) * torch.arange(m.a.out_features)), "arange"),
    "argmax of the output": (lambda m, x: m.c(m.a(x)) * m.c(m.a(x)).argmax().float(), "argmax"),
}


@pytest.mark.parametrize("name", FORWARDS)
def test_operations_without_a_rule_are_named_with_their_place(name):
    forward, part = FORWARDS[name]
    with pytest.raises(UnsupportedOperationError) as error:
        tp.compile(lambda n: Three(n, forward), X)
    assert part in str(error.value)
    assert "the model's own forward, step 0" in str(error.value)
    assert "test_unsupported.py" in str(error.value)


MODULES: dict[str, tuple[Callable[[int], nn.Module], str]] = {
    "softmax": (lambda n: nn.Softmax(-1), "module '1'"),
    "softmin": (lambda n: nn.Softmin(-1), "module '1'"),
}


@pytest.mark.parametrize("name", MODULES)
def test_modules_without_a_rule_are_named(name):
    middle, place = MODULES[name]
    with pytest.raises(UnsupportedOperationError) as error:
        tp.compile(lambda n: nn.Sequential(nn.Linear(4, n), middle(n), nn.Linear(n, 1)), X)
    assert place in str(error.value)


def test_orthogonal_square_matrices_are_refused():
    def make(n: int) -> nn.Module:
        hidden = nn.Linear(n, n)
        nn.init.orthogonal_(hidden.weight)
        return nn.Sequential(nn.Linear(4, n), hidden, nn.Linear(n, 1))

    with pytest.raises(InitialisationError, match=r"1\.weight"):
        tp.compile(make, X)


@pytest.mark.parametrize(
    ("phi", "power", "value", "exponent"),
    [("tanh", 0.0, "2", "1/2"), ("relu", 0.0, "2", "1/2"), ("relu", 0.5, "outputs", "1/2")],
)
def test_a_blow_up_is_reported_with_its_first_value_step_and_exponent(phi, power, value, exponent):
    """Standard parametrization: Tensor Programs IV, table 1 and the caution about the first step."""

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model, _ = mlp(phi, 2, "standard")(n)
        return model, torch.optim.SGD(model.parameters(), lr=0.1 * n**-power)

    with pytest.raises(UnstableError) as error:
        tp.compile(make, X.double(), Y.double(), F.mse_loss, steps=3)
    assert (error.value.value, error.value.step, str(error.value.exponent)) == (value, 1, exponent)


def test_stable_rates_of_the_standard_parametrization_compile():
    for power in (1, 2):

        def make(n: int, power: int = power) -> tuple[nn.Module, torch.optim.Optimizer]:
            model, _ = mlp("relu", 2, "standard")(n)
            return model, torch.optim.SGD(model.parameters(), lr=0.1 * n**-power)

        tp.compile(make, X.double(), Y.double(), F.mse_loss, steps=3)


def test_tangent_kernel_that_grows_is_an_error():
    compiled = tp.compile(lambda n: nn.Sequential(nn.Linear(4, n), nn.Tanh(), nn.Linear(n, 1)), X)
    with pytest.raises(UnstableError, match="tangent kernel"):
        compiled.evaluate(particles=64, replicas=1).ntk()


def test_all_are_one_kind_of_error():
    assert issubclass(UnsupportedOperationError, TpcompileError)
