"""Advice of verify: derived, applied to the factory and verified again; the traps that people fall into, in words."""

from __future__ import annotations

import json

import torch
import torch.nn.functional as F
from test_verify import MLP, X, Y

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
