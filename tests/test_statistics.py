from __future__ import annotations

import math

import pytest
import torch
from scipy import stats

from tpcompile.errors import UsageError
from tpcompile.statistics import bonferroni_threshold, combined_dof, extrapolate, fit_slope, normal_score

WIDTHS = (64, 128, 256)


def noisy(generator, entries=2000, seeds=8, curve=lambda n: 1 + 5 / n, scale=1.0):
    return {
        n: curve(n) + scale * torch.randn(seeds, entries, generator=generator, dtype=torch.float64) / math.sqrt(n)
        for n in WIDTHS
    }


@pytest.mark.parametrize(
    ("powers", "curve"),
    [
        ((1,), lambda n: 2 - 3 / n),
        ((1, 2), lambda n: 2 - 3 / n + 40 / n**2),
        ((0.5,), lambda n: 2 + n**-0.5),
    ],
)
def test_exact_without_noise(powers, curve):
    samples = {n: torch.full((2, 3), curve(n), dtype=torch.float64) for n in WIDTHS}
    result = extrapolate(samples, powers)
    torch.testing.assert_close(result.mean, torch.full((3,), 2.0, dtype=torch.float64), rtol=1e-10, atol=0)
    assert not result.stderr.any()
    assert sum(result.weights.values()) == pytest.approx(1)


@pytest.mark.parametrize("powers", [(1,), (1, 2)])
def test_errors_are_calibrated(powers):
    generator = torch.Generator().manual_seed(0)
    result = extrapolate(noisy(generator), powers)
    t = (result.mean - 1) / result.stderr
    z = normal_score(t, result.dof)
    assert float(z.mean()) == pytest.approx(0, abs=0.1)
    assert float(z.std()) == pytest.approx(1, abs=0.05)
    assert float((z.abs() > 1.96).double().mean()) == pytest.approx(0.05, abs=0.02)
    if powers == (1,):
        assert result.misfit == pytest.approx(1, abs=0.15)
    else:
        assert result.misfit is None


def test_misfit_sees_a_wrong_power():
    generator = torch.Generator().manual_seed(1)
    result = extrapolate(noisy(generator, curve=lambda n: 1 + n**-0.5, scale=0.05))
    assert result.misfit is not None
    assert result.misfit > 3


def test_extrapolation_refusals():
    one = {64: torch.zeros(4, 2), 128: torch.zeros(4, 2)}
    with pytest.raises(UsageError, match="2 widths cannot determine"):
        extrapolate(one, (1, 2))
    with pytest.raises(UsageError, match="two seeds"):
        extrapolate({64: torch.zeros(1, 2), 128: torch.zeros(1, 2)})
    with pytest.raises(UsageError, match="differ in shape"):
        extrapolate({64: torch.zeros(2, 2), 128: torch.zeros(2, 3)})
    with pytest.raises(UsageError, match="powers"):
        extrapolate(one, (0,))


def test_slopes():
    exact = fit_slope(WIDTHS, [3 * n**-0.5 for n in WIDTHS])
    assert exact.slope == pytest.approx(-0.5)
    assert exact.factor == pytest.approx(3)
    assert exact.stderr == pytest.approx(0, abs=1e-12)
    generator = torch.Generator().manual_seed(2)
    scores = []
    for _ in range(400):
        noise = torch.exp(0.05 * torch.randn(3, generator=generator, dtype=torch.float64))
        distances = torch.tensor(WIDTHS) ** -0.5 * noise
        fitted = fit_slope(WIDTHS, distances, 0.05 * distances)
        scores.append((fitted.slope + 0.5) / fitted.stderr)
    assert float(torch.tensor(scores).std()) == pytest.approx(1, abs=0.12)
    assert math.isnan(fit_slope([1, 2], [1, 0.5]).stderr)
    with pytest.raises(UsageError, match="positive"):
        fit_slope(WIDTHS, [1, 0, 1])
    with pytest.raises(UsageError, match="two widths"):
        fit_slope([4], [1])


def test_scores():
    assert float(normal_score(torch.tensor([1.7]), torch.tensor([math.inf]))) == pytest.approx(1.7, abs=1e-4)
    t = torch.tensor([-5.0], dtype=torch.float64)
    p = 2 * stats.t.sf(5, 4)
    assert float(normal_score(t, torch.tensor([4.0]))) == pytest.approx(-stats.norm.isf(p / 2))
    far = normal_score(torch.tensor([60.0], dtype=torch.float64), torch.tensor([math.inf]))
    assert float(far) == pytest.approx(60, rel=1e-3)
    assert bonferroni_threshold(1, 0.05) == pytest.approx(1.96, abs=1e-3)
    assert bonferroni_threshold(100, 0.05) == pytest.approx(3.48, abs=1e-2)
    one = torch.ones(2)
    assert combined_dof([one, one], [5.0, 5.0]).tolist() == pytest.approx([10, 10])
    assert combined_dof([one, 0 * one], [5.0, 3.0]).tolist() == pytest.approx([5, 5])
