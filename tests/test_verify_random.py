"""Exponents of random small architectures against the log-log slopes of really trained models.

A slope over a decade of widths sees the sum of several powers. The exponents do not depend on the constant in the
learning rate, but which power is the largest at these widths does: an exponent counts as refuted where no constant of
three makes the slope agree, and a bound where any slope is above it. Behind the first value that grows, powers compound
and saturate, and slopes at these widths say nothing; they are left out.
"""

from __future__ import annotations

import functools
import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from random_models import Architecture, architecture
from random_twins import Twins, twins
from test_verify import X, Y
from torch import nn

import tpcompile as tp

RATES = (0.3, 2.0, 0.05)
STEPS = 2


def disagreements(a: Architecture | Twins, widths: tuple[int, ...], seeds: int) -> tuple[int, int, list[str]]:
    """Rows that were decided and compared, rows that are open, and the rows that real training refutes."""
    report = tp.verify(a.make, X, Y, F.mse_loss, steps=STEPS, advice=False)
    grown = next((t for t in range(STEPS + 1) if _grows(report, t)), STEPS + 1)
    compared, still_open, wrong = 0, 0, []
    left = [("value", n, 0) for n in (*report.activations, "outputs")]
    left += [("change", n, t) for n in (*report.activations, "outputs") for t in range(1, min(grown, STEPS) + 1)]
    seen: dict[tuple[str, str, int], list[str]] = {key: [] for key in left}
    for i, lr in enumerate(RATES):
        check = tp.coordinate_check(
            functools.partial(a.make, lr=lr), X, Y, F.mse_loss, steps=STEPS, widths=widths, seeds=seeds
        )
        for key in list(left):
            size, slope = (report.values if key[0] == "value" else report.changes)[key[1:]], check.slope(*key)
            margin = 0.1 + 3 * slope.stderr
            if size.exponent is None:
                if slope.slope > size.bound + margin:
                    wrong.append(f"{key}: {size} but {slope}")
                still_open += i == 0
                continue
            seen[key].append(str(slope))
            if size.exponent == slope.slope or abs(size.exponent - slope.slope) <= margin:
                left.remove(key)
                compared += 1
        if not any((report.values if k[0] == "value" else report.changes)[k[1:]].exponent is not None for k in left):
            break
    for key in left:
        size = (report.values if key[0] == "value" else report.changes)[key[1:]]
        if size.exponent is not None and not all("?" in s for s in seen[key]):
            wrong.append(f"{key}: {size} but {', '.join(seen[key])}")
    return compared, still_open, wrong


def _grows(report: tp.Report, step: int) -> bool:
    sizes = report.values if step == 0 else report.changes
    exponents = (sizes[name, step].exponent for name in (*report.activations, "outputs"))
    return any(e is None or (e != -math.inf and e > 0) for e in exponents)


# Why the slopes of these at widths 64 to 1024 do not show the exponents.
UNRESOLVED = {
    13: "LayerNorm and a relu: local slopes of the logits 0.64, then 0.79, towards 1",
    35: "-1.21, then -1.13, towards -1",
    54: "-0.34, then -0.07 ± 0.05 at 1024 to 4096, towards 0",
    55: "a readout's n^(1/2) with a factor of 0.05 (means of two gelus) beside order one: 0.5 between 1024 and 4096",
    68: "-0.26, -0.13, -0.06 ± 0.03 at 1024 to 2048, towards 0",
}


@pytest.mark.parametrize("seed", [6, 7, 34])
def test_exponents_are_the_slopes_of_trained_models(seed):
    compared, _, wrong = disagreements(architecture(seed), (64, 256, 1024), 4)
    assert not wrong, architecture(seed)
    assert compared >= 5


@pytest.mark.slow
@pytest.mark.parametrize("seed", [seed for seed in range(70) if seed not in UNRESOLVED])
def test_exponents_of_many_architectures(seed):
    _, _, wrong = disagreements(architecture(seed), (64, 256, 1024), 6)
    assert not wrong, architecture(seed)


@pytest.mark.parametrize("seed", [0, 1])
def test_exponents_of_exchangeable_branches(seed):
    _, _, wrong = disagreements(twins(seed), (64, 256, 1024), 4)
    assert not wrong, twins(seed)


# The same of networks of exchangeable branches.
UNRESOLVED_TWINS = {
    24: "a change of -0.74 ± 0.04, at 512 to 2048 -0.56 ± 0.05, towards -1/2",
    36: "outputs at the start of -0.26 from four seeds; -0.51 ± 0.07 from sixteen",
    38: "a router behind a frozen branch: -0.6, at a rate of 2 -0.27 ± 0.16 from 1024 on, at 6 -0.11 ± 0.08, towards 0",
}


@pytest.mark.slow
@pytest.mark.parametrize("seed", [seed for seed in range(2, 42) if seed not in UNRESOLVED_TWINS])
def test_exponents_of_many_networks_of_exchangeable_branches(seed):
    _, _, wrong = disagreements(twins(seed), (64, 256, 1024), 6)
    assert not wrong, twins(seed)


def test_a_mean_that_vanishes_only_under_a_joint_flip():
    """x is odd in W1 and relu(W2 x) is odd in none, but flipping both leaves it: x · relu(W2 x) is odd in the two.

    Its mean over the coordinates is zero, so that its sum over n coordinates, divided by n, is n^(-1/2).
    """

    class Model(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.first, self.second = nn.Linear(4, n, bias=False), nn.Linear(n, n, bias=False)
            self.readout, self.n = nn.Parameter(torch.ones(1)), n
            nn.init.normal_(self.first.weight)
            nn.init.normal_(self.second.weight, std=n**-0.5)

        def forward(self, x):
            h = torch.tanh(self.first(x))
            return self.readout * (h * torch.relu(self.second(h))).mean(-1, keepdim=True)

    def make(n):
        model = Model(n)
        return model, torch.optim.SGD(model.parameters(), lr=0.1 / n)

    assert tp.verify(make, X, Y, F.mse_loss, steps=1, advice=False).exponent("outputs") == Fraction(-1, 2)


@pytest.mark.parametrize("kind", ["twins", "centred"])
def test_a_mean_that_vanishes_by_coincidence(kind):
    """The difference of two networks of one law, a relu less its mean: neither is n times a number."""

    class Model(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.a, self.b = nn.Linear(4, n, bias=False), nn.Linear(4, n, bias=False)
            nn.init.normal_(self.a.weight)
            nn.init.normal_(self.b.weight)
            self.readout = nn.Parameter(torch.ones(1))

        def forward(self, x):
            x = F.normalize(x, dim=-1)
            if kind == "twins":
                return self.readout * (torch.relu(self.a(x)) - torch.relu(self.b(x))).mean(-1, keepdim=True)
            return self.readout * (torch.relu(self.a(x)) - (2 * math.pi) ** -0.5).mean(-1, keepdim=True)

    def make(n):
        model = Model(n)
        return model, torch.optim.SGD(model.parameters(), lr=0.1 / n)

    size = tp.verify(make, X, Y, F.mse_loss, steps=1, advice=False).size("outputs")
    if kind == "twins":
        assert size.exponent == Fraction(-1, 2)
    else:  # by its number: both cases are given
        assert size.either == (0, Fraction(-1, 2))
