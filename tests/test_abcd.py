"""The classes that verify finds of adaptive optimizers are those of the theorems (Tensor Programs IVb, section 2.8)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
import torch
from zoo_optimizers import SignSGD

from tpcompile import abcd
from tpcompile.errors import UsageError
from tpcompile.parametrization.report import Report

HALF = Fraction(1, 2)


def sign_sgd(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return SignSGD([{k: g[k] for k in ("params", "lr")} for g in groups], lr=0.1)


def adam(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    return torch.optim.Adam(groups)


def draw(rng: random.Random, epsilon: bool) -> abcd.Parametrization:
    """A random half-integer point: anywhere, with initial activations Θ(1), or near a named one."""

    def half(low: int, high: int) -> Fraction:
        return Fraction(rng.randint(2 * low, 2 * high), 2)

    layers = rng.randint(1, 4)
    kind = rng.random()
    if kind < 0.15:
        a, b, c = ([half(-1, 1) for _ in range(layers + 1)] for _ in range(3))
    elif kind < 0.35:
        a = [half(-1, 1) for _ in range(layers + 1)]
        b = [-a[0], *(HALF - x for x in a[1:-1]), HALF - a[-1] + half(0, 1)]
        c = [(i > 0) - x + half(-1, 1) for i, x in enumerate(a)]
    else:
        base = rng.choice([abcd.mup(layers), abcd.mup(layers), abcd.ntk(layers), abcd.standard(layers, 3 * HALF)])
        a, b, c = list(base.a), list(base.b), list(base.c)
        for _ in range(rng.choice([0, 1, 1, 2, 3])):  # slower layers, now and then a faster one
            c[rng.randint(0, layers)] += half(0, 1) if rng.random() < 0.8 else -HALF
        if rng.random() < 0.4:
            b[-1] += half(-1, 1)
    p = abcd.parametrization(a, b, c).shifted(half(-1, 1))
    if not epsilon:
        return p
    d = [x + (half(-1, 1) if rng.random() < 0.3 else 0) for x in p.faithful_d]
    return replace(p, d=tuple(d))


def faithful(p: abcd.Parametrization, report: Report, steps: range) -> bool:
    """Whether the traced gradients times ``n**d`` are Θ(1) at these steps."""
    assert p.d is not None
    found = zip(p.d, report.parameters.values(), strict=True)
    return all(q.gradient[t].exponent == -d for d, q in found for t in steps)


def mismatches(count: int, seed: int) -> tuple[list[tuple[Any, ...]], Counter[str]]:
    """Points of which something is not as the theorems say, and how many of each class there were."""
    rng = random.Random(seed)
    wrong, classes = [], Counter()
    for i in range(count):
        kind = ("Adam", "Adam with epsilon", "SignSGD")[i % 3]
        p = draw(rng, epsilon=kind == "Adam with epsilon")
        classes[p.verdict] += 1
        report = p.report(optimizer=sign_sgd if kind == "SignSGD" else adam)
        if report.verdict != p.verdict:
            wrong.append((kind, p, p.verdict, report.verdict, report.first_problem))
            continue
        if p.stable:
            name = f"layers.{p.hidden_layers - 1}"
            sizes = [report.change(name, t) for t in (1, 2, 3)]
            if all(s.exact for s in sizes) and max(s.bound for s in sizes) != -p.r:
                wrong.append((kind, p, -p.r, list(map(str, sizes))))
        if p.d is not None and p.stable_at_init:
            if faithful(p, report, range(1)) != p.faithful_at_init:
                wrong.append((kind, p, "faithful at initialisation"))
            if p.stable and p.faithful_at_init and faithful(p, report, range(3)) != p.faithful:
                wrong.append((kind, p, "faithful"))
        if p.stable:
            gradients = [q.gradient[2].exponent for q in report.parameters.values()]
            if gradients != list(p.gradients):
                wrong.append((kind, p, "gradients", list(map(str, p.gradients)), list(map(str, gradients))))
    return wrong, classes


def test_random_points_are_classified_as_the_theorems_say():
    wrong, classes = mismatches(24, seed=1)
    assert not wrong
    assert len(classes) >= 4


@pytest.mark.slow
def test_three_hundred_random_points_are_classified_as_the_theorems_say():
    wrong, classes = mismatches(300, seed=0)
    assert not wrong
    assert min(classes[v] for v in ("unstable", "trivial", "kernel regime", "feature learning", "maximal update")) >= 5


@pytest.mark.parametrize(
    ("p", "verdict", "r"),
    [
        (abcd.mup(1), "maximal update", 0),
        (abcd.mup(3), "maximal update", 0),
        (abcd.ntk(2), "kernel regime", HALF),
        (abcd.standard(2, 1), "unstable", 0),  # against Remark 2.2.7 of the paper
        (abcd.standard(2, 3 * HALF), "kernel regime", HALF),
    ],
)
def test_named_parametrizations(p, verdict, r):
    assert (p.verdict, p.r) == (verdict, r)
    for q in (p, p.shifted(HALF)):
        assert q.report().verdict == q.report(optimizer=sign_sgd).verdict == verdict


def test_faithful_parametrizations_are_those_of_the_paper():
    for layers in (1, 2, 3):
        for p in (abcd.mup(layers), abcd.ntk(layers)):
            assert p.faithful
            assert p.shifted(HALF).faithful
        assert not replace(abcd.standard(layers, 3 * HALF), d=(Fraction(0),) * (layers + 1)).faithful


def test_bad_input():
    with pytest.raises(UsageError, match="one entry a layer"):
        abcd.parametrization([0, 0], [0, 0], [1])
