"""Grouped convolutions: in the limit the groups are independent and alike, so kernels are those of one group."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpcompile as tp


def convolutional(
    groups: int, end: str, dims: int = 1, depth: int = 2, *, bias: bool = True, pool: bool = False, act: str = "relu"
) -> Callable[[int], nn.Module]:
    """A convolution, grouped ones behind it, and a readout of all positions (flatten) or of their mean."""
    conv, size = (nn.Conv1d, nn.Conv2d)[dims - 1], 2 if pool else 4

    class Net(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.first = conv(3, n, 3, padding=1, bias=bias)
            self.convs = nn.ModuleList(conv(n, n, 3, padding=1, groups=groups, bias=bias) for _ in range(depth - 1))
            self.readout = nn.Linear(n * size**dims if end == "flatten" else n, 1)
            for p in self.parameters():
                nn.init.normal_(p)

        def forward(self, x: Tensor) -> Tensor:
            phi = getattr(torch, act)
            x = phi(self.first(x) / 3)
            for c in self.convs:
                x = phi(c(x) * (2 / c.weight[0].numel()) ** 0.5)  # type: ignore[operator,index]
            if pool:
                x = (F.avg_pool1d, F.avg_pool2d)[dims - 1](x, 2)
            x = x.flatten(1) if end == "flatten" else x.flatten(2).mean(-1)
            return self.readout(x) / self.readout.in_features**0.5

    return Net


CASES = {
    "flatten": {"end": "flatten", "bias": False},
    "flatten, biases": {"end": "flatten"},
    "flatten, pools": {"end": "flatten", "pool": True},
    "mean, pools": {"end": "mean", "pool": True, "bias": False},
    "mean, tanh": {"end": "mean", "act": "tanh"},
    "flatten, depth 3": {"end": "flatten", "depth": 3},
    "mean, depth 3": {"end": "mean", "depth": 3},
    "images, flatten": {"end": "flatten", "dims": 2},
    "images, mean": {"end": "mean", "dims": 2, "pool": True},
}


def images(dims: int) -> Tensor:
    return torch.randn(3, 3, *[4] * dims, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", CASES)
def test_kernels_of_groups_are_those_of_one(name: str) -> None:
    x = images(CASES[name].get("dims", 1))
    grouped, whole = (tp.kernel(convolutional(g, **CASES[name]), torch.zeros(x.shape[1:])) for g in (2, 1))
    for get in ("nngp", "ntk"):
        torch.testing.assert_close(grouped(x, get=get), whole(x, get=get), rtol=1e-11, atol=1e-13)
    assert not grouped.sampled


@pytest.mark.slow
@pytest.mark.parametrize("name", ["flatten, biases", "mean, depth 3"])
def test_against_finite_groups(name: str) -> None:
    x = images(1)
    k = tp.kernel(convolutional(2, **CASES[name]), torch.zeros(x.shape[1:]))
    for get in ("nngp", "ntk"):
        found = torch.stack([k.empirical(256, x, seed=s, get=get) for s in range(60)]).double()
        error = found.std(0) / len(found) ** 0.5
        assert float(((found.mean(0) - k(x, get=get)) / error).abs().max()) < 4  # of 6 entries; the bias is 1/n
