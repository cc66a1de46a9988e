"""Limits of networks with convolutions, pooling, normalisation and indexing (exact tests: test_lowering_exact)."""

from __future__ import annotations

import zlib

import pytest
import torch
import torch.nn.functional as F
import zoo_layers
from comparison import compare, run_widths
from finite_width import Setup
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.errors import TpcompileError

SETUPS = zoo_layers.setups()
SEEDS = {128: 96, 256: 64, 512: 32}
LEVEL = 1e-3
STEPS = 2
CHOSEN = [
    *("indexing", "convolutions", "average pooling", "max pooling", "batch norm of images"),
    *("strided", "depthwise", "groups", "groups from zero", "transposed", "few channels"),
    *("layer norm", "rms norm", "group norm", "batch norm", "batch norm by running statistics", "normalize"),
]


@pytest.fixture(autouse=True)
def _one_thread():
    """Same sums on every machine, and no waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_limit_is_within_errors_of_finite_widths(name):
    make, x, y = SETUPS[name]
    setup = Setup(make, x, y, F.mse_loss, STEPS, None)
    compiled = tp.compile(make, x, y, F.mse_loss, steps=STEPS)
    limit = compiled.evaluate(particles=4096, replicas=6)
    assert limit.loss is not None
    assert float(limit.loss[-1]) < 0.95 * float(limit.loss[0])  # it trains
    samples = run_widths(setup, compiled.activations, SEEDS, zlib.crc32(name.encode()) % 100_000 * 10_000)
    found = compare(limit, samples)
    assert found.bonferroni > LEVEL, found
    assert found.resolution < 0.2, found  # statistics of a batch of three have heavy tails


def test_program_length_depends_on_neither_batch_nor_positions():
    def length(batch: int, size: int) -> int:
        x = torch.randn(batch, 2, size, size)
        y = torch.randn(batch, 1)
        return len(tp.compile(SETUPS["max pooling"][0], x, y, F.mse_loss, steps=1).program)

    assert length(2, 4) == length(3, 6)


@pytest.mark.parametrize("power", [0.0, 0.5, -0.5], ids=["both", "eps", "variance"])
def test_whether_epsilon_counts_is_decided_by_exponents(power):
    """``norm(n^-p h)`` with eps = 1: both count for p = 0; for p > 0 eps alone; for p < 0 the variance alone."""

    class Scaled(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.first = nn.Parameter(torch.randn(n, 4))
            self.power = float(n) ** -power
            self.norm = nn.LayerNorm(n, eps=1.0, elementwise_affine=False)

        def forward(self, x: Tensor) -> Tensor:
            h = x @ self.first.T
            normed = self.norm(h * self.power) / min(self.power, 1.0)
            return (normed * normed).mean(-1, keepdim=True)

    x = torch.eye(4)[:1]  # Z standard normal
    wanted = {0.0: 0.5, 0.5: 1.0, -0.5: 1.0}[power]
    found = tp.compile(Scaled, x).evaluate(particles=1024, replicas=2).outputs
    assert float(found) == pytest.approx(wanted, abs=1e-9)


def test_a_statistic_that_vanishes_exactly_is_an_error():
    class Constant(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.first = nn.Linear(4, n)
            self.norm = nn.LayerNorm(n, eps=0.0)

        def forward(self, x: Tensor) -> Tensor:
            h = self.first(x)
            return self.norm(h - h).mean(-1, keepdim=True)

    with pytest.raises(TpcompileError, match="rsqrt"):
        tp.compile(Constant, torch.randn(2, 4))


def test_batch_statistics_have_no_jacobian_of_one_sample():
    make, x, _ = SETUPS["batch norm"]
    with pytest.raises(TpcompileError, match="Jacobian"):
        tp.compile(make, x).evaluate(particles=64, replicas=1).ntk()


UNSUPPORTED = {
    "adaptive max pooling": lambda h: F.adaptive_max_pool2d(h, 2),
    "max unpooling": lambda h: F.max_unpool2d(*F.max_pool2d(h, 2, return_indices=True), [2, 2]),
    "local response": lambda h: F.local_response_norm(h, 3),
}


@pytest.mark.parametrize("name", UNSUPPORTED)
def test_what_has_no_rule_is_named_with_its_place(name):
    _, x, _ = SETUPS["convolutions"]
    with pytest.raises(TpcompileError, match=r"middle|own forward") as error:
        tp.compile(lambda n: zoo_layers.Images(n, zoo_layers.Apply(UNSUPPORTED[name])), x)
    assert "report it" not in str(error.value)
