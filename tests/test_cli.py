"""The command line: what it prints, what it writes, and one line for everything that goes wrong."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import tpcompile as tp
from tpcompile.cli import app, main

MODEL = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self, width, std, scale=1.0):
        super().__init__()
        self.scale = scale
        self.first = nn.Linear(2, width, bias=False)
        self.readout = nn.Linear(width, 1, bias=False)
        nn.init.normal_(self.first.weight)
        nn.init.normal_(self.readout.weight, std=std)

    def forward(self, x):
        return self.scale * self.readout(torch.tanh(self.first(x)))


def make(width):
    model = Net(width, std=1 / width)
    groups = [
        {"params": [model.first.weight], "lr": 0.2 * width},
        {"params": [model.readout.weight], "lr": 0.2 / width},
    ]
    return model, torch.optim.SGD(groups, lr=0.2)


def bare(width):
    return Net(width, std=1.0, scale=width**-0.5)


def broken(width):
    return undefined_name


not_callable = 3
inputs = torch.tensor([[1.0, 0.0], [0.6, -0.8]])
targets = torch.tensor([[1.0], [-1.0]])
test_inputs = torch.tensor([[0.0, 1.0]])
loss = F.mse_loss
steps = 2
"""
QUICK = ("--particles", "256", "--replicas", "2")


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "net.py"
    path.write_text(MODEL)
    return str(path)


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    code = main(list(args))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def fails(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    code, out, err = run(capsys, *args)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_compile_prints_tables(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "compile", f"{model}:make", *QUICK, "--simulate", "16,32", "--ntk")
    assert (code, err) == (0, "")
    for text in ("infinite width", "Loss", "Outputs", "Test outputs", "Feature learning", "n = 32", "Tangent kernel"):
        assert text in out
    assert "first.weight" in out


def test_json_is_the_result(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saved = tmp_path / "run.npz"
    code, out, _ = run(
        capsys, "compile", f"{model}:make", *QUICK, "--json", "--simulate", "16", "--save", str(saved), "--ntk"
    )
    assert code == 0
    facts = json.loads(out)
    result = tp.load_result(saved)
    assert isinstance(result, tp.LimitResult)
    assert torch.equal(torch.tensor(facts["outputs"], dtype=torch.float64), result.outputs)
    assert facts["steps"] == 2
    assert facts["simulations"][0]["width"] == 16
    assert np.allclose(facts["ntk"], result.ntk())


def test_plot_writes_a_figure(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    code, out, _ = run(capsys, "compile", f"{model}:make", *QUICK, "--plot", str(tmp_path / "a.png"))
    assert code == 0
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    assert "n = 64" in out  # finite runs are drawn over the limit unless told otherwise
    assert "cannot write" in fails(capsys, "compile", f"{model}:make", *QUICK, "--plot", str(tmp_path / "a.xyz"))


def test_options_override_the_file(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    np.savez(tmp_path / "data.npz", inputs=np.ones((3, 2), np.float32), targets=np.zeros((3, 1), np.float32))
    options = ("--inputs", str(tmp_path / "data.npz"), "--steps", "1", "--loss", "l1_loss", "--lr", "0.1", "--json")
    code, out, err = run(
        capsys, "compile", f"{model}:bare", *QUICK, *options, "--dtype", "float32", "--widths", "8,16,32"
    )
    assert (code, err) == (0, "")
    facts = json.loads(out)
    assert np.shape(facts["outputs"]) == (2, 3, 1)
    assert facts["test_outputs"] is None
    torch.save(torch.ones(4, 2), tmp_path / "data.pt")
    (tmp_path / "plain.py").write_text(MODEL.partition("not_callable")[0])
    data = str(tmp_path / "data.pt")
    code, out, err = run(capsys, "compile", f"{tmp_path / 'plain.py'}:make", *QUICK, "--inputs", data, "--json")
    assert (code, err) == (0, "")
    assert np.shape(json.loads(out)["outputs"]) == (1, 4, 1)


def test_inspect(model: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, out, err = run(capsys, "inspect", f"{model}:make")
    assert (code, err) == (0, "")
    assert "tanh(Z%" in out
    code, out, _ = run(capsys, "inspect", f"{model}:make", "--text")
    assert str(tp.ir.parse(out)) == out
    code, out, _ = run(capsys, "inspect", f"{model}:make", "--summary")
    assert "first.weight" in out
    assert "[n, 2]" in out
    code, out, _ = run(capsys, "inspect", f"{model}:make", "--json")
    facts = json.loads(out)
    assert facts["summary"]["values"] == len(facts["values"])
    dot = tmp_path / "program.dot"
    code, out, _ = run(capsys, "inspect", f"{model}:make", "--graph", str(dot))
    assert (code, out) == (0, "")
    assert dot.read_text().startswith("digraph")
    code, out, _ = run(capsys, "inspect", f"{model}:make", "--value", "loss/1")
    assert code == 0
    assert "is used by" in out


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["compile", "{}/none.py:make"], ["none.py", "no file"]),
        (["compile", "{}/net.py:mak"], ["'mak'", "did you mean 'make'?"]),
        (["compile", "{}/net.py:not_callable"], ["int", "function of the width"]),
        (["compile", "{}/net.py:broken"], ["NameError", "undefined_name", "net.py:34"]),
        (["compile", "{}/fails.py:make"], ["ValueError", "on import", "fails.py:3"]),
        (["compile", "{}/syntax.py:make"], ["SyntaxError", "syntax.py:2"]),
        (["compile", "{}/exits.py:make"], ["SystemExit", "exits.py:1"]),
        (["compile", "{}/bare.py:make"], ["inputs", "--inputs"]),
        (["compile", "{}/net.txt:make"], ["no Python file"]),
        (["compile", "{}/net.py:make", "--lr", "0.1"], ["optimizer"]),
        (["compile", "{}/net.py:bare"], ["needs an optimizer"]),
        (["compile", "{}/net.py:make", "--loss", "mse_los"], ["mse_los", "did you mean 'mse_loss'?"]),
        (["compile", "{}/net.py:make", "--loss", "mse"], ["'mse'", "did you mean 'mse_loss'?"]),
        (["compile", "{}/net.py:make", "--loss", "zzz"], ["'zzz'", "cross_entropy"]),
        (["compile", "{}/net.py:make", "--steps", "-1"], ["steps"]),
        (["compile", "{}/net.py:make", "--steps", "two"], ["--steps"]),
        (["compile", "{}/net.py:make", "--particles", "3"], ["particles"]),
        (["compile", "{}/net.py:make", "--dtype", "int8"], ["int8"]),
        (["compile", "{}/net.py:make", "--memory", "lots"], ["memory"]),
        (["compile", "{}/net.py:make", "--simulate", "16,x"], ["--simulate", "16,x"]),
        (["compile", "{}/net.py:make", "--widths", "16"], ["widths"]),
        (["compile", "{}/net.py:make", "--inputs", "{}/none.npz"], ["none.npz"]),
        (["compile", "{}/net.py:make", "--inputs", "{}/net.py"], ["net.py", "cannot read"]),
        (["compile", "{}/net.py:make", "--plot", "{}/no/a.png"], ["folder does not exist"]),
        (["compile", "{}/net.py:make", "--save", "{}"], ["it is a folder"]),
        (["kernel", "{}/bare.py:make"], ["inputs", "--inputs"]),
        (["kernel", "{}/net.py:bare", "--which", "nnpg"], ["nnpg"]),
        (["kernel", "{}/net.py:bare", "--out", "{}/k.csv"], [".npz or .zarr"]),
        (["kernel", "{}/net.py:bare", "--out", "{}/no/k.zarr"], ["folder does not exist"]),
        (["kernel", "{}/net.py:bare", "--plot", "{}/k.xyz"], ["k.xyz"]),
        (["kernel", "{}/net.py:bare", "--diagonal", "--cross"], ["exclude"]),
        (["kernel", "{}/net.py:bare", "--block", "0"], ["block"]),
        (["kernel", "{}/net.py:bare", "--replicas", "0"], ["replicas"]),
        (["kernel", "{}/net.py:bare", "--data", "{}/none.npz"], ["none.npz"]),
        (["kernel", "{}/net.py:make", "--lr", "0.1"], ["optimizer"]),
        (["kernel", "{}/empty.py:make"], ["inputs is empty"]),
        (["kernel", "{}/text.py:make"], ["inputs must be a tensor"]),
        (["inspect", "{}/net.py:make", "--step", "7"], ["no step 7", "0 to 2"]),
        (["inspect", "{}/net.py:make", "--value", "%999"], ["%999", "values are %0 to"]),
        (["inspect", "{}/net.py:make", "--value", "los/1"], ["did you mean 'loss/1'?"]),
        (["inspect", "{}/net.py:make", "--text", "--summary"], ["exclude"]),
        (["compile"], ["FILE.py:make"]),
        (["unknown"], ["unknown"]),
        (["compile", "{}/net.py:make", "--nonsense"], ["--nonsense"]),
        ([], ["command"]),
    ],
    ids=lambda x: " ".join(x).replace("{}/", "") if isinstance(x, list) else "",
)
def test_bad_usage_is_one_line(
    args: list[str], words: list[str], model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "fails.py").write_text("import torch\n\nraise ValueError('on import\\nof two lines')\n")
    (tmp_path / "syntax.py").write_text("x = 1\ndef make(:\n")
    (tmp_path / "exits.py").write_text("raise SystemExit(0)\n")
    (tmp_path / "bare.py").write_text("def make(width): ...\n")
    (tmp_path / "empty.py").write_text(MODEL + "inputs = inputs[:0]\n")
    (tmp_path / "text.py").write_text(MODEL + "inputs = 'images'\n")
    err = fails(capsys, *(arg.replace("{}", str(tmp_path)) for arg in args))
    for word in words:
        assert word in err


def test_the_file_leaves_nothing_behind(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "helper_of_net.py").write_text("value = 1\n")
    Path(model).write_text("import helper_of_net\n" + MODEL)
    before, search = set(sys.modules), list(sys.path)
    assert run(capsys, "inspect", f"{model}:make", "--summary")[0] == 0
    assert sys.path == search
    assert not {"net", "helper_of_net"} & (set(sys.modules) - before)


def test_help_and_version() -> None:
    runner = CliRunner()
    for args, words in [
        (["--help"], ["compile", "inspect", "kernel", "--version"]),
        (["compile", "--help"], ["--particles", "--simulate"]),
        (["inspect", "--help"], ["--summary", "--value"]),
        (["kernel", "--help"], ["--which", "--data", "--out"]),
        (["--version"], [tp.__version__]),
    ]:
        result = runner.invoke(app, args, env={"COLUMNS": "200", "TERM": "dumb"})
        assert result.exit_code == 0
        for word in words:
            assert word in result.output


def test_as_a_module(model: str) -> None:
    command = [sys.executable, "-m", "tpcompile", "compile", f"{model}:make", *QUICK, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["activations"] == ["first"]
    done = subprocess.run([*command, "--loss", "none"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
