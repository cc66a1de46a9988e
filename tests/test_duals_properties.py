"""Dual activations: what must hold whatever the inputs are."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from product_rule import SymmetricLaw, first_layer
from torch import Tensor

from tpcompile.evaluate.duals import Factor, Pair, dual, together

NAMES = st.sampled_from(
    ["relu", "heaviside", "abs", "leaky_relu", "erf", "gelu", "sin", "hardtanh", "tanh", "softplus"]
)
SEEDS = st.integers(0, 10_000)
quick = settings(max_examples=25, deadline=None)


def factor(name: str) -> Factor:
    return Factor(((name, 0, ()),))


def inputs(seed: int, scale: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """Random, repeated, opposite and zero inputs."""
    x = scale * torch.randn(4, 3, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    return torch.cat([x, x[:1], -x[:1], torch.zeros(1, 3, dtype=dtype)])


def kernel(name: str, x: Tensor) -> tuple[Tensor, Tensor]:
    var = x.square().sum(1)
    how = dual(factor(name), factor(name))
    value = how((x @ x.T), var[:, None], var[None])
    return value, how.diagonal(var)


@quick
@given(NAMES, SEEDS, st.floats(-2, 1.5))
def test_symmetric_positive_and_within_cauchy_schwarz(name: str, seed: int, log_scale: float) -> None:
    value, diagonal = kernel(name, inputs(seed, 10**log_scale))
    size = diagonal.max()
    torch.testing.assert_close(value, value.T, rtol=0, atol=float(1e-11 * size))
    bound = (diagonal[:, None] * diagonal[None]).sqrt()
    assert bool((value.abs() <= bound + 2e-8 * size).all())  # a step at correlation one feels the root of the rounding
    full = value.clone().fill_diagonal_(0) + torch.diag(diagonal)
    assert torch.linalg.eigvalsh(full).min() > -1e-7 * size


@quick
@given(st.sampled_from([("relu", 1), ("abs", 1), ("heaviside", 0), ("leaky_relu", 1)]), SEEDS, st.floats(-6, 6))
def test_homogeneous(case: tuple[str, int], seed: int, log_scale: float) -> None:
    name, degree = case
    x = torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    value, scaled = kernel(name, x)[0], kernel(name, 10**log_scale * x)[0]
    off = ~torch.eye(5, dtype=torch.bool)
    torch.testing.assert_close(scaled[off], value[off] * 10 ** (2 * degree * log_scale), rtol=1e-9, atol=0)


@quick
@given(NAMES, SEEDS)
def test_float32_and_blocks(name: str, seed: int) -> None:
    x = inputs(seed, 1.0)[:4]
    expected = kernel(name, x)[0]
    single = kernel(name, x.float())[0]
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), expected, rtol=0, atol=2e-3)
    var = x.square().sum(1)
    (value,) = together([dual(factor(name), factor(name))], Pair(x @ x.T, var[:, None], var[None]))
    torch.testing.assert_close(value, expected, rtol=0, atol=1e-13)


def test_deep_recursion_stays_finite() -> None:
    x = inputs(0, 1.0)
    for name, depth in (("relu", 100), ("erf", 100), ("tanh", 10)):
        how = dual(factor(name), factor(name))
        var, cov = x.square().sum(1), x @ x.T
        for _ in range(depth):
            var, cov = 2 * how.diagonal(var), 2 * how(cov, var[:, None], var[None])
        assert torch.isfinite(cov).all()


def test_first_layer_of_uniform_weights() -> None:
    law = SymmetricLaw(3**0.5)
    x = torch.randn(4, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    value, error = first_layer(torch.tanh, torch.tanh, x, x, law)
    assert error < 1e-12
    linear, _ = first_layer(lambda u: u, lambda u: u, x, x, law)
    torch.testing.assert_close(linear, x @ x.T, rtol=0, atol=1e-12)
    w = (2 * torch.rand(200_000, 2, generator=torch.Generator().manual_seed(6), dtype=torch.float64) - 1) * law.bound
    h = torch.tanh(w @ x.T)
    sample = h[:, :, None] * h[:, None]
    assert bool(((sample.mean(0) - value).abs() < 5 * sample.std(0) / 200_000**0.5).all())
