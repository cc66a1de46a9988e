"""The printed program: Ẑ and Ż as theory section 2 has them, golden texts, and every instruction in words."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from rich.console import Console
from zoo import Tied, cases, data, mlp, trained

import tpcompile as tp
from tpcompile.analysis.products import products
from tpcompile.compiled import Compiled
from tpcompile.errors import UsageError
from tpcompile.ir import MatMul
from tpcompile.report.graph import graph_dict, graph_dot
from tpcompile.report.inspect import find_value, program_text, summary, summary_dict
from tpcompile.userfile import user_file

GOLDEN = Path(__file__).parent / "golden"
X, Y = data()


def compiled_model(name: str) -> Compiled:
    with user_file(f"{GOLDEN / 'models.py'}:{name}") as setup:
        return tp.compile(setup.make, **setup.arguments)


@pytest.fixture(scope="module")
def mup() -> Compiled:
    return compiled_model("mup")


@pytest.fixture(scope="module")
def standard() -> Compiled:
    return compiled_model("standard")


def golden(name: str, text: str) -> None:
    """Compare with ``golden/<name>``; TPCOMPILE_GOLDEN=write writes it anew."""
    path = GOLDEN / name
    if os.environ.get("TPCOMPILE_GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")


def test_golden_of_maximal_update(mup: Compiled) -> None:
    golden("mup_mlp.inspect.txt", program_text(mup))


def test_golden_of_the_raw_text(mup: Compiled) -> None:
    golden("mup_mlp.program.txt", tp.ir.format_program(mup.program, data=False))


def test_golden_of_the_kernel_regime(standard: Compiled) -> None:
    golden("standard_mlp.inspect.txt", program_text(standard))


def test_responses_of_one_step(mup: Compiled) -> None:
    """Forward: nothing before it. Backward: zero by the readout's sign. Forward again: x_1 contains W^T dh."""
    forward, backward, again = products(mup.program).values()
    assert (forward.transpose, backward.transpose, again.transpose) == (False, True, False)
    assert forward.responses == ()
    (term,) = backward.responses
    assert term.product is forward.node
    assert "4.weight" in term.odd
    assert not backward.has_response
    (term,) = again.responses
    assert term.product is backward.node
    assert term.y is backward.x
    assert not term.odd
    assert again.family == (forward.node,)


def test_response_of_a_tied_matrix_in_one_pass() -> None:
    compiled = tp.compile(trained(Tied), X, X, F.mse_loss, steps=1)
    first, second, *_ = products(compiled.program).values()
    assert not first.has_response
    assert second.has_response  # W^T φ(W x) depends on W x
    assert second.responses[0].y is first.x


@pytest.mark.parametrize("name", ["mup tanh", "widths", "tied", "recurrent", "residual"])
def test_zero_responses_are_zero_on_particles(name: str) -> None:
    """Dropping the response terms changes the limit exactly where the analysis says that there are some."""
    case = cases()[name]
    for steps in (0, 1, 2):
        compiled = tp.compile(case.make, case.inputs, case.targets, case.loss, steps=steps)
        live = any(p.has_response for p in products(compiled.program).values())
        settings = {"particles": 4096, "replicas": 1, "extrapolate": False}
        whole, without = compiled.evaluate(**settings), compiled.evaluate(**settings, dot=False)
        change = max(float((whole.kernels[a] - without.kernels[a]).abs().max()) for a in compiled.activations)
        change = max(change, float((whole.outputs - without.outputs).abs().max()))
        assert (change > 0.003) == live, (steps, change, live)


def test_scale_of_a_rectangular_matrix() -> None:
    """Widths n, 2n, 4n: the contracted axis counts, forward and backward."""
    case = cases()["widths"]
    compiled = tp.compile(case.make, X, Y, F.mse_loss, steps=1)
    found = {(p.parameter, p.transpose): p for p in products(compiled.program).values()}
    for (_, transpose), p in found.items():
        rows, columns = (float(d.ratio) for d in p.matrix.dims)  # type: ignore[union-attr]
        law = p.matrix.op.law  # type: ignore[attr-defined]
        assert p.scale == pytest.approx(law.std**2 * (rows if transpose else columns))


@pytest.mark.parametrize("name", list(cases()))
def test_every_program_prints(name: str) -> None:
    case = cases()[name]
    steps = case.steps if isinstance(case.inputs, list) else 1
    compiled = tp.compile(case.make, case.inputs, case.targets, case.loss, steps=steps)
    text = program_text(compiled)
    for label in compiled.program.names().values():
        assert f"\n{label} " in text
    assert text.count("Z = Ẑ + Ż of") == sum(isinstance(node.op, MatMul) for node in compiled.program.nodes)
    assert len(graph_dict(compiled.program)["values"]) == len(compiled.program)


def test_a_step_and_a_value(mup: Compiled) -> None:
    text = program_text(mup, step=1)
    assert "step 1" in text
    assert "@ module '1', step 0" not in text
    assert "loss/1 = " in text
    assert "loss/0 = " not in text
    history = program_text(mup, value="%8")
    assert "%9 " not in history
    assert "%8 is used by %9" in history
    assert find_value(mup.program, "loss/1") is mup.program.outputs["loss/1"].limit
    with pytest.raises(UsageError, match="no step 2"):
        program_text(mup, step=2)


def test_gaussian_scalars_are_named(standard: Compiled) -> None:
    assert "n^(-1/2) Σ_α" in program_text(standard)
    assert "Gaussian scalar" in program_text(standard)


def test_summary_has_powers_of_n() -> None:
    compiled = tp.compile(cases()["grouped"].make, X, Y, F.mse_loss, steps=1)
    rows = {row["name"]: row for row in summary_dict(compiled)["parameters"]}
    assert rows["4.weight"]["exponent"] == "-1"
    assert rows["4.weight"]["learning_rate_exponent"] == "-1"
    assert rows["0.weight"]["learning_rate_exponent"] == "1"
    assert rows["0.weight"]["learning_rate"] == pytest.approx(0.3)
    console = Console(width=120, record=True, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    console.print(summary(compiled))
    text = console.export_text()
    assert "[n, 4]" in text
    assert "Values by step" in text


def test_graph_has_every_value(mup: Compiled) -> None:
    text = graph_dot(mup.program)
    assert text.count(" [label=") == len(mup.program) + len(mup.program.outputs)
    assert text.count(" -> ") == mup.program.graph().number_of_edges()


def test_programs_are_the_same_every_time() -> None:
    torch.manual_seed(1)
    first = str(tp.compile(mlp("tanh", 2), X, Y, F.mse_loss, steps=1).program)
    torch.manual_seed(2)
    assert str(tp.compile(mlp("tanh", 2), X, Y, F.mse_loss, steps=1).program) == first
