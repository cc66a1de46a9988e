"""The empirical coordinate check: its slopes, their errors, and agreement with the exact exponents."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from test_verify import MLP, X, Y

import tpcompile as tp
from tpcompile.parametrization.empirical import CoordinateCheck

WIDTHS = (64, 128, 256, 512)


def test_slopes_of_known_powers():
    n = torch.tensor(WIDTHS, dtype=torch.float64).unsqueeze(1)
    sizes = {
        ("value", "exact", 0): (3 * n**-0.5).expand(-1, 2),
        ("value", "noisy", 0): n**0.5 * torch.tensor([0.9, 1.1]),
        ("value", "zero", 0): torch.zeros(4, 2),
        ("value", "lost", 0): torch.full((4, 2), math.nan),
    }
    check = CoordinateCheck(WIDTHS, 2, 1, sizes)
    exact = check.slope("value", "exact", 0)
    assert exact.slope == pytest.approx(-0.5, abs=1e-6)
    assert exact.stderr < 1e-6
    noisy = check.slope("value", "noisy", 0)
    assert noisy.slope == pytest.approx(0.5, abs=1e-6)
    assert noisy.stderr == pytest.approx(0.055, abs=0.02)
    assert str(check.slope("value", "zero", 0)) == "zero"
    assert str(check.slope("value", "lost", 0)) == "?"
    with pytest.raises(tp.errors.UsageError, match="no value"):
        check.slope("value", "missing", 0)


@pytest.mark.parametrize("power", [-1.0, -0.5])
def test_slopes_agree_with_the_exponents(power):
    """Stable in the kernel regime, and unstable: the change of the logits grows."""

    def make(n):
        model = MLP(n, depth=2)
        return model, torch.optim.SGD(model.parameters(), lr=3.0 * n**power)

    report = tp.verify(make, X, Y, F.mse_loss, steps=1, advice=False)
    check = tp.coordinate_check(make, X, Y, F.mse_loss, steps=1, widths=(128, 512, 2048), seeds=5)
    rows = check.rows(report)
    assert {name for _, name, *_ in rows} == {"hidden.0", "hidden.1", "readout", "outputs", "loss"}
    assert all(agree in (True, None) for *_, agree in rows), rows
    assert sum(agree is True for *_, agree in rows) >= 8
