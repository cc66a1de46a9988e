"""A finite axis in front of two growing ones counts independent matrices, one by one or all at once."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo_architectures import NEXT, TOKENS, Language, Stacked, loss, maximal

import tpcompile as tp
from tpcompile.capture import capture
from tpcompile.evaluate.reference import run
from tpcompile.ir import finish
from tpcompile.lowering.lower import lower
from tpcompile.lowering.request import requests
from tpcompile.simulate import build, seeded, simulate

X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([[1.0], [-1.0], [0.5], [0.0]])
WIDTH = 12


def _indexed(w, x):
    return [x @ w[i] for i in range(3)]


def _unbound(w, x):
    return [F.linear(x, v.T) for v in w.unbind()]


def _bmm(w, x):
    return torch.bmm(x.expand(3, -1, -1), w)


def _einsum(w, x):
    return torch.einsum("bi,eij->ebj", x, w)


def _parts(w, x):
    return torch.cat([x @ w[1:] if i else (x @ w[0])[None] for i in range(2)])


WAYS = {"indexed": _indexed, "unbind": _unbound, "bmm": _bmm, "einsum": _einsum, "parts": _parts}


class Experts(nn.Module):
    """``sum_e p_e tanh(W_e h)``, of one parameter or of three, and of their mean; ``plain``: ``sum_e relu(W_e h)``."""

    def __init__(self, n, way=None, scales=(1.0, 1.0, 1.0), power=1.0, plain=False):
        super().__init__()
        self.way, self.plain = way, plain
        self.first = nn.Linear(3, n, bias=False)
        self.router = nn.Linear(n, 3, bias=False)
        matrices = [s * torch.randn(n, n) / n**0.5 for s in scales]
        if way is None:
            self.one, self.two, self.three = map(nn.Parameter, matrices)
        else:
            self.w = nn.Parameter(torch.stack(matrices))
        self.readout = nn.Linear(n, 1, bias=False)
        nn.init.normal_(self.first.weight)
        nn.init.normal_(self.router.weight, std=1 / n)
        nn.init.normal_(self.readout.weight, std=n**-power)

    def forward(self, x):
        h = self.first(x.reshape(-1, 3))
        y = [h @ w for w in (self.one, self.two, self.three)] if self.way is None else WAYS[self.way](self.w, h)
        if self.plain:
            return self.readout(sum(torch.relu(y[i]) for i in range(3)))
        mean = (self.one + self.two + self.three) / 3 if self.way is None else self.w.mean(0)
        p = self.router(torch.tanh(h)).softmax(-1)
        return self.readout(sum(p[:, i, None] * torch.tanh(y[i]) for i in range(3)) + torch.tanh(h @ mean))


def made(way=None, **options):
    def make(n):
        model = Experts(n, way, **options)
        wide = [p for name, p in model.named_parameters() if name.startswith(("first", "readout"))]
        rest = [p for name, p in model.named_parameters() if name not in ("first.weight", "readout.weight")]
        router = [p for p in rest if p is model.router.weight]
        rest = [p for p in rest if p is not model.router.weight]
        rates = [(wide[:1], 0.1 * n), (wide[1:], 0.1 / n), (router, 0.1 / n), (rest, 0.1)]
        return model, torch.optim.SGD([{"params": p, "lr": lr} for p, lr in rates])

    return make


@pytest.mark.parametrize("way", WAYS)
def test_programs_are_the_model(way):
    """At a width and on the weights, trained for two steps."""
    make = made(way)
    captured = capture(make, X, Y, F.mse_loss, None, 2)
    lowered = lower(captured, Fraction(1), width=WIDTH)
    outputs, _ = requests(captured, lowered)
    program = finish(lowered.context.algebra.builder, outputs)
    with seeded(3):
        model, _ = build(make, WIDTH)
        weights = {k: v.detach().double() for k, v in model.named_parameters()}
    values = run(program, weights, WIDTH)
    real = simulate(make, X, Y, F.mse_loss, steps=2, width=WIDTH, seed=3, activations=())
    for t in range(3):
        found = values[program.outputs[f"outputs/{t}"].terms[0][1]].reshape(real.outputs[t].shape)
        assert torch.allclose(found, real.outputs[t], rtol=1e-5, atol=1e-7), t


@pytest.mark.parametrize("way", WAYS)
def test_limits_are_those_of_separate_parameters(way):
    found, wanted = (
        tp.compile(made(w), X, Y, F.mse_loss, steps=2).evaluate(particles=1024, replicas=8, evaluator="particles")
        for w in (way, None)
    )
    error = (found.outputs_stderr**2 + wanted.outputs_stderr**2).sqrt()
    assert bool(((found.outputs - wanted.outputs).abs() <= 5 * error).all())
    assert float(wanted.outputs[-1].abs().max()) > 0.01


def kernel(way, **options):
    return tp.kernel(lambda n: Experts(n, way, power=0.5, plain=True, **options), torch.zeros(3))(X[:2].double())


@pytest.mark.parametrize("way", WAYS)
def test_kernels_are_those_of_separate_parameters(way):
    for found, wanted in zip(kernel(way), kernel(None), strict=True):
        torch.testing.assert_close(found, wanted)


def test_laws_of_single_matrices():
    scales = (0.5, 1.0, 2.0)
    for found, wanted in zip(kernel("bmm", scales=scales), kernel(None, scales=scales), strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
def test_exponents_of_experts_one_by_one(optimizer):
    """With SGD all experts have the same pull on the router in the limit, as separate parameters."""
    make = maximal(lambda n: Language(n, lambda n: Stacked(n, indexed=True)), optimizer)
    report = tp.verify(make, TOKENS, NEXT, loss=loss, steps=2, advice=False)
    assert not report.undecided
    wanted = 0 if optimizer is torch.optim.AdamW else Fraction(-1, 2)
    assert report.change_exponent("blocks.0.router", 2) == wanted
