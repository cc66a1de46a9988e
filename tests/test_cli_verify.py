"""``tpcompile verify`` and ``tpcompile mup``: tables, JSON, pages and exit codes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tpcompile.cli import main

MODEL = """
import torch
import torch.nn.functional as F
from torch import nn

inputs = torch.randn(3, 2, generator=torch.Generator().manual_seed(0))
targets = torch.ones(3, 1)
loss = F.mse_loss
steps = 2


def make(width, power=-1.0):
    model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh(), nn.Linear(width, 1))
    return model, torch.optim.SGD(model.parameters(), lr=0.1 * width**power)


def wild(width):
    return make(width, 0.0)
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.py"
    path.write_text(MODEL)
    return path


def test_a_good_verdict_exits_with_zero(file, capsys, tmp_path):
    page = tmp_path / "report.html"
    assert main(["verify", f"{file}:make", "--html", str(page)]) == 0
    out = capsys.readouterr().out
    assert "verdict: kernel regime" in out
    assert "2.weight" in out
    assert "\x1b[" not in out
    assert "kernel regime" in page.read_text()


def test_advice_can_be_left_out(file, capsys):
    assert main(["verify", f"{file}:wild", "--no-advice", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["advice"] == []
    assert main(["verify", f"{file}:wild", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["advice"]


def test_a_bad_verdict_exits_with_one(file, capsys):
    assert main(["verify", f"{file}:wild", "--json"]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["verdict"] == "unstable"
    assert facts["first_problem"]


def test_a_verdict_can_be_required(file, capsys):
    assert main(["verify", f"{file}:make", "--require", "maximal update"]) == 1
    assert main(["verify", f"{file}:make", "--require", "kernel regime"]) == 0


def test_rules_are_printed_and_written(file, capsys, tmp_path):
    out = tmp_path / "rules.json"
    assert main(["mup", f"{file}:make", "--out", str(out)]) == 0
    assert "maximal update" in capsys.readouterr().out
    rules = json.loads(out.read_text())
    assert (rules["2.weight"]["init"], rules["2.weight"]["lr"]) == ("-1/2", "0")
    assert (rules["4.weight"]["init"], rules["4.weight"]["lr"]) == ("-1", "-1")


@pytest.mark.parametrize("arguments", [["--steps", "0"], ["--loss", "no_loss"], ["--inputs", "missing.npz"]])
def test_bad_input_is_one_line(file, capsys, arguments):
    assert main(["verify", f"{file}:make", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_an_empirical_check_stands_beside_the_exponents(file, capsys, tmp_path):
    picture = tmp_path / "check.png"
    arguments = ["--empirical", "--train-widths", "64,256", "--seeds", "2", "--steps", "1"]
    assert main(["verify", f"{file}:make", *arguments, "--plot", str(picture)]) == 0
    out = capsys.readouterr().out
    assert "empirical coordinate check: widths 64 to 256, 2 seeds" in out
    assert picture.read_bytes()[:4] == b"\x89PNG"
    assert main(["verify", f"{file}:make", *arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["empirical"]
    assert {"quantity", "name", "step", "exact", "slope", "stderr", "agree"} == set(rows[0])
    assert main(["verify", f"{file}:make", "--empirical", "--train-widths", "64"]) == 2
    assert "two widths" in capsys.readouterr().err
