"""Rules of ``tp.mup``: the published tables in each of their forms, tied weights, tables for a paper."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from test_verify import MLP, X, Y
from torch import nn

import tpcompile as tp

HALF = Fraction(1, 2)


def adam(parameters, lr=0.1):
    return torch.optim.Adam(parameters, lr=lr, eps=0.0)


def sgd(parameters, lr=0.1):
    return torch.optim.SGD(parameters, lr=lr)


# Multipliers that are given, and (init std, multiplier, SGD rate, Adam rate) of Tensor Programs V (2203.03466).
TABLES = {
    "Table 3": (
        {},
        {"input": (0, 0, 1, 0), "hidden": (-HALF, 0, 0, -1), "output": (-1, 0, -1, -1)},
    ),
    "Table 8": (
        {"readout.weight": -1},
        {"input": (0, 0, 1, 0), "hidden": (-HALF, 0, 0, -1), "output": (0, -1, 1, 0)},
    ),
    "Table 9": (
        {"readout.weight": -HALF, "hidden.0.weight": HALF, "hidden.0.bias": HALF, "hidden.1.bias": HALF},
        {"input": (-HALF, HALF, 0, -HALF), "hidden": (-HALF, 0, 0, -1), "output": (-HALF, -HALF, 0, -HALF)},
    ),
}
KINDS = {
    "hidden.0.weight": "input",
    "hidden.0.bias": "input",
    "hidden.1.weight": "hidden",
    "hidden.1.bias": "input",
    "readout.weight": "output",
}


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("table", TABLES)
def test_published_tables(table, optimizer):
    def make(n):
        model = MLP(n, depth=2, bias=True)
        return model, optimizer(model.parameters())

    multipliers, expected = TABLES[table]
    rules = tp.mup(make, X, Y, F.mse_loss, multipliers=multipliers)
    assert rules.report.verdict == "maximal update"
    column = 2 if optimizer is sgd else 3
    for name, kind in KINDS.items():
        init, multiplier, rate = *expected[kind][:2], expected[kind][column]
        rule = rules[name]
        assert (rule.init_exponent, rule.multiplier_exponent, rule.lr_exponent) == (init, multiplier, rate), name
    assert (rules["readout.bias"].lr_exponent, rules["readout.bias"].multiplier_exponent) == (0, 0)


class Tied(nn.Module):
    """An embedding that is the readout as well."""

    def __init__(self, n, std, scale=1.0):
        super().__init__()
        self.embed, self.hidden, self.scale = nn.Embedding(7, n), nn.Linear(n, n), scale
        nn.init.normal_(self.embed.weight, std=std)

    def forward(self, x):
        h = self.embed(x) * self.scale
        return F.linear(h + torch.tanh(self.hidden(h)), self.embed.weight)


TOKENS, NEXT = torch.tensor([1, 2, 3]), torch.tensor([2, 3, 4])


@pytest.mark.parametrize("optimizer", [sgd, adam])
@pytest.mark.parametrize("power", [0, -0.5])
def test_tied_weights_need_a_multiplier(power, optimizer):
    def make(n):
        model = Tied(n, n**power)
        return model, optimizer(model.parameters())

    rules = tp.mup(make, TOKENS, NEXT, F.cross_entropy)
    tied = rules["embed.weight"]
    assert rules.report.verdict == "maximal update"
    assert tied.own.multipliers == (0, -1)
    assert (tied.init_exponent, tied.multiplier_exponent, tied.lr_exponent) == (0, -1, 1 if optimizer is sgd else 0)

    def followed(n):
        model = rules.apply_multipliers_(rules.apply_init_(Tied(n, n**power), base_width=16), base_width=16)
        return model, optimizer(rules.param_groups(model, lr=0.1, base_width=16))

    assert tp.verify(followed, TOKENS, NEXT, F.cross_entropy, steps=2).verdict == "maximal update"


def test_an_embedding_tied_to_the_readout_and_rescaled():
    """sqrt(m) in front of the embedding, as in the original transformer: the readout misses n^(-1/2)."""

    def make(n):
        model = Tied(n, n**-0.5, n**0.5)
        return model, adam(model.parameters())

    report = tp.verify(make, TOKENS, NEXT, F.cross_entropy, steps=2)
    assert report.verdict == "unstable"
    assert any("a factor n^-1/2 is missing" in line and "test_mup_rules.py" in line for line in report.advice)
    assert report.advised == "maximal update"


def test_multipliers_leave_a_model_of_the_base_width_as_it_is():
    def make(n):
        model = Tied(n, 1.0)
        return model, adam(model.parameters())

    rules = tp.mup(make, TOKENS, NEXT, F.cross_entropy)
    model = Tied(32, 1.0)
    before = model(TOKENS)
    torch.testing.assert_close(rules.apply_multipliers_(model, base_width=32)(TOKENS), before)
    torch.testing.assert_close(rules.apply_multipliers_(model, base_width=8)(TOKENS), before / 4)


def test_tables_for_a_paper():
    def make(n):
        model = MLP(n, depth=2)
        return model, torch.optim.AdamW(model.parameters(), lr=0.1)

    rules = tp.mup(make, X, Y, F.mse_loss)
    assert "| `readout.weight` | n^-1 | 1 | n^-1 | 1 | n |" in rules.table("markdown").splitlines()
    latex = rules.table("latex")
    assert r"\texttt{hidden.1.weight} & $n^{-1/2}$ & $1$ & $n^{-1}$ & $n^{-1}$ & $n$ \\" in latex.splitlines()
    assert "hidden.1.weight" in str(rules)
    assert json.loads(json.dumps(rules.to_dict()))["hidden.1.weight"]["weight_decay"] == "1"
    with pytest.raises(tp.errors.UsageError, match="format"):
        rules.table("word")
    with pytest.raises(tp.errors.UsageError, match="no parameter"):
        tp.mup(make, X, Y, F.mse_loss, multipliers={"readout": -1})
