"""Parameters whose slices have laws of their own: padding rows, forget gates, blocks of a matrix."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tpcompile as tp
from tpcompile.capture import capture
from tpcompile.errors import InitialisationError
from tpcompile.evaluate.reference import run
from tpcompile.ir import finish
from tpcompile.laws import Constant, Normal, Pieces
from tpcompile.lowering.lower import lower
from tpcompile.lowering.request import requests
from tpcompile.report.inspect import parameters
from tpcompile.simulate import build, seeded, simulate

TOKENS = torch.tensor([[0, 1, 2], [3, 0, 0], [2, 4, 1]])
X = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, -1.0]])
Y = torch.tensor([1.0, -1.0, 0.5])


class Tokens(nn.Module):
    """Row 0 of the table is padding: zero, and never trained."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.table = nn.Embedding(5, n, padding_idx=0)
        self.w = nn.Parameter(torch.randn(n, n) * n**-0.5)
        self.v = nn.Parameter(torch.randn(n) / n)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return torch.tanh(torch.tanh(self.table(tokens) + 0.3) @ self.w.T).mean(1) @ self.v


class Gates(nn.Module):
    """A forget gate with bias 1 beside one with bias 0, and a readout in two blocks."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.inp = nn.Parameter(torch.randn(n, 2))
        self.gates = nn.Parameter(torch.randn(2 * n, n) * n**-0.5)
        self.bias = nn.Parameter(torch.zeros(2 * n))
        with torch.no_grad():
            self.bias[:n].fill_(1.0)
        self.v = nn.Parameter(torch.cat([torch.randn(n), 2 * torch.randn(n)]) / n)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = x @ self.inp.T
        forget, new = (h @ self.gates.T + self.bias).split(self.n, -1)
        out = torch.sigmoid(forget) * torch.tanh(new)
        return torch.cat([out, out.cos()], -1) @ self.v


def trained(model):
    """A factory in the maximal update parametrization."""

    def make(n: int):
        network = model(n)
        rates = {"table.weight": n, "inp": n, "bias": n, "w": 1.0, "gates": 1.0, "v": 1 / n}
        groups = [{"params": [p], "lr": 0.3 * rates[name]} for name, p in network.named_parameters()]
        return network, torch.optim.SGD(groups, lr=0.3)

    return make


CASES = {"padding": (trained(Tokens), TOKENS), "gates": (trained(Gates), X)}


def test_laws_of_slices():
    laws = capture(CASES["padding"][0], TOKENS).laws
    (table,) = (law for law in laws.values() if isinstance(law, Pieces))
    assert table == Pieces(0, ((Fraction(1), 0), (Fraction(5), 0)), (Constant(0.0), Normal(1.0)))
    found = [law for law in capture(CASES["gates"][0], X).laws.values() if isinstance(law, Pieces)]
    assert all(law.ends == ((Fraction(1), 1), (Fraction(2), 1)) for law in found)
    laws = {law.laws for law in found}
    assert laws == {(Constant(1.0), Constant(0.0)), (Normal(1.0, 0.0, Fraction(-1)), Normal(2.0, 0.0, Fraction(-1)))}


@pytest.mark.parametrize("name", CASES)
def test_lowering_is_exact(name):
    make, inputs = CASES[name]
    width, steps = 16, 2
    lowered = lower(capture(make, inputs, Y, F.mse_loss, None, steps), Fraction(1), width=width)
    program = finish(
        lowered.context.algebra.builder, requests(capture(make, inputs, Y, F.mse_loss, None, steps), lowered)[0]
    )
    with seeded(3):
        weights = {k: v.detach().double() for k, v in build(make, width)[0].named_parameters()}
    values = run(program, weights, width)
    real = simulate(make, inputs, Y, F.mse_loss, None, steps, width=width, seed=3, activations=())
    for t in range(steps + 1):
        found = values[program.outputs[f"outputs/{t}"].terms[0][1]].reshape(real.outputs[t].shape)
        assert torch.allclose(found, real.outputs[t], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", CASES)
def test_finite_networks_approach_the_limit(name):
    make, inputs = CASES[name]
    compiled = tp.compile(make, inputs, Y, F.mse_loss, steps=2)
    report = compiled.check(widths=(64, 128, 256), seeds=24, particles=4096)
    assert report.passed, str(report)


def test_inspect_and_verify_know_them():
    compiled = tp.compile(CASES["gates"][0], X, Y, F.mse_loss, steps=1)
    shown = {row.name: row.law for row in parameters(compiled)}
    assert shown["bias"] == "slices of axis 0: 1; 0"
    assert str(tp.verify(CASES["padding"][0], TOKENS, Y, loss=F.mse_loss, steps=2).verdict) == "maximal update"


def test_no_pattern_is_still_an_error():
    def make(n: int):
        model = Tokens(n)
        with torch.no_grad():
            model.v[torch.arange(n) % 2 == 0] = 0.0
        return model

    with pytest.raises(InitialisationError, match="has entries of different laws"):
        capture(make, TOKENS)


def test_blocks_of_a_matrix_of_two_growing_axes_are_refused():
    def make(n: int):
        model = Gates(n)
        with torch.no_grad():
            model.gates[:n] *= 2
        return model

    with pytest.raises(InitialisationError, match=r"'gates' has slices of axis 0 with different laws"):
        tp.compile(make, X)
