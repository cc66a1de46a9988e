"""What is not decided is reported with both cases."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F

import tpcompile as tp

X = torch.tensor([[1.0, -0.5], [0.3, 0.8]])
Y = torch.tensor([[1.0], [-1.0]])


def by_hand(x: torch.Tensor) -> torch.Tensor:
    """A relu of whose parts each jumps: the bound on what flips is pessimistic."""
    return torch.where(x > 0, x, 0 * x)


def test_each_case_of_an_open_value_has_its_verdict():
    make = tp.abc.ntk(2).factory(activation=by_hand)
    report = tp.verify(make, X, Y, F.mse_loss, steps=2, advice=False)
    assert report.verdict == "undecided"
    assert report.cases == {
        "if what is open is as large as its bounds": "unstable",
        "if it is of order one at most": "kernel regime",  # as it is for torch.relu
        "if it vanishes": "trivial",
    }
    assert tp.abc.ntk(2).report(activation=torch.relu).verdict == "kernel regime"
    size = report.change("outputs", 1)
    line = f"the change of outputs at step 1: n^{size.bound} if what its series leaves out does not vanish"
    assert any(line in found for found in report.open_values)
    assert "if it is of order one at most: kernel regime" in str(report)
    facts = json.loads(json.dumps(report.to_dict()))
    assert facts["cases"] == report.cases
    assert facts["open_values"] == list(report.open_values)


def test_nothing_open_has_no_cases():
    report = tp.verify(tp.abc.mup(2).factory(activation=by_hand), X, Y, F.mse_loss, steps=2, advice=False)
    assert report.verdict == "maximal update"
    assert not report.cases
    assert not report.open_values


def test_where_nothing_is_known_there_are_no_cases_but_the_reason():
    make = tp.abc.mup(2).factory(activation=torch.round)
    report = tp.verify(make, X, Y, F.mse_loss, steps=1, advice=False)
    assert report.verdict == "undecided"
    assert not report.cases
    assert any("nothing is known" in line and "round" in line for line in report.open_values)
