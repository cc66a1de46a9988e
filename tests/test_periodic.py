"""Long training runs continued from short ones: the same programs, the same numbers, or no continuation at all."""

from __future__ import annotations

import time

import pytest
import torch
import torch.nn.functional as F
from test_exact_linear import assert_equal
from zoo import data, mlp

import tpcompile as tp
from tpcompile import compiled as compilation
from tpcompile.evaluate.exact.histories import find_pairs
from tpcompile.evaluate.plan import Plan
from tpcompile.ir import Program, parse, verify
from tpcompile.lowering.periodic import SHORT, NotPeriodicError, continued, incremental
from tpcompile.lowering.request import name_at, split_name

X, Y = data()
MODELS = {
    "linear": mlp("linear", 3, lr=0.05),
    "tanh": mlp("tanh", 2, lr=0.05),
    "relu, ntk": mlp("relu", 2, "ntk", lr=0.05),
    "gelu, standard": mlp("gelu", 1, "standard", lr=0.05),
    "bias": mlp("tanh", 1, "mean field", lr=0.05, bias=True),
    "weight decay": mlp("tanh", 1, lr=0.05, weight_decay=0.1),
}


def program(make, steps: int, **options) -> Program:
    return tp.compile(make, X, Y, F.mse_loss, steps=steps, **options).program


@pytest.mark.parametrize("name", MODELS)
def test_a_continued_program_is_that_of_all_steps(name):
    total = SHORT + 5
    short, whole = (program(MODELS[name], steps, test_inputs=X[:2]) for steps in (SHORT, total))
    found = continued(short, total)
    verify(found)
    assert str(parse(str(found))) == str(found)
    wanted = continued(whole, total)  # nothing to continue: its instructions in order of the steps
    assert set(found.outputs) == set(whole.outputs)
    if name == "bias":  # sums of four summands are short in one and long in the other
        assert abs(len(found) - len(wanted)) < 0.1 * len(wanted)
    elif name == "weight decay":  # powers of 0.995, rounded
        assert len(found) == len(wanted)
    else:
        assert str(found) == str(wanted)


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"weight_decay": 0.1}], ids=str)
def test_a_continued_program_has_the_same_limit(options, monkeypatch):
    make = mlp("linear", 1, lr=0.05, **options)
    monkeypatch.setattr(compilation, "UNROLLED", 100)
    whole = tp.compile(make, X, Y, F.mse_loss, steps=14)
    monkeypatch.setattr(compilation, "UNROLLED", 10)
    short = tp.compile(make, X, Y, F.mse_loss, steps=14)
    assert short.capture.steps == SHORT
    a, b = whole.evaluate(), short.evaluate()
    assert torch.allclose(a.outputs, b.outputs, atol=1e-9)
    assert torch.allclose(a.ntk(), b.ntk(), atol=1e-9)


def test_what_does_not_repeat_is_compiled_step_by_step():
    make = mlp("linear", 1, lr=0.05, momentum=0.5)  # every step weighs all gradients anew
    with pytest.raises(NotPeriodicError):
        continued(program(make, SHORT), 30)
    compiled = tp.compile(make, X, Y, F.mse_loss, steps=26)
    assert compiled.capture.steps == 26
    assert compiled.evaluate().outputs.shape[0] == 27


def test_a_schedule_is_seen():
    """A loss whose weight changes with the step is traced as it is: the steps are not alike."""
    calls = {16: 0, 32: 0, 64: 0}
    order = iter([width for width in calls for _ in range(SHORT + 1)])

    def loss(out, y):
        width = next(order)
        calls[width] += 1
        return (1 + 0.01 * calls[width]) * F.mse_loss(out, y)

    short = tp.compile(mlp("linear", 1, lr=0.05), X, Y, loss, steps=SHORT).program
    with pytest.raises(NotPeriodicError):
        continued(short, 20)


def test_sums_share_their_beginnings():
    whole = incremental(program(MODELS["bias"], 10))
    assert max(len(node.operands) for node in whole.nodes if node.op.mnemonic == "sum") <= 3


def test_names_of_outputs():
    for name in ("outputs/3", "kernel/a/b.0/12/xz", "change/0/1/x", "ntk/0.weight/4", "loss/0"):
        quantity, step = split_name(name)
        assert name_at(quantity, step) == name
        assert "*" in quantity


def test_a_long_run_equals_the_particles():
    compiled = tp.compile(MODELS["linear"], X, Y, F.mse_loss, steps=40, test_inputs=X[:2])
    assert find_pairs(Plan.of(compiled.program)).products
    exact = compiled.evaluate()
    assert exact.evaluator == "exact"
    assert_equal(exact, compiled.evaluate(evaluator="particles", particles=512, replicas=1))


@pytest.mark.slow
def test_a_thousand_steps_cost_the_same_each():
    """Three hidden layers, a batch of 64: under 60 s in all, and the last 300 steps as fast as the first 300."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 64, generator=generator) / 8
    y = x @ torch.randn(64, 1, generator=generator)
    start = time.perf_counter()
    compiled = tp.compile(mlp("linear", 3, d=64, lr=0.1), x, y, F.mse_loss, steps=1000)
    length = len(compiled.program)
    times: dict[int, float] = {}

    def tick(done: int, total: int) -> None:
        times[done * 100 // length] = time.perf_counter()

    result = compiled.evaluate(progress=tick)
    assert time.perf_counter() - start < 60
    assert result.evaluator == "exact"
    first, last = times[40] - times[10], times[99] - times[69]
    assert last < 2 * first
