"""A program lowered at a concrete width and run on the model's weights is the model, to rounding."""

from fractions import Fraction

import pytest
import torch
import zoo_layers
from zoo import cases
from zoo_attention import attention_cases, embedding_cases
from zoo_optimizers import optimizer_cases
from zoo_recurrent import recurrent_cases
from zoo_sequences import split_cases

from tpcompile.capture import capture
from tpcompile.evaluate.reference import run
from tpcompile.ir import finish
from tpcompile.lowering.lower import lower
from tpcompile.lowering.request import requests
from tpcompile.simulate import build, seeded, simulate

WIDTH = 24
GROUPS = (cases(), split_cases(), recurrent_cases(), attention_cases(), embedding_cases(), optimizer_cases())
CASES = {name: case for group in GROUPS for name, case in group.items()}
assert len(CASES) == sum(map(len, GROUPS)), "two cases of one name"


@pytest.mark.parametrize("name", CASES)
def test_program_at_a_width_is_the_model(name):
    case = CASES[name]
    captured = capture(case.make, case.inputs, case.targets, case.loss, None, case.steps, case.test_inputs)
    lowered = lower(captured, Fraction(1), width=WIDTH)
    outputs, _ = requests(captured, lowered)
    program = finish(lowered.context.algebra.builder, outputs)
    with seeded(3):
        model, _ = build(case.make, WIDTH)
        weights = {k: v.detach().double() for k, v in model.named_parameters()}
    values = run(program, weights, WIDTH)
    real = simulate(
        case.make, case.inputs, case.targets, case.loss, None, case.steps, case.test_inputs, width=WIDTH, seed=3
    )
    assert real.loss is not None
    for t in range(case.steps + 1):
        found = values[program.outputs[f"outputs/{t}"].terms[0][1]].reshape(real.outputs[t].shape)
        assert torch.allclose(found, real.outputs[t], rtol=1e-5, atol=1e-7), t
        loss = values[program.outputs[f"loss/{t}"].terms[0][1]]
        assert torch.allclose(loss, real.loss[t], rtol=1e-5, atol=1e-7)
        for activation in captured.activations:
            kernel = values[program.outputs[f"kernel/{activation}/{t}/xx"].terms[0][1]]
            n = kernel.shape[0]
            assert torch.allclose(kernel, real.feature_kernel(activation)[t, :n, :n], rtol=1e-5, atol=1e-7)


COUPLED = ("batch norm", "batch norm of images", "variance over the batch")  # no sample has a Jacobian of its own
SEQUENCES = (
    "rnn",
    "gru cell",
    "lstm",
    "fused",
    "heads of size 2",
    "causal sdpa",
    "transformer block",
    "embedding, module",
)
TANGENT = [name for name in (*zoo_layers.setups(), *split_cases(), *SEQUENCES) if name not in COUPLED]


@pytest.mark.parametrize("name", TANGENT)
def test_tangent_kernel_at_a_width_is_that_of_the_model(name):
    case = CASES[name]
    lowered = lower(captured := capture(case.make, case.inputs, tangent=True), Fraction(1), width=WIDTH)
    outputs, _ = requests(captured, lowered)
    program = finish(lowered.context.algebra.builder, outputs)
    with seeded(3):
        model, _ = build(case.make, WIDTH)
        weights = {k: v.detach().double() for k, v in model.named_parameters()}
    values = run(program, weights, WIDTH)
    real = simulate(case.make, case.inputs, width=WIDTH, seed=3).ntk(by_parameter=True)
    assert isinstance(real, dict)
    for parameter, wanted in real.items():
        terms = program.outputs[f"ntk/{parameter}/0"].terms
        found = values[terms[0][1]] if terms else torch.zeros((), dtype=torch.float64)
        assert torch.allclose(found.reshape(-1), wanted[0].reshape(-1), rtol=1e-5, atol=1e-7), parameter
