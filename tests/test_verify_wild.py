"""Verify on models as they are written in the wild: their exponents against really trained networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpcompile as tp

X, Y = (
    torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),
    torch.randn(4, 6, generator=torch.Generator().manual_seed(1)),
)


class Autoencoder(nn.Module):
    """A bottleneck of two numbers; torch's own initial values."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 2))
        self.decode = nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Slopes(nn.Module):
    """Trained slopes below zero, one for all and one a coordinate."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, n), nn.PReLU(), nn.Linear(n, n), nn.PReLU(n), nn.Linear(n, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize(("model", "name"), [(Autoencoder, "encode.2.bias"), (Slopes, "layers.1.weight")])
def test_small_biases_behind_kinks_leave_gradients_of_narrow_parameters_decided(model, name):
    """Biases of n^(-1/2) move n^(-1/2) of a relu's slopes: in a sum with free signs that is less."""

    def make(n: int):
        m = model(n)
        return m, torch.optim.SGD(m.parameters(), lr=0.3 / n)

    gradient = tp.verify(make, X, Y, F.mse_loss, steps=1, advice=False).parameters[name].gradient[0]
    assert gradient.exponent == 0
    widths, points = (64, 512, 4096), []
    for n in widths:
        for seed in range(16):
            torch.manual_seed(seed)
            m = model(n)
            F.mse_loss(m(X), Y).backward()
            points.append((math.log(n), math.log(float(m.get_parameter(name).grad.norm()))))
    x, y = np.array(points).T
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert abs(slope) < 3 * covariance[0, 0] ** 0.5 < 0.3


def test_a_parameter_of_one_number_has_a_state_that_is_no_counter():
    """Adam's averages of a logit scale are values of the trace, its counter of steps is not."""

    class Scaled(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.hidden, self.readout = nn.Linear(6, n), nn.Linear(n, 6)
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale.exp() * self.readout(torch.tanh(self.hidden(x))) / 8

    report = tp.verify(
        lambda n: (m := Scaled(n), torch.optim.Adam(m.parameters(), 0.1 / n)), X, Y, F.mse_loss, steps=2, advice=False
    )
    assert report.parameters["scale"].effect[0].exponent == -1


@pytest.mark.parametrize("ddof", [0, 1])
def test_numbers_with_n_minus_one_are_series(ddof):
    """A variance over n - 1 coordinates has gradients with 2 / (n - 1)."""

    class Normed(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.hidden, self.readout = nn.Linear(6, n), nn.Linear(n, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.hidden(x)
            return self.readout((h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True, correction=ddof) + 1e-5))

    def make(n: int):
        m = Normed(n)
        return m, torch.optim.SGD(m.parameters(), lr=0.1)

    report = tp.verify(make, X, Y, F.mse_loss, steps=1, advice=False)
    assert not report.undecided
    assert report.changes["outputs", 1].exponent == 1
    compiled = tp.compile(lambda n: Normed(n), X)
    compiled.check(widths=(256, 1024), seeds=4)
