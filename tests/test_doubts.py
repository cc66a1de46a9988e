"""Means that are zero by their number, or seem so: both cases are followed and reported."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from test_verify import X, Y
from torch import nn
from typer.testing import CliRunner

import tpcompile as tp
from tpcompile.cli.app import app

CENTRE = (2 * math.pi) ** -0.5  # the mean of a relu of a standard normal


class Centred(nn.Module):
    """The sum over the width of an activation less a number, times a power of the width."""

    def __init__(self, n: int, number: float, power: float, buffer: bool = False) -> None:
        super().__init__()
        self.first = nn.Linear(4, n, bias=False)
        nn.init.normal_(self.first.weight)
        self.scale, self.factor = nn.Parameter(torch.ones(1)), n**power
        self.number: torch.Tensor | float = number
        if buffer:
            del self.number
            self.register_buffer("number", torch.tensor(number))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = torch.relu(self.first(F.normalize(x, dim=-1)))
        return self.scale * self.factor * (h - self.number).sum(-1, keepdim=True)


def report(number: float, power: float = -0.5, buffer: bool = False) -> tp.Report:
    def make(n: int):
        model = Centred(n, number, power, buffer)
        return model, torch.optim.SGD([{"params": [model.first.weight]}, {"params": [model.scale]}], lr=0.1)

    return tp.verify(make, X, Y, F.mse_loss, steps=1, advice=False)


@pytest.mark.parametrize("buffer", [False, True])
def test_a_number_that_is_the_mean(buffer):
    found = report(CENTRE, buffer=buffer)
    assert found.size("outputs").either == (Fraction(1, 2), 0)
    assert str(found.size("outputs")) == "1/2 or 0"
    with pytest.raises(tp.errors.UndeterminedLimitError):
        found.exponent("outputs")
    assert found.verdict == "undecided"
    assert found.cases["if that mean is not zero"] == "unstable"
    assert found.cases["if it is zero"] != "unstable"
    assert "zero or too small to tell" in str(found.first_problem)
    assert found.to_dict()["values"]["outputs"][0] == "1/2 or 0"
    assert "1/2 or 0" in str(found)


@pytest.mark.parametrize("number", [0.39, 0.45, 0.0])
def test_another_number_is_decided(number):
    found = report(number)
    assert found.exponent("outputs") == Fraction(1, 2)
    assert not found.cases
    assert found.verdict == "unstable"


def test_a_verdict_that_is_the_same_in_both_cases_is_given():
    found = report(CENTRE, power=0.5)
    assert found.size("outputs").either == (Fraction(3, 2), 1)
    assert found.verdict == "unstable"


def test_no_rules_are_derived_in_doubt():
    def make(n: int):
        model = Centred(n, CENTRE, -1.0)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    with pytest.raises(tp.errors.UndeterminedLimitError, match="zero or too small to tell"):
        tp.mup(make, X, Y, F.mse_loss, steps=1)


def test_the_command_line_says_both_and_fails(tmp_path):
    path = tmp_path / "setup.py"
    path.write_text(
        "import torch, torch.nn.functional as F\n"
        "from torch import nn\n"
        "inputs, targets = torch.ones(2, 4), torch.ones(2, 1)\n"
        "loss, steps = F.mse_loss, 1\n"
        "class Model(nn.Module):\n"
        "    def __init__(self, n):\n"
        "        super().__init__()\n"
        "        self.a, self.n = nn.Linear(4, n, bias=False), n\n"
        "        nn.init.normal_(self.a.weight, std=0.5)\n"
        "        self.scale = nn.Parameter(torch.ones(1))\n"
        "    def forward(self, x):\n"
        "        h = torch.relu(self.a(x)) - 0.3989422804014327\n"
        "        return self.scale * self.n**-0.5 * h.sum(-1, keepdim=True)\n"
        "def make(n):\n"
        "    model = Model(n)\n"
        "    return model, torch.optim.SGD(model.parameters(), lr=0.1)\n"
    )
    page = tmp_path / "page.html"
    arguments = ["verify", f"{path}:make", "--no-advice", "--json", "--html", str(page)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1, result.output
    found = json.loads(result.stdout)
    assert found["verdict"] == "undecided"
    assert set(found["cases"]) == {"if that mean is not zero", "if it is zero"}
    assert found["values"]["outputs"][0] == "1/2 or 0"
    assert "1/2 or 0" in page.read_text()
