"""Limits of random training setups against networks of finite width: what no list of cases would contain."""

from __future__ import annotations

import pytest
from random_sequences import sequence_training
from random_training import training

import tpcompile as tp

SEEDS = 1  # in the default run; the slow one takes the next
MANY = 40


def agrees(seed: int) -> None:
    t = training(seed)
    compiled = tp.compile(t.make, t.inputs, t.targets, t.loss, steps=t.steps)
    report = compiled.check(widths=(128, 256, 512), seeds=24, level=0.001, particles=4096, replicas=8)
    assert report.passed, f"{t.shape} {t.loss_name} {t.optimizer_name}\n{report}"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_training_runs_approach_their_limit(seed):
    agrees(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS, SEEDS + MANY))
def test_more_random_training_runs_approach_their_limit(seed):
    agrees(seed)


def sequence_agrees(seed: int) -> None:
    t = sequence_training(seed)
    compiled = tp.compile(t.make, t.inputs, t.targets, t.loss, steps=t.steps)
    report = compiled.check(widths=(64, 128, 256), seeds=24, level=0.001, particles=4096, replicas=8)
    assert report.passed, f"{t.options}\n{report}"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_sequence_models_approach_their_limit(seed):
    sequence_agrees(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS, SEEDS + MANY))
def test_more_random_sequence_models_approach_their_limit(seed):
    sequence_agrees(seed)


def test_a_loss_that_is_no_polynomial_in_the_kernel_regime():
    """Its gradient is a function of random outputs, at every step after the first."""
    agrees(next(seed for seed in range(1000) if _kernel_regime(seed, "cross-entropy")))


def _kernel_regime(seed: int, loss_name: str) -> bool:
    t = training(seed)
    return t.loss_name == loss_name and t.shape.ntk and t.steps > 1
