"""``tp.kernel(..., batch=True)``: batch normalisation with the statistics of the batch."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.errors import EvaluationError, UsageError


class Dense(nn.Module):
    """A linear map of the NTK parametrization without bias."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T * self.weight.shape[1] ** -0.5


def mlp(depth: int, act: Callable[[], nn.Module], eps: float = 1e-5, outputs: int = 1) -> Callable[[int], nn.Module]:
    def make(n: int) -> nn.Module:
        sizes = [8] + [n] * depth
        layers = [(Dense(a, b), nn.BatchNorm1d(b, eps=eps), act()) for a, b in pairwise(sizes)]
        return nn.Sequential(*(x for layer in layers for x in layer), Dense(n, outputs))

    return make


class Images(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.filters = nn.Parameter(torch.randn(n, 2, 2))
        self.norm = nn.BatchNorm1d(n)
        self.readout = Dense(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.conv1d(x, self.filters)
        return self.readout(torch.relu(self.norm(h)).mean(-1))


def batch(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@functools.cache
def kernel(name: str) -> tp.Kernel:
    make, shape = {
        "relu": (mlp(1, nn.ReLU), (7, 8)),
        "two layers": (mlp(2, lambda: nn.LeakyReLU(0.2)), (7, 8)),
        "linear": (mlp(1, nn.Identity), (7, 8)),
        "images": (Images, (3, 2, 4)),
        "tanh": (mlp(1, nn.Tanh), (7, 8)),
        "relu, 64 outputs": (mlp(2, nn.ReLU, outputs=64), (7, 8)),
        "tanh, 64 outputs": (mlp(1, nn.Tanh, outputs=64), (7, 8)),
    }[name]
    return tp.kernel(make, torch.zeros(*shape), batch=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu", "images", "linear", "two layers", "tanh"])
def test_against_finite_networks(name: str) -> None:
    """Mean over networks; the O(1/n) bias is below the standard errors. Squared deviations average to one if right.

    Seven inputs of eight dimensions: of fewer the square of a tangent kernel's entry has no mean over networks.
    """
    k, seeds = kernel(name), 30
    x, y = (batch(*k.example.shape, seed=seed) for seed in (0, 1))
    assert k.nngp_exponent == k.ntk_exponent == 0
    for pair in ((x,), (x, y)):
        if name == "tanh" and len(pair) == 2:
            continue
        limit, error = k(*pair, get="ntk", errors=True)
        assert not k.sampled or name == "tanh"
        found = torch.stack([k.empirical(256, *pair, seed=seed, get="ntk") for seed in range(seeds)])
        z = (found.mean(0) - limit) / (found.var(0) / seeds + error**2).sqrt()
        assert float(z.abs().max()) < 4.3  # of 49 entries; 1e-2 in all by Student's t with 29 degrees of freedom
        assert float(z.square().mean().sqrt()) < 1.7


@pytest.mark.slow
@pytest.mark.parametrize("name", ["relu, 64 outputs", "tanh, 64 outputs"])
def test_covariances_against_finite_networks(name: str) -> None:
    k, seeds = kernel(name), 40
    x, y = (batch(*k.example.shape, seed=seed) for seed in (0, 1))
    for pair in ((x,), (x, y)):
        limit, error = k(*pair, get="nngp", errors=True)
        found = torch.stack([k.empirical(256, *pair, seed=seed, get="nngp") for seed in range(seeds)])
        z = (found.mean(0) - limit) / (found.var(0) / seeds + error**2).sqrt()
        assert float(z.abs().max()) < 4.1


def test_a_few_finite_networks() -> None:
    k, x = kernel("relu"), batch(7, 8)
    limit = k.ntk(x)
    found = torch.stack([k.empirical(128, x, seed=seed, get="ntk") for seed in range(10)])
    z = (found.mean(0) - limit) / (found.var(0) / 10).sqrt()
    assert float(z.square().mean().sqrt()) < 2.0
    assert float((found.mean(0) - limit).abs().max() / limit.diagonal().mean()) < 0.2


@pytest.mark.parametrize("size", [3, 4, 16])
def test_closed_form_of_orthogonal_inputs(size: int) -> None:
    """The length of an isotropic vector is independent of its direction: an arc-cosine at correlation -1/(B-1)."""

    def make(n: int) -> nn.Module:
        return nn.Sequential(Dense(size, n), nn.BatchNorm1d(n, eps=1e-14), nn.ReLU(), Dense(n, 1))

    found = tp.kernel(make, torch.zeros(size, size), batch=True).nngp(torch.eye(size).double())
    rho = torch.full((size, size), -1 / (size - 1), dtype=torch.float64).fill_diagonal_(1.0)
    angle = torch.arccos(rho)
    expected = (torch.sin(angle) + (math.pi - angle) * rho) / (2 * math.pi)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


def test_two_batches_that_are_one() -> None:
    """Two integrals over lengths against one, and a stated error that covers the difference."""
    k = kernel("relu")
    x = batch(7, 8)
    own = k(x)
    both = k(x, x.clone())
    error = max(e for _, e in k.forms if e is not None)
    for a, b in zip(own, both, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=20 * error)
        assert torch.equal(a, a.T) or float((a - a.T).abs().max()) < 1e-12
        assert float(torch.linalg.eigvalsh(a).min()) > -1e-12
    assert torch.equal(k(x, diagonal=True).ntk, own.ntk.diagonal())
    assert k.nngp(x.numpy()).shape == (7, 7)
    assert error < 1e-3


def test_statistics_of_the_batch_in_a_kernel_of_single_inputs() -> None:
    with pytest.raises(UsageError, match="batch=True"):
        tp.kernel(mlp(1, nn.ReLU), torch.zeros(8))
    with pytest.raises(UsageError, match="changes with the other inputs"):
        tp.kernel(_Centred, torch.zeros(4))
    fixed = tp.kernel(lambda n: mlp(1, nn.ReLU, eps=0.0)(n).eval(), torch.zeros(8))
    plain = tp.kernel(lambda n: nn.Sequential(Dense(8, n), nn.ReLU(), Dense(n, 1)), torch.zeros(8))
    torch.testing.assert_close(fixed.nngp(batch(3, 8)), plain.nngp(batch(3, 8)))


class _Centred(nn.Module):
    """Statistics of the batch without a layer for it."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.last = Dense(4, n), Dense(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        return self.last(torch.relu(h - h.mean(0)))


def test_batches_that_do_not_fit() -> None:
    k = kernel("relu")
    with pytest.raises(UsageError, match="size of the batch"):
        k.nngp(batch(6, 8))
    with pytest.raises(UsageError, match="at least two"):
        tp.kernel(mlp(1, nn.ReLU), torch.zeros(1, 8), batch=True)
    with pytest.raises(UsageError, match="single inputs"):
        k.gp(batch(7, 8), batch(7, 1))
    with pytest.raises(EvaluationError, match="no derivatives"):
        k.nngp(batch(7, 8).requires_grad_())
