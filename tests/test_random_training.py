"""Limits of random training setups against networks of finite width: what no list of cases would contain."""

from __future__ import annotations

import pytest
from random_sequences import SequenceTraining, sequence_training
from random_training import Training, training

import tpcompile as tp

SEEDS = 1  # in the default run; the slow one takes the next
MANY = 15


def agrees(t: Training | SequenceTraining, *widths: int) -> None:
    """The check of the package, at one level for every setup."""
    compiled = tp.compile(t.make, t.inputs, t.targets, t.loss, steps=t.steps)
    report = compiled.check(widths=widths, seeds=24, level=0.001, particles=4096, replicas=8)
    assert report.passed, f"{t}\n{report}"


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_training_runs_approach_their_limit(seed):
    agrees(training(seed), 128, 256, 512)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS, SEEDS + MANY))
def test_more_random_training_runs_approach_their_limit(seed):
    agrees(training(seed), 128, 256, 512)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_random_sequence_models_approach_their_limit(seed):
    agrees(sequence_training(seed), 64, 128, 256)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(SEEDS, SEEDS + MANY))
def test_more_random_sequence_models_approach_their_limit(seed):
    agrees(sequence_training(seed), 64, 128, 256)


def test_a_loss_that_is_no_polynomial_in_the_kernel_regime():
    """Its gradient is a function of random outputs, at every step after the first."""
    setups = (training(seed) for seed in range(1000))
    agrees(next(t for t in setups if t.loss_name == "cross-entropy" and t.shape.ntk and t.steps > 1), 128, 256, 512)
