"""Exponents, verdicts and derived rules of training setups (theory, section 9; parametrizations.md)."""

from __future__ import annotations

import json
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo_optimizers import Lion

import tpcompile as tp

HALF = Fraction(1, 2)
X = torch.tensor([[1.0, -0.5, 0.2, 0.4], [0.3, 0.8, -0.7, 0.1], [-0.6, 0.5, 0.9, -0.2]])
Y = torch.tensor([[1.0], [-1.0], [0.5]])


class MLP(nn.Module):
    def __init__(self, n, activation=torch.tanh, depth=3, bias=False):
        super().__init__()
        self.hidden = nn.ModuleList([nn.Linear(4 if i == 0 else n, n, bias=bias) for i in range(depth)])
        self.readout = nn.Linear(n, 1, bias=bias)
        self.activation = activation
        for p in self.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=p.shape[1] ** -0.5)

    def forward(self, x):
        for layer in self.hidden:
            x = self.activation(layer(x))
        return self.readout(x)


OPTIMIZERS = {
    "Adam": lambda p, lr, n: torch.optim.Adam(p, lr=lr, eps=0.0),
    "AdamW, epsilon 1/n": lambda p, lr, n: torch.optim.AdamW(p, lr=lr, eps=1e-8 / n),
    "AMSGrad": lambda p, lr, n: torch.optim.Adam(p, lr=lr, eps=0.0, amsgrad=True),
    "NAdam": lambda p, lr, n: torch.optim.NAdam(p, lr=lr, eps=0.0),
    "Adamax": lambda p, lr, n: torch.optim.Adamax(p, lr=lr, eps=0.0),
    "RMSprop": lambda p, lr, n: torch.optim.RMSprop(p, lr=lr, eps=0.0),
    "RMSprop, centred": lambda p, lr, n: torch.optim.RMSprop(p, lr=lr, eps=1e-8 / n, centered=True, momentum=0.9),
    "Adagrad": lambda p, lr, n: torch.optim.Adagrad(p, lr=lr, eps=0.0),
    "Lion": lambda p, lr, n: Lion(p, lr=lr, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_standard_parametrization_with_an_adaptive_rate_of_1_over_n_is_unstable(name):
    """Theorem 2.8.12 of 2308.01814 against the remark 2.2.7: logits grow like n^(1/2); n^(-3/2) is stable."""

    def make(power):
        def setup(n):
            model = MLP(n)
            return model, OPTIMIZERS[name](model.parameters(), 0.1 * n**power, n)

        return setup

    report = tp.verify(make(-1), X, Y, F.mse_loss, steps=2, advice=False)
    assert report.verdict == "unstable"
    assert report.change_exponent("outputs", 1) == HALF
    assert report.parameters["hidden.1.weight"].effect_exponent == 0
    calm = tp.verify(make(-1.5), X, Y, F.mse_loss, steps=2, advice=False)
    assert (calm.verdict, calm.change_exponent("outputs", 1)) == ("kernel regime", 0)


def test_first_steps_of_radam_are_plain_gradient_steps():
    def make(n):
        model = MLP(n)
        return model, torch.optim.RAdam(model.parameters(), lr=0.1 / n)

    assert tp.verify(make, X, Y, F.mse_loss, steps=2, advice=False).verdict == "kernel regime"


@pytest.mark.parametrize("power", [0, -1])
def test_exponents_of_standard_parametrization_with_sgd(power):
    def make(n):
        model = MLP(n, torch.relu)
        return model, torch.optim.SGD(model.parameters(), lr=0.1 * n**power)

    report = tp.verify(make, X, Y, F.mse_loss, steps=2, advice=False)
    if power == 0:
        assert report.verdict == "unstable"
        assert report.change_exponent("hidden.1", 1) == HALF
        assert report.change_exponent("outputs", 1) == 2  # relu keeps growing with each layer
        assert "hidden.1" in (report.first_problem or "")
    else:
        assert report.verdict == "kernel regime"
        assert [report.change_exponent(f"hidden.{i}", 1) for i in range(3)] == [Fraction(-3, 2), -HALF, -HALF]


EXPECTED = {  # Table 3 of 2203.03466, as exponents of the standard deviation and of the learning rate
    "SGD": {"hidden.0": (0, 1), "hidden.1": (-HALF, 0), "hidden.2": (-HALF, 0), "readout": (-1, -1)},
    "Adam": {"hidden.0": (0, 0), "hidden.1": (-HALF, -1), "hidden.2": (-HALF, -1), "readout": (-1, -1)},
}


@pytest.mark.parametrize("activation", [torch.tanh, torch.relu, F.gelu])
@pytest.mark.parametrize("name", EXPECTED)
def test_the_published_table_is_derived(name, activation):
    def make(n):
        model = MLP(n, activation)
        if name == "SGD":
            return model, torch.optim.SGD(model.parameters(), lr=0.1 / n)
        return model, torch.optim.Adam(model.parameters(), lr=0.1 / n, eps=0.0)

    rules = tp.mup(make, X, Y, F.mse_loss)
    found = {k.removesuffix(".weight"): (r.init_exponent, r.lr_exponent) for k, r in rules.items()}
    assert found == EXPECTED[name]
    assert all(r.multiplier_exponent == 0 for r in rules.values())
    assert rules.report.verdict == "maximal update"


class Block(nn.Module):
    """Residual, LayerNorm, biases, a wider layer, and a bottleneck that does not grow."""

    def __init__(self, n):
        super().__init__()
        self.embed = nn.Linear(4, n)
        self.up, self.norm, self.down = nn.Linear(n, 2 * n), nn.LayerNorm(2 * n), nn.Linear(2 * n, n)
        self.narrow, self.widen, self.readout = nn.Linear(n, 3), nn.Linear(3, n), nn.Linear(n, 1)

    def forward(self, x):
        h = torch.relu(self.embed(x))
        h = h + self.down(torch.relu(self.norm(self.up(h))))
        return self.readout(h + self.widen(torch.tanh(self.narrow(h))))


@pytest.mark.parametrize("name", ["SGD", "Adam"])
def test_rules_of_a_block_with_an_interior_readout(name):
    def make(n):
        model = Block(n)
        if name == "SGD":
            return model, torch.optim.SGD(model.parameters(), lr=0.1 / n)
        return model, torch.optim.Adam(model.parameters(), lr=0.1 / n, eps=0.0)

    rules = tp.mup(make, X, Y, F.mse_loss)
    assert rules.report.verdict == "maximal update"
    assert rules["narrow.weight"].init_exponent == rules["readout.weight"].init_exponent == -1
    matrix, vector = (0, 1) if name == "SGD" else (-1, 0)
    wanted = {
        "embed": vector,
        "up": matrix,
        "norm": vector,
        "down": matrix,
        "widen": vector,
        "narrow": -1,
        "readout": -1,
    }
    assert {k: rules[f"{k}.weight"].lr_exponent for k in wanted} == wanted


def test_rules_make_groups_and_initial_values():
    def make(n):
        model = MLP(n)
        return model, torch.optim.Adam(model.parameters(), lr=0.1 / n, eps=0.0)

    rules = tp.mup(make, X, Y, F.mse_loss)
    model = make(256)[0]
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    rules.apply_init_(model, base_width=64)
    torch.testing.assert_close(model.readout.weight.detach(), before["readout.weight"] / 2)
    torch.testing.assert_close(model.get_parameter("hidden.1.weight").detach(), before["hidden.1.weight"])
    groups = rules.param_groups(model, lr=0.01, base_width=64, eps=1e-8, weight_decay=0.1)
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rates[id(model.get_parameter("hidden.0.weight"))] == pytest.approx(0.01)
    assert rates[id(model.get_parameter("hidden.1.weight"))] == rates[id(model.readout.weight)] == pytest.approx(0.0025)
    assert all(g["lr"] * g["weight_decay"] == pytest.approx(0.001) for g in groups)
    torch.optim.AdamW(groups)
    base = make(64)[0]
    assert {g["lr"] for g in rules.param_groups(base, lr=0.01, base_width=64)} == {0.01}

    def scaled(n):
        model = rules.apply_init_(make(n)[0], base_width=16)
        return model, torch.optim.Adam(rules.param_groups(model, lr=0.01, base_width=16), eps=0.0)

    assert tp.verify(scaled, X, Y, F.mse_loss, steps=2).verdict == "maximal update"


def test_report_is_text_dictionary_and_page(tmp_path):
    def make(n):
        model = MLP(n)
        model.hidden[0].weight.requires_grad_(False)
        return model, torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1 / n)

    report = tp.verify(make, X, Y, F.mse_loss, steps=1)
    text = str(report)
    assert "verdict: kernel regime" in text
    assert "hidden.0.weight" in text
    assert "not trained" in text
    facts = json.loads(json.dumps(report.to_dict()))
    assert facts["parameters"]["hidden.1.weight"]["effect"] == ["-1/2"]
    assert facts["changes"]["hidden.0"] == ["-inf"]
    assert report.change_exponent("hidden.0", 1) == -math.inf
    report.to_html(tmp_path / "report.html")
    assert "kernel regime" in (tmp_path / "report.html").read_text()
    with pytest.raises(tp.errors.UsageError, match="there is no value"):
        report.exponent("hidden.9")


def test_what_cannot_be_followed_is_undecided_with_its_reason():
    class Odd(MLP):
        def forward(self, x):
            h = self.hidden[0](x)
            return self.readout(torch.round(torch.linalg.inv(self.hidden[1].weight) @ h.T).T)

    def make(n):
        model = Odd(n)
        return model, torch.optim.SGD(model.parameters(), lr=0.1 / n)

    report = tp.verify(make, X, Y, F.mse_loss, steps=1)
    assert report.verdict == "undecided"
    assert "round" in str(report)
    assert "not followed" in str(report)
    with pytest.raises(tp.errors.UndeterminedLimitError):
        report.exponent("outputs")


def test_verify_needs_a_loss_and_steps():
    with pytest.raises(tp.errors.UsageError, match="loss"):
        tp.verify(MLP, X, Y)
    with pytest.raises(tp.errors.UsageError, match="positive"):
        tp.verify(MLP, X, Y, F.mse_loss, steps=0)


@pytest.mark.parametrize("activation", [torch.tanh, torch.sigmoid])
def test_derivatives_of_saturated_functions_are_bounded_not_claimed(activation):
    """tanh' of values of size n^(1/2) is of order one at n^(-1/2) of them: n^(-1/4) in root mean square."""

    class Saturated(MLP):
        def forward(self, x):
            h = self.activation(self.hidden[1](torch.tanh(self.hidden[0](x))) * self.root)
            return self.readout(h)

    def make(n):
        model = Saturated(n, activation, depth=2)
        model.root = n**0.5
        nn.init.normal_(model.readout.weight, std=1 / n)
        return model, torch.optim.SGD(model.parameters(), lr=0.1 / n**2)

    gradient = tp.verify(make, X, Y, F.mse_loss, steps=1, advice=False).parameters["hidden.1.weight"].gradient[0]
    assert (gradient.exponent, gradient.bound) == (None, Fraction(-3, 4))
