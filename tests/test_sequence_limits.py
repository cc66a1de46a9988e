"""Limits of models with split axes, of recurrent ones and of attention, against trained networks of finite width.

Means over seeds at two widths, extrapolated by 1/n; what an output changes by since initialisation is compared,
where the noise of the initial output cancels. The bound is Bonferroni's at 1e-3 over the compared entries.
"""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from zoo_attention import attention_cases, embedding_cases, root_cases
from zoo_recurrent import recurrent_cases
from zoo_sequences import split_cases

import tpcompile as tp
from tpcompile.simulate import simulate

pytestmark = pytest.mark.slow

CASES = split_cases() | recurrent_cases() | attention_cases() | embedding_cases()
NAMES = [
    *("chunk", "cat of unequal", "growing heads", "rotary", "mixed orders", "parts of a matrix"),
    *("rnn of two layers", "gru", "lstm, default", "lstm of two layers", "rnn of both directions"),
    *("fused", "masked heads of size 4", "tied queries and keys", "transformer block"),
    *("nn.MultiheadAttention, masked", "nn.MultiheadAttention, cross", "embedding, module", "embedding, tied"),
]
WIDTH, SEEDS, LEVEL = 128, 100, 1e-3


def _changes(outputs: torch.Tensor) -> torch.Tensor:
    return outputs[1:] - outputs[:1]


def _deviation(limit: torch.Tensor, stderr: torch.Tensor, narrow: torch.Tensor, wide: torch.Tensor) -> float:
    """Largest deviation in standard errors over that which is allowed; samples are stacked over seeds."""
    mean = 2 * wide.mean(0) - narrow.mean(0)
    error = (stderr**2 + (4 * wide.var(0) + narrow.var(0)) / len(wide)).sqrt()
    return float(((mean - limit).abs() / error).max()) / float(stats.norm.isf(LEVEL / 2 / limit.numel()))


@pytest.mark.parametrize("name", NAMES)
def test_changes_of_outputs_are_those_of_wide_networks(name):
    case = CASES[name]
    result = tp.compile(case.make, case.inputs, case.targets, case.loss, steps=case.steps).evaluate(
        particles=4096, replicas=8
    )
    narrow, wide = (
        torch.stack(
            [
                _changes(
                    simulate(
                        case.make,
                        case.inputs,
                        case.targets,
                        case.loss,
                        steps=case.steps,
                        width=width,
                        seed=seed,
                        dtype=torch.float64,
                    ).outputs
                )
                for seed in range(SEEDS)
            ]
        )
        for width in (WIDTH, 2 * WIDTH)
    )
    limit = _changes(result.outputs)
    assert float(limit.abs().max()) > 0.01
    assert _deviation(limit, result.outputs_stderr[1:], narrow, wide) < 1


@pytest.mark.parametrize("name", ["two heads", "fused", "causal", "nn.MultiheadAttention"])
def test_kernels_of_random_attention_are_those_of_wide_networks(name):
    case = root_cases()[name]
    compiled = tp.compile(case.make, case.inputs)
    layer = "attention.inner" if name.startswith("nn.") else "attention.out"
    limit = compiled.evaluate(particles=4096, replicas=8, ensemble=256).feature_kernel(layer)
    narrow, wide = (
        torch.stack(
            [
                simulate(case.make, case.inputs, width=width, seed=seed, dtype=torch.float64).feature_kernel(layer)
                for seed in range(2 * SEEDS)
            ]
        )
        for width in (WIDTH, 2 * WIDTH)
    )
    assert _deviation(limit, torch.full_like(limit, 0.005), narrow, wide) < 1
