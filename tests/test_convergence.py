"""Trained networks of finite width, extrapolated, against the limit: the bounded part of the agreement study.

The whole study is ``tests/benchmarks/agreement.py``. Every tolerance comes from standard errors (the criterion of
:class:`comparison.Comparison`); seeds are fixed. The last tests break the limit on purpose and must be seen.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from functools import cache

import pytest
import torch
from agreement_cases import studies
from comparison import Comparison, Samples, compare, run_widths
from finite_width import Setup
from torch import nn
from zoo import ABC, mlp

import tpcompile as tp
from tpcompile.results import LimitResult

pytestmark = pytest.mark.slow

SEEDS = {128: 256, 256: 192, 512: 96, 1024: 48}  # at width 64 the powers 1 and 2 of 1/n are not enough
LEVEL = 1e-3  # significance below which a limit is rejected
CASES = [
    "mup tanh 3",
    "ntk relu 2",
    "ntk tanh 2",
    "mean field erf 1",
    "tied autoencoder",
    "momentum, weight decay, dampening",
    "minibatches",
    "widths 2n, n, 2n",
    "one Linear twice",
    "cross-entropy, 3 classes",
    "residual",
]


@pytest.fixture(autouse=True)
def _one_thread():
    """Same sums on every machine, and no waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def limit_of(setup: Setup, **options) -> LimitResult:
    if setup.output_init is not None:
        options["output_init"] = setup.output_init
    compiled = tp.compile(setup.make, setup.inputs, setup.targets, setup.loss, steps=setup.steps)
    return compiled.evaluate(particles=8192, replicas=16, **options)


@cache
def samples_of(name: str) -> Samples:
    """Networks of finite width, trained once for all tests."""
    setup = studies()[name]().setup
    compiled = tp.compile(setup.make, setup.inputs, setup.targets, setup.loss, steps=setup.steps)
    return run_widths(setup, compiled.activations, SEEDS, zlib.crc32(name.encode()) % 100_000 * 10_000)


def compared(name: str, limit: LimitResult) -> Comparison:
    return compare(limit, samples_of(name), studies()[name]().powers)


def rejected(found: Comparison) -> bool:
    """The limit is outside the errors: one entry after Bonferroni, or all of them together."""
    return found.bonferroni < LEVEL or found.p_chi2 < LEVEL


@pytest.mark.parametrize("name", CASES)
def test_limit_is_within_errors_of_finite_widths(name):
    limit = limit_of(studies()[name]().setup)
    assert limit.loss is not None
    assert float(limit.loss[-1]) < 0.85 * float(limit.loss[0])  # it trains
    found = compared(name, limit)
    assert not rejected(found), found
    assert found.resolution < 0.05
    for slope, error in found.slopes.values():
        assert error < 0.05
        assert abs(slope + 0.5) < 0.1, found.slopes


# broken limits -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["tied autoencoder", "one Linear twice"])
def test_missing_response_terms_are_seen(name):
    found = compared(name, limit_of(studies()[name]().setup, dot=False))
    assert rejected(found)
    assert found.bonferroni < 1e-6


def shifted(layer: int, a: float = 0.0, b: float = 0.0):
    """The network of "mup tanh 3" with the exponents of one layer shifted."""

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        layers: list[nn.Module] = []
        for i, (fan_in, out, (a0, b0)) in enumerate(
            [(4, n, (-0.5, 0.5)), (n, n, (0.0, 0.5)), (n, n, (0.0, 0.5)), (n, 1, (0.5, 0.5))]
        ):
            layers.append(ABC(n, fan_in, out, a0 + a * (i == layer), b0 + b * (i == layer)))
            if i < 3:
                layers.append(nn.Tanh())
        model = nn.Sequential(*layers)
        return model, torch.optim.SGD(model.parameters(), lr=0.5)

    return make


def test_unshifted_network_is_the_one_of_the_study():
    right = studies()["mup tanh 3"]().setup
    a, b = limit_of(right), limit_of(replace(right, make=shifted(0)))
    assert torch.allclose(a.outputs, b.outputs, atol=1e-12)


@pytest.mark.parametrize(
    ("layer", "a", "b"),
    [
        (0, 0.25, -0.25),  # the same initial network, a power n^-1/2 of the layer's learning rate lost
        (1, 0.25, -0.25),
        (2, 0.25, -0.25),
        (3, 0.25, -0.25),
        (3, 0.0, 0.25),  # initial readout n^-1/4 too small: no signal back at the first step
        (1, 0.0, 0.25),  # a hidden layer's initial weights n^-1/4 too small: no signal forward
    ],
)
def test_shifted_exponents_are_seen(layer, a, b):
    right = studies()["mup tanh 3"]().setup
    found = compared("mup tanh 3", limit_of(replace(right, make=shifted(layer, a, b))))
    assert rejected(found)
    assert found.bonferroni < 1e-6


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("mup tanh 3", mlp("tanh", 3, lr=0.55)),
        ("ntk tanh 2", mlp("tanh", 2, "ntk", lr=0.55)),
        ("ntk relu 2", mlp("relu", 2, "ntk", lr=0.6)),
        (
            "momentum, weight decay, dampening",
            mlp("tanh", 2, lr=0.3, momentum=0.5, weight_decay=0.11, dampening=0.3),
        ),
        (
            "momentum, weight decay, dampening",
            mlp("tanh", 2, lr=0.3, momentum=0.55, weight_decay=0.1, dampening=0.3),
        ),
    ],
    ids=["rate", "rate, kernel regime", "rate doubled, relu kernel regime", "weight decay", "momentum"],
)
def test_wrong_rates_are_seen(name, wrong):
    """A tenth more; twice for relu in the kernel regime, where the power n^-1/2 of the fit costs resolution."""
    right = studies()[name]().setup
    assert rejected(compared(name, limit_of(replace(right, make=wrong))))
