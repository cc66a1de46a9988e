"""First layers whose weights are uniform, as torch draws them: expectations by Fourier series."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from product_rule import SymmetricLaw, first_layer
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.evaluate import duals
from tpcompile.evaluate.duals import fourier

ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "step": lambda x: (x > 0).to(x.dtype),
    "shifted": lambda x: torch.relu(x - 0.3),
}
KINKS = {"shifted": (0.3,)}


def rows(count: int, d: int, seed: int = 0) -> Tensor:
    return torch.randn(count, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("act", ["relu", "step"])
def test_normal_summands_have_the_closed_form(act: str) -> None:
    """Equal, opposite, nearly equal and zero coefficients among them."""
    x = rows(3, 5)
    a = torch.cat([x, x[:1], x[:1], x[:1], x[:1] * 0])
    b = torch.cat([x.roll(1, 0), x[:1], -2 * x[:1], x[:1] + 0.01 * x[1:2], x[:1]])
    laws = fourier.Laws(torch.zeros(5).double(), torch.full((5,), 0.7).double())
    f = ACTS[act]
    found, error = fourier.two_sums(f, f, ((0.0,), (0.0,)), a, b, laws)
    name = "relu" if act == "relu" else "step"
    part = duals.Factor((("relu", int(name == "step"), ()),))
    cov, u, v = (laws.variance(*pair) for pair in ((a, b), (a, a), (b, b)))
    expected = duals.dual(part, part)(cov, u, v)
    expected[-1] = 0.0  # the value at zero of either function
    torch.testing.assert_close(found, expected, rtol=1e-8, atol=10 * error + 1e-9)


@pytest.mark.parametrize("act", ["tanh", "relu"])
def test_three_uniform_summands_against_a_product_rule(act: str) -> None:
    x = rows(3, 3)
    f = ACTS[act]
    expected, accuracy = first_layer(f, f, x, x, SymmetricLaw(1.2))
    laws = fourier.Laws(torch.full((3,), 1.2).double(), torch.zeros(3).double())
    i, j = torch.triu_indices(3, 3).unbind()
    found, error = fourier.two_sums(f, f, ((0.0,), (0.0,)), x[i], x[j], laws)
    assert error < 1e-6
    torch.testing.assert_close(found, expected[i, j], rtol=0, atol=10 * error + accuracy)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("d", [4, 20])
def test_uniform_summands_against_draws(act: str, d: int) -> None:
    x = rows(3, d, seed=d)
    f = ACTS[act]
    half = torch.full((d,), 2 * d**-0.5).double()
    i, j = torch.triu_indices(3, 3).unbind()
    kinks = KINKS.get(act, (0.0,))
    found, error = fourier.two_sums(f, f, (kinks, kinks), x[i], x[j], fourier.Laws(half, 0 * half))
    assert error < 1e-8
    generator = torch.Generator().manual_seed(1)
    w = half * (2 * torch.rand(400_000, d, dtype=torch.float64, generator=generator) - 1)
    values = f(w @ x[i].T) * f(w @ x[j].T)
    noise = values.std(0) / len(values) ** 0.5
    assert float(((found - values.mean(0)) / noise).abs().max()) < 4  # 6 entries, 8 cases: 3.6 is expected


class Default(nn.Module):
    """Linear layers as torch initialises them."""

    def __init__(self, n: int, act: str = "relu", normal_bias: bool = False) -> None:
        super().__init__()
        self.act = act
        self.first, self.second, self.readout = nn.Linear(6, n), nn.Linear(n, n), nn.Linear(n, 1)
        if normal_bias:
            nn.init.normal_(self.first.bias)

    def forward(self, x: Tensor) -> Tensor:
        act = ACTS[self.act]
        return self.readout(act(self.second(act(self.first(x)) * 2)))


@pytest.mark.parametrize("act", ["relu", "tanh"])
@pytest.mark.parametrize("normal_bias", [False, True])
def test_linear_layers_of_torch_are_not_drawn(act: str, normal_bias: bool) -> None:
    """The NNGP against the same with its first layer drawn; inputs of which two are equal and two opposite."""
    x = rows(3, 6)
    x = torch.cat([x, x[:1], -x[:1]])
    k = tp.kernel(lambda n: Default(n, act, normal_bias), torch.zeros(6))
    found, ntk = k(x)
    assert not k.sampled
    errors = [e for name, e in k.forms if name.startswith("Fourier") and e is not None]
    assert errors
    assert max(errors) < 1e-8
    torch.testing.assert_close(found, found.T, rtol=0, atol=0)
    assert float(torch.linalg.eigvalsh(ntk).min()) > -1e-10
    torch.testing.assert_close(k.nngp(x[:2], x), found[:2], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(k.nngp(x, diagonal=True), found.diagonal(), rtol=1e-9, atol=1e-9)


def test_against_the_first_layer_drawn() -> None:
    """One hidden layer: a third of the covariance of the activations."""
    x = rows(4, 6)

    class One(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.first, self.readout = nn.Linear(6, n), nn.Linear(n, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.readout(torch.relu(self.first(x) * 2))

    found = tp.kernel(One, torch.zeros(6)).nngp(x)
    w = (2 * torch.rand(1_000_000, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) - 1) / 6**0.5
    h = torch.relu(2 * (w[:, :6] @ x.T + w[:, 6:])) / 3**0.5
    products = h[:, :, None] * h[:, None, :]
    z = (found - products.mean(0)) / (products.std(0) / len(h) ** 0.5)
    assert float(z.abs().max()) < 3.5  # of 10 entries
    normal = torch.randn(1_000_000, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(3)) / 18**0.5
    g = torch.relu(2 * (normal[:, :6] @ x.T + normal[:, 6:])) / 3**0.5
    apart = (found - g.T @ g / len(g)) / (products.std(0) / len(h) ** 0.5)
    assert float(apart.abs().max()) > 5  # the law counts


def test_derivatives_and_variances() -> None:
    x = rows(2, 6)
    k = tp.kernel(lambda n: Default(n, "tanh"), torch.zeros(6))
    moved = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(k.nngp(moved)[0, 1], moved)
    step = torch.zeros_like(x)
    step[0, 2] = 1e-4
    expected = (k.nngp(x + step)[0, 1] - k.nngp(x - step)[0, 1]) / 2e-4
    assert float(slope[0, 2]) == pytest.approx(float(expected), rel=1e-5)
    wide = {"first.weight": 4 / 18, "first.bias": 4 / 18}
    doubled = tp.kernel(lambda n: Doubled(n), torch.zeros(6))
    torch.testing.assert_close(k.nngp(x, variances=wide), doubled.nngp(x), rtol=1e-9, atol=1e-9)


class Doubled(Default):
    def __init__(self, n: int) -> None:
        super().__init__(n, "tanh")
        with torch.no_grad():
            for p in self.first.parameters():
                p *= 2
