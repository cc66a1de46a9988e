"""``tpcompile kernel``: what it prints and writes is what ``tp.kernel`` gives."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_cli import MODEL, fails, run

import tpcompile as tp

SAMPLED = """
import torch
from torch import nn

inputs = torch.eye(3)


def make(width):
    first = nn.Linear(3, width)
    nn.init.trunc_normal_(first.weight)
    return nn.Sequential(first, nn.ReLU(), nn.Linear(width, 1))
"""


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    return str(path)


def expected(path: str, name: str = "bare") -> tuple[tp.Kernel, torch.Tensor, torch.Tensor]:
    spec = importlib.util.spec_from_file_location("net_of_test", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return tp.kernel(getattr(module, name), module.inputs[0]), module.inputs.double(), module.test_inputs.double()


def test_tables(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "kernel", f"{model}:bare")
    assert (code, err) == (0, "")
    kernel, x, _ = expected(model)
    for text in ("Covariance (NNGP), shape (2, 2)", "Tangent kernel (NTK)", "Expectations", "1e-10"):
        assert text in out
    assert f"{float(kernel.nngp(x)[0, 1]):.5g}" in out
    code, out, err = run(capsys, "kernel", f"{model}:make", "--which", "nngp", "--diagonal")
    assert (code, err) == (0, "")
    assert "in units of n^-1, shape (2,)" in out
    assert "Tangent" not in out


def test_json(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kernel, x, xs = expected(model)
    code, out, err = run(capsys, "kernel", f"{model}:bare", "--json", "--cross")
    assert (code, err) == (0, "")
    facts = json.loads(out)
    for name, value in kernel(xs, x)._asdict().items():
        np.testing.assert_allclose(facts[name], value, rtol=1e-9)
        assert facts[f"{name}_exponent"] == "0"
        assert facts[f"{name}_stderr"] is None
    np.savez(tmp_path / "data.npz", inputs=np.ones((5, 2), np.float32))
    for option in ("--data", "--inputs"):
        _, out, _ = run(
            capsys, "kernel", f"{model}:bare", "--json", option, str(tmp_path / "data.npz"), "--which", "ntk"
        )
        assert np.shape(json.loads(out)["ntk"]) == (5, 5)
        assert "nngp" not in json.loads(out)
    assert "test_inputs" in fails(capsys, "kernel", f"{model}:bare", "--cross", "--data", str(tmp_path / "data.npz"))


def test_learning_rates_scale_the_tangent_kernel(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = [json.loads(run(capsys, "kernel", f"{model}:bare", "--json", "--lr", lr)[1])["ntk"] for lr in ("1", "0.5")]
    np.testing.assert_allclose(found[1], np.multiply(0.5, found[0]))


def test_files(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    kernel, x, _ = expected(model)
    code, out, _ = run(capsys, "kernel", f"{model}:bare", "--out", str(tmp_path / "k.npz"), "--dtype", "float32")
    assert code == 0
    assert "wrote" in out
    with np.load(tmp_path / "k.npz", allow_pickle=False) as found:
        assert sorted(found.files) == ["nngp", "nngp_exponent", "ntk", "ntk_exponent"]
        assert found["ntk"].dtype == np.float32
        np.testing.assert_allclose(found["ntk"], kernel.ntk(x), rtol=1e-5)
        assert str(found["ntk_exponent"]) == "0"
    pytest.importorskip("matplotlib")
    code, out, _ = run(capsys, "kernel", f"{model}:bare", "--plot", str(tmp_path / "k.png"), "--json")
    assert code == 0
    assert (tmp_path / "k.png").read_bytes().startswith(b"\x89PNG")
    assert run(capsys, "kernel", f"{model}:bare", "--plot", str(tmp_path / "c.png"), "--cross")[0] == 0


def test_on_disk(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    zarr = pytest.importorskip("zarr")
    kernel, x, _ = expected(model)
    command = ("kernel", f"{model}:bare", "--out", str(tmp_path / "k.zarr"), "--block", "1", "--json")
    for _ in range(2):  # the second time nothing is left to do
        code, out, err = run(capsys, *command)
        assert (code, err) == (0, "")
        facts = json.loads(out)
        assert facts["ntk_shape"] == [2, 2]
        assert "ntk" not in facts
        assert facts["out"].endswith("k.zarr")
    group = zarr.open_group(tmp_path / "k.zarr", mode="r")
    np.testing.assert_allclose(group["nngp"][...], kernel.nngp(x), rtol=1e-9)  # type: ignore[index]
    assert "another kernel matrix: block differ" in fails(capsys, *command[:4], "--block", "2")


def test_sampled_expectations_have_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "sampled.py").write_text(SAMPLED)
    command = ("kernel", f"{tmp_path / 'sampled.py'}:make", "--which", "nngp", "--samples", "256")
    facts = json.loads(run(capsys, *command, "--json")[1])
    assert facts["nngp_exponent"] == "0"
    assert 0 < np.max(facts["nngp_stderr"]) < 0.1
    facts = json.loads(run(capsys, *command, "--json", "--replicas", "1")[1])
    assert facts["nngp_stderr"][0][0] is None
    code, out, _ = run(capsys, *command)
    assert code == 0
    assert "±" in out
    assert "quasi-Monte Carlo" in out


def test_a_matrix_that_does_not_fit(
    model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tpcompile.cli.kernel.available", lambda: 10.0)
    assert "--out FILE.zarr" in fails(capsys, "kernel", f"{model}:bare")
