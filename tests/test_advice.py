"""Advice of verify: derived, applied to the factory and verified again; the traps that people fall into, in words."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from test_verify import MLP, X, Y
from torch import nn

import tpcompile as tp


def sgd(power=0.0, **options):
    return lambda p, n: torch.optim.SGD(p, lr=0.1 * n**power, **options)


def adam(power=0.0, eps=0.0, kind=torch.optim.Adam, **options):
    return lambda p, n: kind(p, lr=0.1 * n**power, eps=eps, **options)


def verified(make_model, optimizer, steps=2, **options):
    def make(n):
        model = make_model(n)
        return model, optimizer([p for p in model.parameters() if p.requires_grad], n)

    return tp.verify(make, X, Y, F.mse_loss, steps=steps, **options)


def said(report):
    """All that the report says, on one line."""
    return " ".join(str(report).split())


def test_parametrization_switched_off():
    report = verified(MLP, sgd())
    assert report.verdict == "unstable"
    assert report.advice == (
        "`hidden.0.weight`: learning rate should scale as n^1, it scales as n^0",
        "`readout.weight`: initial values should scale as n^-1, they scale as n^-1/2",
        "`readout.weight`: learning rate should scale as n^-1, it scales as n^0",
    )
    assert report.advised == "maximal update"
    assert "advice, applied: maximal update" in said(report)
    assert json.loads(json.dumps(report.to_dict()))["advised"] == "maximal update"
    assert verified(MLP, sgd(), advice=False).advice == ()


def test_nothing_is_advised_where_nothing_is_wrong():
    def model(n):
        m = MLP(n)
        torch.nn.init.normal_(m.readout.weight, std=1 / n)
        return m

    def optimizer(params, n):
        rates = [0.1 * n, 0.1, 0.1, 0.1 / n]
        return torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)])

    report = verified(model, optimizer)
    assert (report.verdict, report.advice, report.advised) == ("maximal update", (), None)


def test_epsilon_left_unscaled():
    report = verified(MLP, adam(-1, eps=1e-8))
    assert report.advised == "maximal update"
    assert any("epsilon should scale as n^-1" in line and "takes over" in line for line in report.advice)
    assert not any("epsilon" in line for line in verified(MLP, lambda p, n: adam(-1, eps=1e-8 / n)(p, n)).advice)


def test_weight_decay_with_and_without_the_rate():
    """Decoupled decay shrinks weights by rate times decay a step; AdamW multiplies it by the scaled rate."""
    plain = verified(MLP, adam(-1, kind=torch.optim.AdamW, weight_decay=0.1))
    assert any("weight decay should scale as n^1" in line for line in plain.advice)
    assert plain.advised == "maximal update"

    def kept(params, n):
        rates = [0.1, 0.1 / n, 0.1 / n, 0.1 / n]
        groups = [{"params": [p], "lr": lr, "weight_decay": 0.01 / lr} for p, lr in zip(params, rates, strict=True)]
        return torch.optim.AdamW(groups, eps=0.0)

    assert not any("weight decay" in line for line in verified(MLP, kept).advice)


def test_weight_decay_coupled():
    """SGD is linear in the gradient, so that a coupled decay is a decoupled one; Adam divides its size out."""
    assert any("weight decay should scale as n^1" in x for x in verified(MLP, sgd(-1, weight_decay=0.1)).advice)
    normalised = verified(MLP, adam(-1, weight_decay=0.1))
    assert any("use a decoupled one" in line for line in normalised.advice)


def test_frozen_parameters_are_named_and_their_initial_values_judged():
    def model(n):
        m = MLP(n)
        m.hidden[1].weight.requires_grad_(False)
        m.readout.weight.requires_grad_(False)
        return m

    report = verified(model, adam(-1))
    assert "not trained, so flat in a coordinate check whatever their scale: hidden.1.weight, readout.weight" in said(
        report
    )
    assert "`readout.weight`: initial values should scale as n^-1, they scale as n^-1/2" in report.advice
    assert not any("hidden.1.weight" in line for line in report.advice)


def test_a_transient_at_initialisation_is_no_fault():
    def make(n):
        model, _ = tp.abc.mup(2).factory(inputs=4)(n)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    report = tp.verify(make, X, Y, F.mse_loss, steps=2)
    assert report.verdict == "maximal update"
    assert "the outputs at initialisation are n^-1/2: a transient that training replaces, not a fault" in said(report)
    assert report.advice == ()


class Careful(MLP):
    """In the maximal update parametrization (but for the learning rates), unless something is changed."""

    def __init__(self, n, bias=False):
        super().__init__(n, bias=bias)
        nn.init.normal_(self.readout.weight, std=1 / n)


def careful_rates(params, n):
    rates = [0.1, 0.1 / n, 0.1 / n, 0.1 / n]
    return torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)], eps=0.0)


def test_a_multiplier_that_never_reaches_the_graph():
    class Model(MLP):
        def __init__(self, n):
            super().__init__(n)
            self.output_multiplier = 1 / n
            nn.init.normal_(self.readout.weight)

    report = verified(Model, adam(-1))
    assert "`readout.weight`: initial values should scale as n^-1, they scale as n^0" in report.advice
    assert report.advised == "maximal update"


def test_hidden_weights_divided_by_m_where_its_root_was_meant():
    class Model(Careful):
        def __init__(self, n):
            super().__init__(n)
            nn.init.normal_(self.get_parameter("hidden.1.weight"), std=1 / n)

    report = verified(Model, careful_rates)
    assert report.first_problem == "the 'hidden.1' at initialisation vanishes like n^-1/2"
    assert report.advice == ("`hidden.1.weight`: initial values should scale as n^-1/2, they scale as n^-1",)
    assert report.advised == "maximal update"


class Router(Careful):
    """The probabilities of two experts come from a bare parameter."""

    def __init__(self, n):
        super().__init__(n)
        self.route = nn.Parameter(torch.randn(n, 2) / n**0.5)

    def forward(self, x):
        h = torch.tanh(self.hidden[0](x))
        p = torch.softmax(h @ self.route, -1)
        return self.readout(p[:, :1] * torch.tanh(self.hidden[1](h)) + p[:, 1:] * torch.tanh(self.hidden[2](h)))


class Narrow(nn.Module):
    """A convolution to a fixed number of channels inside of the network."""

    def __init__(self, n):
        super().__init__()
        self.first, self.narrow = nn.Conv1d(1, n, 3, bias=False), nn.Conv1d(n, 2, 1, bias=False)
        self.widen, self.readout = nn.Conv1d(2, n, 1, bias=False), nn.Linear(n, 1, bias=False)
        nn.init.normal_(self.readout.weight, std=1 / n)

    def forward(self, x):
        h = torch.tanh(self.first(x[:, None]))
        return self.readout(torch.tanh(self.widen(torch.tanh(self.narrow(h)))).mean(-1))


@pytest.mark.parametrize(("model", "name"), [(Router, "route"), (Narrow, "narrow.weight")])
def test_an_interior_readout_that_is_no_linear_module(model, name):
    report = verified(model, adam(-1))
    assert f"`{name}`: initial values should scale as n^-1, they scale as n^-1/2" in report.advice
    assert not any(f"`{name}`: learning rate" in line for line in report.advice)  # n^-1, as it should
    assert report.advised == "maximal update"


def test_a_bias_inside_of_the_output_multiplier():
    class Model(MLP):
        def __init__(self, n):
            super().__init__(n)
            self.readout, self.n = nn.Linear(n, 1), n
            nn.init.normal_(self.readout.weight)

        def forward(self, x):
            return super().forward(x) / self.n

    def optimizer(params, n):
        rates = [0.1, 0.1 / n, 0.1 / n, 0.1, 0.1]
        return torch.optim.Adam([{"params": [p], "lr": lr} for p, lr in zip(params, rates, strict=True)], eps=0.0)

    report = verified(Model, optimizer)
    line = "`readout.bias`: learning rate should scale as n^1, it scales as n^0 (a factor n^-1 is behind it)"
    assert line in report.advice
    assert not any("weight" in line for line in report.advice)
    assert report.advised == "maximal update"


def test_a_tensor_learning_rate_shared_and_changed_in_place():
    def optimizer(params, n):
        lr = torch.tensor(0.1)
        groups = [{"params": params[:1], "lr": lr}, {"params": params[1:], "lr": lr}]
        made = torch.optim.Adam(groups, eps=0.0)
        made.param_groups[1]["lr"].div_(n)
        return made

    report = verified(Careful, optimizer)
    assert report.advice == ("`hidden.0.weight`: learning rate should scale as n^0, it scales as n^-1",)
    assert "the parameter groups 0, 1 share one tensor as their learning rate" in said(report)


def test_gru_weights_left_at_the_root_of_the_hidden_size():
    class Model(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.gru, self.readout = nn.GRU(4, n, batch_first=True, bias=False), nn.Linear(n, 1, bias=False)
            nn.init.normal_(self.readout.weight, std=1 / n)

        def forward(self, x):
            return self.readout(self.gru(x)[0][:, -1])

    def make(n):
        model = Model(n)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    x = torch.randn(2, 2, 4, generator=torch.Generator().manual_seed(0))
    report = tp.verify(make, x, torch.ones(2, 1), F.mse_loss, steps=1)
    assert report.first_problem == "the 'gru' at initialisation vanishes like n^-1/2"
    assert "`gru.weight_ih_l0`: initial values should scale as n^0, they scale as n^-1/2" in report.advice
    assert not any("gru.weight_hh_l0`: initial" in line for line in report.advice)


def test_advice_goes_through_a_schedule():
    def make(n):
        model = Careful(n)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.1, eps=0.0)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))

    report = tp.verify(make, X, Y, F.mse_loss, steps=3)
    assert report.advised == "maximal update"
    assert "`hidden.1.weight`: learning rate should scale as n^-1, it scales as n^0" in report.advice


class Attention(nn.Module):
    """One head; with its default scale of 1/sqrt(d), or another."""

    def __init__(self, n, scale=None):
        super().__init__()
        self.embed, self.scale = nn.Linear(4, n, bias=False), scale
        self.query, self.key, self.value = (nn.Linear(n, n, bias=False) for _ in range(3))
        self.readout = nn.Linear(n, 1, bias=False)
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=n**-0.5)
        nn.init.normal_(self.readout.weight, std=1 / n)

    def forward(self, x):
        h = torch.tanh(self.embed(x))
        mixed = F.scaled_dot_product_attention(self.query(h), self.key(h), self.value(h), scale=self.scale)
        return self.readout(h + mixed).mean(1)


@pytest.mark.parametrize("scale", ["1/sqrt(d)", "1/d"])
def test_attention_with_its_default_scale(scale):
    def make(n):
        model = Attention(n, None if scale == "1/sqrt(d)" else 1 / n)
        rates = [0.1, 0.1 / n, 0.1 / n, 0.1 / n, 0.1 / n]
        groups = [{"params": [p], "lr": lr} for p, lr in zip(model.parameters(), rates, strict=True)]
        return model, torch.optim.Adam(groups, eps=0.0)

    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    report = tp.verify(make, x, torch.ones(2, 1), F.mse_loss, steps=2, advice=False)
    if scale == "1/d":
        assert report.verdict == "maximal update"
        assert "aligned" not in said(report)
    else:
        assert report.verdict == "unstable"
        assert report.first_problem is not None
        assert "a product of two activations in" in report.first_problem
        assert report.first_problem.endswith("grows like n^1/2 at step 1")
        assert "is n^0 at initialisation and n^1/2 at step 1, when training has aligned them" in said(report)
        assert "(attention: 1/d for 1/sqrt(d))" in said(report)
