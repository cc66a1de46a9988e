"""Kernels estimated on particles: against integrals, against finite networks, and where there is no integral."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.evaluate.gaussian.moments import FactorisationError

INPUTS = torch.randn(3, 2, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def flat(n: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, n), nn.ReLU(), nn.Linear(n, n), nn.Tanh(), nn.Linear(n, 3))


def normalised(n: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(12, n), nn.LayerNorm(n), nn.GELU(), nn.Linear(n, 2))


def by_position(n: int) -> nn.Module:
    return nn.Sequential(nn.Conv1d(2, n, 3, padding=1), nn.ReLU(), nn.Conv1d(n, 2, 3))


def pooled(n: int) -> nn.Module:
    return nn.Sequential(
        *(nn.Conv1d(2, n, 3, padding=1), nn.ReLU(), nn.Conv1d(n, n, 3), nn.ReLU()),
        *(nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(n, 2)),
    )


class Probabilities(nn.Module):
    """Outputs that are a function of random numbers, and one that is not: none is independent of the others."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.hidden, self.policy, self.value = nn.Linear(12, n), nn.Linear(n, 3), nn.Linear(n, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.hidden(x.flatten(1)))
        return torch.cat([F.log_softmax(self.policy(h), -1), self.value(h)], -1)


@pytest.mark.parametrize("model", [flat, normalised, by_position, pooled, Probabilities])
def test_estimates_agree_with_integrals(model):
    """In shape (which axes of the outputs are independent is found) and, by their standard errors, in value."""
    exact, drawn = tp.kernel(model, INPUTS[0]), tp.kernel(model, INPUTS[0], evaluator="particles")
    values, errors = exact(INPUTS, INPUTS[1:], errors=True)
    found, noise = drawn(INPUTS, INPUTS[1:], errors=True, samples=2048, replicas=24)
    for name in ("nngp", "ntk"):
        assert drawn.pairs(name).positions == exact.pairs(name).positions
        assert drawn.pairs(name).exponent == exact.pairs(name).exponent
        a, b = getattr(values, name), getattr(found, name)
        assert a.shape == b.shape
        spread = (
            getattr(errors, name) ** 2 + getattr(noise, name) ** 2
        ).sqrt() + 2 / 2048 * a.abs().max()  # and a bias
        assert ((a - b) / spread).abs().max() < 4
        assert getattr(noise, name).max() < 0.1 * a.abs().max()
    own = drawn(INPUTS, get="ntk", samples=512)
    turned = own.transpose(0, 1) if own.dim() == 2 else own.permute(1, 0, 3, 2)
    assert torch.allclose(own, turned, rtol=1e-12)
    assert torch.equal(drawn(INPUTS, get="ntk", samples=512, diagonal=True), own[range(3), range(3)])


class Modulated(nn.Module):
    """Features scaled and shifted by what a condition makes of them, twice (no product of small integrals)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed, self.middle, self.read = nn.Linear(6, n), nn.Linear(n, n), nn.Linear(n, 2)
        self.scales = nn.ModuleList(nn.Linear(6, 2 * n) for _ in range(2))
        self.width = n

    def forward(self, x: Tensor) -> Tensor:
        h, condition = torch.relu(self.embed(x[:, 0])), x[:, 1]
        for i, scale in enumerate(self.scales):
            gain, shift = scale(condition).chunk(2, -1)
            h = torch.relu((1 + gain) * h + shift)
            h = self.middle(h) if i == 0 else h
        return self.read(h)


def test_a_model_without_small_integrals_is_named_and_estimated():
    with pytest.raises(FactorisationError, match="evaluator='particles'"):
        tp.kernel(Modulated, INPUTS[0])(INPUTS)
    kernel = tp.kernel(Modulated, INPUTS[0], evaluator="particles")
    assert kernel.sampled
    found, noise = kernel(INPUTS, errors=True, samples=4096, replicas=8)
    draws = [kernel.empirical(1024, INPUTS, seed=seed, get="ntk") for seed in range(24)]
    stacked = torch.stack(draws)
    spread = (stacked.var(0) / len(draws) + noise.ntk**2 + (found.ntk / 1024).square()).sqrt()
    assert ((stacked.mean(0) - found.ntk) / spread).abs().max() < 4
    assert (torch.linalg.eigvalsh(found.nngp) > 0).all()
    posterior = kernel.gp(INPUTS, torch.ones(3, 1, dtype=torch.float64), noise=1e-3)
    assert (posterior.predict(INPUTS).mean - 1).abs().max() < 0.1


class Tied(nn.Module):
    """The readout is the embedding: outputs depend on the rows of it that the input is made of."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(4, n), nn.Linear(n, n)

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.hidden(self.embed(tokens).mean(1)))
        return h @ self.embed.weight.T / self.embed.weight.shape[1] ** 0.5


def test_outputs_of_a_tied_readout_are_kept_apart_where_its_rows_are_used_before():
    tokens = torch.tensor([[0, 1], [2, 1]])
    kernel = tp.kernel(Tied, tokens[0], evaluator="particles")
    assert kernel.pairs("nngp").positions == (4,)
    free = tp.kernel(flat, INPUTS[0], evaluator="particles")
    assert free.pairs("nngp").positions == ()


def test_batch_statistics():
    def model(n: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), nn.Linear(12, n), nn.BatchNorm1d(n), nn.Tanh(), nn.Linear(n, 2))

    drawn = tp.kernel(model, INPUTS, batch=True, evaluator="particles")
    other = tp.kernel(model, INPUTS, batch=True)
    found, noise = drawn(INPUTS, errors=True, samples=2048, replicas=16)
    values, errors = other(INPUTS, errors=True, replicas=16)
    for name in ("nngp", "ntk"):
        spread = (getattr(noise, name) ** 2 + getattr(errors, name) ** 2).sqrt() + 1e-3 * getattr(values, name).max()
        assert ((getattr(found, name) - getattr(values, name)) / spread).abs().max() < 4


def test_what_takes_blocks_is_refused(tmp_path):
    kernel = tp.kernel(flat, INPUTS[0], evaluator="particles")
    for use in (lambda: kernel.to_zarr(INPUTS, tmp_path / "k.zarr"), kernel.sklearn, kernel.gpytorch):
        with pytest.raises(tp.errors.UsageError, match="all inputs together"):
            use()
    with pytest.raises(tp.errors.UsageError, match="block and variances"):
        kernel(INPUTS, block=2)
    with pytest.raises(tp.errors.UsageError, match="evaluator must be"):
        tp.kernel(flat, INPUTS[0], evaluator="gaussian")
