"""Kernels of networks whose backward Gaussians depend on the forward ones, where naive kernels are wrong.

A naive kernel takes fresh matrices (a readout of mean zero and the same second moment) in the backward pass. Compared
with finite networks of width 256 and, for a readout of non-zero mean, with the recursion of the backward pass in which
``W^T`` has its response term (Yang 2020, arXiv:2006.14548, section 6.1: the check of gradient independence that fails).
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpcompile as tp

WIDTH, SEEDS = 256, 96


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


def scaled(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight.T / weight.shape[1] ** 0.5


def inputs() -> Tensor:
    return torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(3))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max() / b.diagonal().mean())


def errors_from(k: tp.Kernel, x: Tensor, *limits: Tensor) -> list[float]:
    """Largest distances of the mean over networks from each kernel, in standard errors."""
    found = torch.stack([k.empirical(WIDTH, x, seed=seed, get="ntk") for seed in range(SEEDS)])
    error = found.std(0) / SEEDS**0.5
    return [float(((found.mean(0) - limit) / error).abs().max()) for limit in limits]


class Twice(nn.Module):
    """A matrix that is used twice, or an independent one in its second place."""

    def __init__(self, n: int, independent: bool) -> None:
        super().__init__()
        self.first, self.weight, self.readout = parameter(n, 3), parameter(n, n), parameter(1, n)
        self.other = parameter(n, n) if independent else None


class BackAndForth(Twice):
    """A matrix and then its transpose, or an independent one."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(scaled(self.weight, x @ self.first.T / 3**0.5))
        back = self.weight.T if self.other is None else self.other
        return scaled(self.readout, torch.relu(scaled(back, h)))


class TiedReadout(Twice):
    """The readout ``W o`` is tied to the hidden matrix W, or made of an independent one."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(scaled(self.weight, torch.relu(x @ self.first.T)))
        tied = self.weight if self.other is None else self.other
        return scaled(scaled(tied, self.readout), h)


class Uncentred(nn.Module):
    """Relu layers under a readout of entries N(mean, variance) times a power of n."""

    def __init__(self, n: int, hidden: int, mean: float, variance: float, power: float = -0.5) -> None:
        super().__init__()
        self.n, self.power = n, power
        self.first = parameter(n, 3)
        self.hidden = nn.ParameterList(parameter(n, n) for _ in range(hidden))
        self.readout = nn.Parameter(mean + variance**0.5 * torch.randn(1, n))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(x @ self.first.T)
        for weight in self.hidden:
            x = torch.relu(scaled(weight, x) * 2**0.5)
        return x @ self.readout.T * self.n**self.power


@pytest.mark.parametrize(("model", "nngp", "ntk"), [(BackAndForth, 0.4, 0.25), (TiedReadout, 0.5, 0.3)])
def test_a_matrix_met_twice(model: type[nn.Module], nngp: float, ntk: float) -> None:
    x = inputs()
    k, naive = (tp.kernel(lambda n, b=b: model(n, b), torch.zeros(3)) for b in (False, True))
    ours, theirs = k(x), naive(x)
    assert distance(theirs.nngp, ours.nngp) > nngp
    assert distance(theirs.ntk, ours.ntk) > ntk
    right, wrong = errors_from(k, x, ours.ntk, theirs.ntk)
    assert right < 3.0
    assert wrong > 5.0


def arc_cosine(k: Tensor) -> tuple[Tensor, Tensor]:
    """``E[relu relu]`` and ``E[step step]`` of Gaussians of covariance k (Cho & Saul 2009, eq. 3)."""
    length = k.diagonal().sqrt()
    cos = (k / length[:, None] / length).clamp(-1.0, 1.0)
    angle = torch.arccos(cos)
    relu = length[:, None] * length * (angle.sin() + (math.pi - angle) * cos) / (2 * math.pi)
    return relu, (math.pi - angle) / (2 * math.pi)


def recursion(x: Tensor, hidden: int, mean: float, variance: float) -> Tensor:
    """The tangent kernel of :class:`Uncentred` at power -1/2, backwards.

    With ``d = n df/dh`` of a layer, ``d = step(h) (g + c relu(h))``: g Gaussian of covariance ``2 E[d d']`` of the
    layer above, ``c = 2 E[dd/dh]`` of it. In the last layer g is the readout and c is zero.
    """
    before = [x @ x.T]  # covariances of the pre-activations
    duals = []
    for _ in range(hidden + 1):
        duals.append(arc_cosine(before[-1]))
        before.append(2 * duals[-1][0])
    total = duals[-1][0].clone()
    above = torch.full_like(total, mean**2 + variance)
    c = torch.zeros(len(x), dtype=x.dtype)
    for layer in reversed(range(hidden + 1)):
        relu, step = duals[layer]
        squares = step * above + c[:, None] * c * relu
        total += squares * before[layer]
        # E[dd/dh]: the density at the kink times the mean of the readout, or the slope of c relu
        last = mean / (2 * math.pi * before[layer].diagonal()).sqrt()
        c = 2 * (last if layer == hidden else c / 2)
        above = 2 * squares
    return total


@pytest.mark.parametrize("power", [-0.5, -1.0])
@pytest.mark.parametrize("hidden", [0, 1, 2, 6])
def test_a_readout_of_non_zero_mean(hidden: int, power: float) -> None:
    """With 1/n the output is of order one and the kernel of order 1/n; with n^(-1/2) the output is n^(1/2)."""
    x = inputs()
    k = tp.kernel(lambda n: Uncentred(n, hidden, 1.0, 0.5, power), torch.zeros(3))
    assert (k.nngp_exponent, k.ntk_exponent) == (1 + 2 * (power + 0.5), 2 * (power + 0.5))
    torch.testing.assert_close(k.ntk(x), recursion(x, hidden, 1.0, 0.5), rtol=1e-7, atol=1e-7)


def test_a_readout_of_non_zero_mean_against_finite_networks() -> None:
    """The kernel that takes gradients for independent is off by a third."""
    x = inputs()
    k, naive = (tp.kernel(lambda n, a=a: Uncentred(n, 2, *a), torch.zeros(3)) for a in ((1.0, 1.0), (0.0, 2.0)))
    ours, theirs = k.ntk(x), naive.ntk(x)
    assert distance(theirs, ours) > 0.3
    right, wrong = errors_from(k, x, ours, theirs)
    assert right < 3.0
    assert wrong > 5.0


class Narrowing(nn.Module):
    """Layers of different widths, a bias and smooth functions under a readout of non-zero mean."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.narrow, self.wide = parameter(2 * n, 3), parameter(n, 2 * n), parameter(2 * n, n)
        self.bias, self.readout = parameter(n), nn.Parameter(1 + torch.randn(1, 2 * n))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(scaled(self.narrow, scaled(self.first, x)) + self.bias)
        return scaled(self.readout, F.gelu(2 * scaled(self.wide, x)))


class Residual(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.up, self.down = parameter(n, 3), parameter(n, n), parameter(n, n)
        self.readout = nn.Parameter(1 + torch.randn(1, n))

    def forward(self, x: Tensor) -> Tensor:
        x = scaled(self.first, x)
        x = x + scaled(self.up, torch.relu(x))
        return scaled(self.readout, torch.relu(x + scaled(self.down, torch.tanh(x))))


class Recurrent(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.into, self.weight = parameter(n, 1), parameter(n, n)
        self.readout = nn.Parameter(1 + torch.randn(1, n))

    def forward(self, x: Tensor) -> Tensor:
        h = scaled(self.into, x[:, :1])
        for t in (1, 2):
            h = torch.relu(scaled(self.weight, h) + scaled(self.into, x[:, t : t + 1]))
        return scaled(self.readout, h)


@pytest.mark.parametrize("model", [Narrowing, Residual, Recurrent])
def test_other_models_under_a_readout_of_non_zero_mean(model: type[nn.Module]) -> None:
    x = inputs()
    k = tp.kernel(model, torch.zeros(3))
    assert errors_from(k, x, k.ntk(x))[0] < 3.0


class InnerProduct(nn.Module):
    """``<W a, W b> / sqrt(n)``: its variance is 2, one from W and one from ``<a, b>``."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b, self.weight = parameter(n), parameter(n), parameter(n, n)

    def forward(self, x: Tensor) -> Tensor:
        return x * (scaled(self.weight, self.a) * scaled(self.weight, self.b)).sum() / len(self.a) ** 0.5


def test_a_sum_that_sees_an_earlier_inner_product() -> None:
    torch.testing.assert_close(tp.kernel(InnerProduct, torch.ones(1)).nngp(torch.ones(1, 1)), torch.tensor([[2.0]]))
