"""Every lowering rule is exact: the program of its sample, at a width and on the weights, is the trained model."""

from __future__ import annotations

from fractions import Fraction
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from rule_samples import COMPOSITE, SAMPLES, SIZES, Sample, Sampled

from tpcompile.capture import capture
from tpcompile.capture.graph import Capture
from tpcompile.evaluate.reference import run
from tpcompile.ir import finish
from tpcompile.lowering.lower import lower
from tpcompile.lowering.registry import rules
from tpcompile.lowering.request import requests
from tpcompile.simulate import build, seeded, simulate

WIDTH = 24
X = torch.randn(4, 6, 3, generator=torch.Generator().manual_seed(0))
GROUPS = {f: [target for target, g in SAMPLES.items() if g is f] for f in SAMPLES.values()}


def make(f: Sample):
    def factory(n: int):
        model = Sampled(n, f)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    return factory


@cache
def arguments(f: Sample) -> tuple:
    with torch.no_grad():
        out = Sampled(16, f)(X)
    return X, torch.linspace(-1, 1, out.numel()).reshape(out.shape), F.mse_loss, None, 1


def targets(captured: Capture) -> set[str]:
    module = captured.graph_module
    assert module is not None
    return {str(node.target) for node in module.graph.nodes if node.op == "call_function"}


def test_every_rule_has_a_sample():
    registered = rules()
    assert set(registered) == set(SAMPLES) | COMPOSITE | SIZES
    sampled = {registered[target] for target in SAMPLES}
    assert all(registered[target] in sampled for target in COMPOSITE)


@pytest.mark.parametrize("f", GROUPS, ids=[names[0].removeprefix("aten.") for names in GROUPS.values()])
def test_rule_is_exact(f):
    captured = capture(make(f), *arguments(f))
    traced = targets(captured)
    assert set(GROUPS[f]) <= traced
    assert not traced & COMPOSITE
    lowered = lower(captured, Fraction(1), width=WIDTH)
    outputs, _ = requests(captured, lowered)
    program = finish(lowered.context.algebra.builder, outputs)
    with seeded(3):
        model, _ = build(make(f), WIDTH)
        weights = {k: v.detach().double() for k, v in model.named_parameters()}
    values = run(program, weights, WIDTH)
    real = simulate(make(f), *arguments(f), width=WIDTH, seed=3, activations=())
    for t in range(2):
        output = program.outputs[f"outputs/{t}"]
        found = values[output.terms[0][1]].reshape(real.outputs[t].shape)
        assert torch.allclose(found, real.outputs[t], rtol=1e-5, atol=1e-7), t
    assert not torch.allclose(real.outputs[0], real.outputs[1], rtol=1e-3)  # the gradient passed through
