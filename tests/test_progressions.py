"""Buffers that no draw made and whose entries are a function of their place."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tpcompile as tp

X, Y = torch.tensor([[0.3, -1.0, 0.8], [1.1, 0.4, -0.2]]), torch.tensor([[0.5], [-0.7]])


def factory(entries):
    class Net(nn.Module):
        scales: torch.Tensor

        def __init__(self, n):
            super().__init__()
            self.first, self.readout = nn.Linear(3, n), nn.Linear(n, 1)
            self.register_buffer("scales", entries(n))

        def forward(self, x):
            return self.readout(tp.tap(torch.tanh(self.first(x)) * self.scales, "scaled"))

    def make(n):
        model = Net(n)
        return model, torch.optim.SGD(model.parameters(), lr=0.1 / n)

    return make


@pytest.mark.parametrize(
    ("entries", "exponent"),
    [
        (lambda n: 10.0 ** -(torch.arange(n) / n), 0),
        (lambda n: n**-0.5 * torch.exp(torch.arange(n) / n), -0.5),
        (lambda n: torch.linspace(-1, 1, n + 1)[:-1], 0),
        (lambda n: (torch.arange(n) + 0.5 * n) / n**2, -1),
    ],
)
def test_progressions_have_the_measured_size(entries, exponent):
    make = factory(entries)
    report = tp.verify(make, X, Y, F.mse_loss, steps=1, advice=False)
    assert report.exponent("scaled", step=0) == exponent
    slopes = tp.coordinate_check(make, X, Y, loss=F.mse_loss, steps=1, widths=(64, 256, 1024), seeds=2).rows(report)
    for quantity, value, step, exact, slope, _ in slopes:
        if value == "scaled":
            assert abs(Fraction(exact) - slope.slope) < 0.1 + 3 * slope.stderr, (quantity, step, exact, str(slope))


@pytest.mark.parametrize("entries", [lambda n: (torch.arange(n) / n) ** 2, lambda n: torch.arange(n) % 3 + 1.0])
def test_other_functions_of_the_place_are_refused(entries):
    with pytest.raises(tp.errors.InitialisationError, match="'scales' has constant entries that differ"):
        tp.verify(factory(entries), X, Y, F.mse_loss, steps=1, advice=False)


def test_a_given_law_comes_first_and_limits_need_one():
    """The sum over places of a limit is known better than that of independent draws: only sizes are followed."""
    make = factory(lambda n: 10.0 ** -(torch.arange(n) / n))
    with pytest.raises(tp.errors.TpcompileError, match="places along an axis"):
        tp.compile(make, X, Y, F.mse_loss, steps=1)
    tp.compile(make, X, Y, F.mse_loss, steps=1, init={"scales": tp.Uniform(0.1, 1.0)})
