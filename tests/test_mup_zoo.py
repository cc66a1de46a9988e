"""The maximal update parametrization of architectures that no table of the papers has."""

from __future__ import annotations

from fractions import Fraction

import pytest
from slope_setups import adam, muon, sgd
from zoo_architectures import LANGUAGE, NEXT, TOKENS, loss

import tpcompile as tp

HALF = Fraction(1, 2)
VECTOR = {adam: (0, 0), sgd: (0, 1)}  # exponents of initial values and of the learning rate
HIDDEN = {adam: (-HALF, -1), sgd: (-HALF, 0)}
READS = {adam: (-1, -1), sgd: (-1, -1)}


def derived(name, optimizer, steps=2):
    """Rules for the model as torch makes it, with one learning rate for all."""

    def make(n):
        model = LANGUAGE[name](n)
        return model, optimizer([{"params": [p for p in model.parameters() if p.requires_grad], "lr": 0.1}], n)

    rules = tp.mup(make, TOKENS, NEXT, loss, steps=steps)
    assert rules.report.verdict == "maximal update"
    return rules


def check(rules, optimizer, **kinds):
    """Every trained parameter has the exponents of the kind whose pattern is in its name; vectors otherwise."""
    for name, rule in rules.items():
        kind = next((table for key, table in kinds.items() if f".{key}." in f".{name}"), VECTOR)
        init, rate = kind[optimizer]
        if rule.lr_exponent is None:
            continue
        assert rule.lr_exponent == rate, name
        assert rule.init_exponent in (init, None), name  # None: it starts at zero


def test_adapters_of_fixed_rank():
    """The factor that reads is a readout, n^-1 and not fan-in; the frozen matrix keeps its initial values."""
    rules = derived("adapters of fixed rank", adam)
    check(rules, adam, a=READS, head=READS)
    assert rules["blocks.0.base.weight"].init_exponent == -HALF
    assert rules["blocks.0.b.weight"].epsilon_exponent == -3 * HALF  # what it reads is n^(-1/2) before training


def test_a_mixture_of_experts():
    """A router is a readout inside of the network."""
    rules = derived("mixture of experts, top 2", adam)
    check(rules, adam, up=HIDDEN, down=HIDDEN, router=READS, head=READS)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [adam, sgd])
@pytest.mark.parametrize("name", ["grouped-query attention", "multi-query attention", "heads of fixed size"])
def test_attention(name, optimizer):
    """Queries, keys and values of growing heads are hidden weights however many share them."""
    hidden = dict.fromkeys(("q", "k", "v", "o", "qkv", "gate", "up", "down"), HIDDEN)
    check(derived(name, optimizer), optimizer, **hidden, head=READS)


def test_attention_with_the_default_scale():
    """No scale of parameters takes a power of n out of the logits after training has aligned queries with keys."""
    with pytest.warns(UserWarning, match=r"the product of two activations in module .*: a factor n\^-1/2 is missing"):
        rules = derived("attention with the default scale", adam)
    (factor,) = rules.factors
    assert factor.exponent == Fraction(-1, 2)
    assert rules.report.verdict == "maximal update"
    assert str(rules).startswith("the product of two activations")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GRU", "LSTM"])
def test_recurrent_modules_of_torch(name):
    rules = derived(name, adam)
    for key, rule in rules.items():
        kind = READS if "head" in key else HIDDEN if "weight_" in key else VECTOR
        assert (rule.init_exponent, rule.lr_exponent) == kind[adam], key


@pytest.mark.slow
def test_muon_on_attention():
    """Rates of matrices do not scale; the sign of the update of vectors needs no power either."""
    rules = derived("multi-query attention", muon)
    for name in ("q", "k", "v", "o"):
        assert rules[f"blocks.0.{name}.weight"].lr_exponent == 0
