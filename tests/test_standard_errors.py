"""Standard errors of metrics (and of covariances and changes of features): as large as the errors, and kept on disk."""

from __future__ import annotations

import json
import math

import pytest
import torch
import torch.nn.functional as F
from zoo import data, mlp

import tpcompile as tp
from tpcompile.report.tables import result_dict
from tpcompile.results import LimitResult, load_result

X, Y = data()
REPLICAS = 12
NAMES = ("feature_change", "kernel_change", "start_alignment", "loss")


def runs(parametrization: str) -> list[LimitResult]:
    compiled = tp.compile(mlp("relu", 2, parametrization), X, Y, F.mse_loss, steps=2, test_inputs=X[:1] + 0.5)
    return [compiled.evaluate(particles=256, replicas=REPLICAS, seed=seed, ensemble=8) for seed in range(4)]


@pytest.fixture(scope="module")
def found() -> dict[str, list[LimitResult]]:
    return {name: runs(name) for name in ("ntk", "mup")}


def value_and_error(result: LimitResult, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    metrics = result.metrics()
    if name == "loss":
        return metrics.function[name], metrics.function_stderr[name]
    activation = result.activations[-1]
    return metrics[activation][name], metrics.activations_stderr[activation][name]


@pytest.mark.parametrize("name", NAMES)
def test_errors_are_as_large_as_they_say(found, name):
    pairs = [value_and_error(result, name) for result in found["mup"]]
    values, errors = (torch.stack(x) for x in zip(*pairs, strict=True))
    scale = errors.square().mean(0).sqrt()
    noisy = scale > 1e-9
    assert noisy.any()
    assert (values.std(0)[~noisy] < 1e-8).all()
    z = (values - values.mean(0))[:, noisy] / scale[noisy]
    spread = float(z.square().sum(0).div(len(pairs) - 1).mean().sqrt())  # one in expectation, four seeds
    assert 0.4 < spread < 2


def test_the_jackknife_of_a_mean_is_its_standard_error(found):
    result = found["mup"][0]
    torch.testing.assert_close(result.metrics().function_stderr["loss"], result.loss_stderr)


def test_saved_shown_and_written(found, tmp_path):
    for result in (found["ntk"][0], found["mup"][0]):
        result.save(tmp_path / "run", ntk=False)
        loaded = load_result(tmp_path / "run")
        assert isinstance(loaded, LimitResult)
        for name in ("outputs_cov_stderr", "test_outputs_cov_stderr"):
            saved, read = getattr(result, name), getattr(loaded, name)
            assert (saved is None) == (read is None) == (result is found["mup"][0])
            assert saved is None or torch.equal(saved, read)
        assert result.metrics().to_dict() == loaded.metrics().to_dict()
        assert str(result.metrics()) == str(loaded.metrics())
        for name in result.activations:
            assert torch.equal(result.feature_change_stderr(name), loaded.feature_change_stderr(name))
        content = json.loads(json.dumps(result_dict(result), allow_nan=False))
        assert set(content["feature_changes_stderr"]) == set(result.activations)
        assert content["metrics"]["activations_stderr"][result.activations[0]]["feature_change"][0] == 0
    assert "(" in str(found["mup"][0].metrics())


def test_exact_results_have_none_and_one_replica_does_not_know():
    compiled = tp.compile(mlp("linear", 2, "ntk"), X, Y, F.mse_loss, steps=1)
    exact = compiled.evaluate(evaluator="exact")
    assert exact.outputs_cov_stderr is not None
    assert not exact.outputs_cov_stderr.any()
    name = exact.activations[0]
    assert not exact.feature_change_stderr(name).any()
    assert not any(x.any() for x in exact.metrics().activations_stderr[name].values())
    single = compiled.evaluate(evaluator="particles", particles=64, replicas=1)
    assert math.isnan(single.metrics().function_stderr["loss"][0])
