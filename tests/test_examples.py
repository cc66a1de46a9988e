"""The shipped examples train at finite width, and move their features as their parametrization says."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F

import tpcompile as tp
from tpcompile.results import SimulationResult
from tpcompile.simulate import simulate

EXAMPLES = Path(__file__).parent.parent / "examples"
MUP = ("mup_mlp_digits", "residual_mlp", "tied_rnn")


def load(name: str) -> ModuleType:
    if name.endswith("digits"):
        pytest.importorskip("sklearn")
    if str(EXAMPLES) not in sys.path:
        sys.path.append(str(EXAMPLES))  # examples may use one another, as a command finds them
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def train(name: str, width: int) -> SimulationResult:
    m = load(name)
    return simulate(m.make, m.inputs, m.targets, m.loss, steps=m.steps, test_inputs=m.test_inputs, width=width)


def last_change(result: SimulationResult) -> float:
    return float(result.metrics()[result.activations[-1]]["feature_change"][-1])


@pytest.mark.parametrize("name", [*MUP, "ntk_mlp_digits"])
def test_the_loss_goes_down(name):
    result = train(name, 128)
    assert result.loss is not None
    assert result.loss[-1] < 0.7 * result.loss[0]
    assert result.test_outputs is not None


@pytest.mark.parametrize("name", MUP)
def test_features_move_at_every_width(name):
    small, large = last_change(train(name, 64)), last_change(train(name, 512))
    assert large > 0.3
    assert large / small == pytest.approx(1, abs=0.4)


def test_features_stand_still_in_the_kernel_regime():
    small, large = last_change(train("ntk_mlp_digits", 64)), last_change(train("ntk_mlp_digits", 512))
    assert large < 0.1
    assert large / small == pytest.approx(8**-0.5, rel=0.5)


def test_kernels_classify_digits_in_both_precisions():
    m = load("kernel_digits")
    kernel = tp.kernel(m.make, m.inputs[0])
    means = {}
    for dtype in (torch.float64, torch.float32):
        process = kernel.gp(m.inputs, m.targets, noise=1e-3, dtype=dtype)
        flow = kernel.gradient_flow(m.inputs, m.targets, output_init="zero", dtype=dtype)
        entropy = kernel.gradient_flow(
            m.inputs, m.classes, loss=F.cross_entropy, output_init="zero", outputs=(m.CLASSES,), dtype=dtype
        )
        means[dtype] = [
            process.predict(m.test_inputs, covariance=None).mean,
            flow.predict(m.test_inputs, covariance=None).mean,
            entropy.predict(m.test_inputs, t=m.TIME, covariance=None).mean,
        ]
    for double, single in zip(*means.values(), strict=True):
        assert m.accuracy(double) > 0.9
        assert float((double - single).abs().max()) < 1e-2 * float(double.abs().max())


def test_examples_do_not_need_tpcompile():
    for path in EXAMPLES.glob("*.py"):
        assert "import tpcompile" not in path.read_text()
        assert "from tpcompile" not in path.read_text()
