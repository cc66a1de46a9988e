from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from tpcompile.check import check
from tpcompile.errors import UsageError
from tpcompile.results import LimitResult, SimulationResult
from tpcompile.simulate import simulate

STEPS, N, NAMES = 2, 3, ("a", "b")


def base() -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    kernels = torch.randn(2, STEPS + 1, N, 8, generator=g, dtype=torch.float64)
    return {
        "outputs": torch.randn(STEPS + 1, N, 1, generator=g, dtype=torch.float64),
        "loss": torch.rand(STEPS + 1, generator=g, dtype=torch.float64),
        **dict(zip(NAMES, kernels @ kernels.mT / 8, strict=True)),
    }


def fields(values: dict[str, torch.Tensor], error: float = 0.0) -> dict[str, Any]:
    return {
        "outputs": values["outputs"],
        "outputs_stderr": torch.full_like(values["outputs"], error),
        "loss": values["loss"],
        "loss_stderr": torch.full_like(values["loss"], error),
        "activations": NAMES,
        "kernels": {name: values[name] for name in NAMES},
        "kernels_stderr": {name: torch.full_like(values[name], error) for name in NAMES},
        "feature_changes": {name: torch.zeros(STEPS + 1, N) for name in NAMES},
    }


@dataclass
class Fake:
    """Finite widths that approach the truth as the theory says, and a limit that may be wrong."""

    wrong: float = 0.0
    rate: float = 0.5
    error: float = 0.0
    random_output: bool = False
    calls: list[Any] = field(default_factory=list)

    def evaluate(self, **options: Any) -> LimitResult:
        self.calls.append(options)
        g = torch.Generator().manual_seed(99)
        values = {
            k: v + self.wrong + self.error * torch.randn(v.shape, generator=g, dtype=v.dtype) for k, v in base().items()
        }
        cov = None
        if self.random_output and options.get("output_init") != "zero":
            cov = torch.eye(N, dtype=torch.float64).expand(STEPS + 1, N, N)
        return LimitResult(**fields(values, self.error), evaluator="particles", replicas=8, outputs_cov=cov)

    def simulate(self, width: int, seed: int = 0, **options: Any) -> SimulationResult:
        self.calls.append((width, seed, options))
        g = torch.Generator().manual_seed(seed)

        def draw(value: torch.Tensor) -> torch.Tensor:
            noise = torch.randn(value.shape, generator=g, dtype=value.dtype)
            if value.ndim == 3 and value.shape[1] == value.shape[2]:
                noise = (noise + noise.mT) / 2
            return value + 2 / width + noise * width**-self.rate

        return SimulationResult(**fields({k: draw(v) for k, v in base().items()}), width=width, seed=seed)


@pytest.mark.parametrize("error", [0.0, 1e-3])
def test_a_right_limit_passes(error):
    done = []
    report = check(Fake(error=error), seeds=6, progress=lambda i, n: done.append((i, n)))
    assert report.passed, str(report)
    assert [q.name for q in report.quantities] == ["outputs", "loss", "kernel a", "kernel b"]
    assert report.comparisons == 9 + 3 + 18 + 18  # kernels: the upper triangle
    outputs = report.quantities[0]
    assert outputs.slope is not None
    assert outputs.slope.slope == pytest.approx(-0.5, abs=0.25)
    assert outputs.rows[0].width == 256
    assert outputs.rows[0].distance == pytest.approx(1 / 16, rel=0.4)
    assert report.quantities[1].slope is None
    assert done[-1] == (18, 18)
    text = str(report)
    assert "Bonferroni" in text
    assert "n = 1024" in text
    assert json.loads(json.dumps(report.to_dict(), allow_nan=False))["passed"] is True


def test_many_right_limits_pass():
    fake = Fake(error=1e-3)
    passed = [check(fake, seeds=4, seed=1000 * s).passed for s in range(40)]
    assert sum(passed) >= 38  # wrong with probability 2 * 0.01 at most


def test_a_wrong_limit_fails():
    report = check(Fake(wrong=0.3), seeds=6)
    assert not report.passed
    assert any("standard errors" in failure for failure in report.failures)
    assert any("n^-0.5" in failure for failure in report.failures)
    assert "FAILED" in str(report)


def test_a_wrong_rate_fails():
    report = check(Fake(rate=0.1), widths=(64, 256, 1024), seeds=16)
    assert not report.passed
    assert "falls as n^" in report.failures[0]


def test_random_output_is_conditioned():
    fake = Fake(random_output=True)
    report = check(fake, widths=(64, 128), seeds=2, particles=100)
    assert fake.calls[:2] == [{"particles": 100}, {"output_init": "zero", "particles": 100}]
    assert all(call[2] == {"output_init": "zero"} for call in fake.calls[2:])
    assert "conditioned on a zero output" in report.notes[0]


def test_given_limit_and_distinct_seeds():
    fake = Fake()
    limit = fake.evaluate()
    fake.calls.clear()
    report = check(fake, widths=(64, 128, 256), seeds=3, limit=limit, powers=(1, 2), seed=5)
    assert len(fake.calls) == 9
    assert sorted(call[1] for call in fake.calls) == list(range(5, 14))
    assert report.quantities[0].misfit is None


def test_refusals():
    with pytest.raises(UsageError, match="too few"):
        check(Fake(), widths=(64, 128), powers=(1, 2))
    with pytest.raises(UsageError, match="two seeds"):
        check(Fake(), seeds=1)


def test_a_real_network_at_initialisation():
    """The kernel of a linear layer is the Gram matrix of its inputs, at every width in the mean."""
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8]])

    def make(n: int) -> nn.Module:
        model = nn.Sequential(nn.Linear(2, n, bias=False), nn.Linear(n, 1, bias=False))
        for layer in model:
            assert isinstance(layer, nn.Linear)
            nn.init.normal_(layer.weight, std=1 / (n if layer.out_features == 1 else 1))
        return model

    class Compiled:
        def evaluate(self, **options: Any) -> LimitResult:
            gram, zeros = (x @ x.T).double()[None], torch.zeros(1, 2, 1, dtype=torch.float64)
            return LimitResult(
                outputs=zeros,
                outputs_stderr=zeros,
                activations=("0",),
                kernels={"0": gram},
                kernels_stderr={"0": 0 * gram},
                feature_changes={"0": torch.zeros(1, 2)},
                evaluator="exact",
            )

        def simulate(self, width: int, seed: int = 0, **options: Any) -> SimulationResult:
            return simulate(make, x, width=width, seed=seed, activations=["0"], **options)

    report = check(Compiled(), widths=(64, 128, 256), seeds=16)
    assert report.passed, str(report)
    assert math.isfinite(report.quantities[0].worst_z)
