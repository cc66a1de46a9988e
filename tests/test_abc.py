"""The classes that verify finds by tracing are those of the theorems (Tensor Programs IV, section 3)."""

from __future__ import annotations

import random
from collections import Counter
from fractions import Fraction

import pytest

from tpcompile import abc
from tpcompile.errors import UsageError

HALF = Fraction(1, 2)


def draw(rng: random.Random) -> abc.Parametrization:
    """A random half-integer point: anywhere, with initial activations Θ(1), or near a named one."""

    def half(low: int, high: int) -> Fraction:
        return Fraction(rng.randint(2 * low, 2 * high), 2)

    layers = rng.randint(1, 4)
    kind = rng.random()
    if kind < 0.15:
        a, b, c = ([half(-1, 1) for _ in range(layers + 1)] for _ in range(3))
        return abc.parametrization(a, b, c[0])
    if kind < 0.4:
        a = [half(-1, 1) for _ in range(layers + 1)]
        b = [-a[0], *(HALF - x for x in a[1:-1]), HALF - a[-1] + half(0, 1)]
        return abc.parametrization(a, b, half(-1, 2))
    base = rng.choice([abc.mup(layers), abc.mup(layers), abc.ntk(layers), abc.standard(layers, 1)])
    a, b, c = list(base.a), list(base.b), base.c
    if rng.random() < 0.6:  # one layer in other words, so that its learning rate changes
        k, d = rng.randint(0, layers), half(0, 1)
        a[k], b[k] = a[k] + d, b[k] - d
    if rng.random() < 0.4:
        b[-1] += half(0, 1)
    if rng.random() < 0.3:
        c += half(-1, 1)
    return abc.parametrization(a, b, c).shifted(half(-1, 1))


def mismatches(count: int, seed: int) -> tuple[list[tuple[abc.Parametrization, str, str]], Counter[str]]:
    """Points whose traced class is not the theorem's, and how many of each class there were."""
    rng = random.Random(seed)
    wrong, classes = [], Counter()
    for _ in range(count):
        p = draw(rng)
        classes[p.verdict] += 1
        found = p.report().verdict
        if found != p.verdict:
            wrong.append((p, p.verdict, found))
    return wrong, classes


def test_random_points_are_classified_as_the_theorems_say():
    wrong, classes = mismatches(25, seed=1)
    assert not wrong
    assert len(classes) >= 4


@pytest.mark.slow
def test_five_hundred_random_points_are_classified_as_the_theorems_say():
    wrong, classes = mismatches(500, seed=0)
    assert not wrong
    assert min(classes[v] for v in ("unstable", "trivial", "kernel regime", "feature learning", "maximal update")) >= 5


@pytest.mark.parametrize(
    ("p", "verdict", "r"),
    [
        (abc.mup(1), "maximal update", 0),
        (abc.mup(3), "maximal update", 0),
        (abc.ntk(2), "kernel regime", HALF),
        (abc.standard(2, c=1), "kernel regime", HALF),
        (abc.standard(2), "unstable", -1),
        (abc.mean_field(), "maximal update", 0),
    ],
)
def test_named_parametrizations(p, verdict, r):
    assert (p.verdict, p.r) == (verdict, r)
    assert p.report().verdict == verdict
    assert p.shifted(HALF).report().verdict == verdict


@pytest.mark.parametrize("p", [abc.ntk(2), abc.standard(3, c=1), abc.parametrization([0, 0, 1], [0, HALF, 0], 0)])
def test_features_change_with_the_exponent_r(p):
    name = f"layers.{p.hidden_layers - 1}"
    assert p.report(steps=2).change_exponent(name, step=2) == -p.r


def test_bad_input():
    with pytest.raises(UsageError, match="one entry a layer"):
        abc.parametrization([0, 0], [0], 1)
