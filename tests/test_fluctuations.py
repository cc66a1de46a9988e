"""The law of the deviation from the limit: a closed form, finite networks over seeds, and what has no such law."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from over_seeds import Factory, scaled_covariances, trained
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.errors import UndeterminedLimitError, UsageError

X = torch.tensor([[1.0, 0.0, 0.3], [0.6, -0.8, 0.1]], dtype=torch.float64)
Y = torch.tensor([[1.0], [-1.0]], dtype=torch.float64)
TEST = torch.tensor([[0.2, 0.5, -0.7]], dtype=torch.float64)
LR = 0.2


def mlp(activation: Callable[[], nn.Module], ratios: Sequence[int], bias: bool = False) -> Factory:
    """In the maximal update parametrization; widths ``ratios`` times n."""

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        sizes = [3, *(r * n for r in ratios), 1]
        layers, groups = [], []
        for i, (into, out) in enumerate(pairwise(sizes)):
            layer = nn.Linear(into, out, bias=bias and i == 0).double()
            last = i == len(ratios)
            nn.init.normal_(layer.weight, std=1.0 if i == 0 else 1 / into if last else into**-0.5)
            if layer.bias is not None:
                nn.init.uniform_(layer.bias, -1, 1)
            groups.append({"params": layer.parameters(), "lr": LR * (n if i == 0 else 1 / n if last else 1)})
            layers += [layer] if last else [layer, activation()]
        return nn.Sequential(*layers), torch.optim.SGD(groups, lr=LR)

    return make


def compiled(make: Factory, steps: int, targets: Tensor = Y) -> tp.Compiled:
    return tp.compile(make, X, targets, F.mse_loss, steps=steps, test_inputs=TEST)


def test_one_linear_hidden_layer_in_closed_form():
    """f_1(x) = f_0(x) + a k(x) |v|^2 + a sum_s c_s G(s, x) + a^2 k(x) sum_s c_s f_0(s), linearised at the limit.

    G(s, x) is the mean of (U x_s)(U x), c_s = 2 (y_s - f_0(s)) / N, k(x) = sum_s c_s x_s . x, and a the rate. The
    fluctuations of f_0, |v|^2 and G are independent, and Gaussian with the moments of Wick's formula.
    """
    points = torch.cat([X, TEST])
    gram, c = points @ points.T, Y[:, 0]
    k = gram[:, :2] @ c
    move = -gram[:, :2]  # of k, by f_0 at the training inputs: c moves by -f_0, N = 2
    of_start = torch.eye(3, dtype=torch.float64)
    of_start[:, :2] += 2 * LR * move + LR**2 * k[:, None] * c
    expected = of_start @ gram @ of_start.T + 2 * LR**2 * k[:, None] * k
    quadratic = c @ gram[:2, :2] @ c
    expected = expected + LR**2 * (quadratic * gram + k[:, None] * k)
    found = compiled(mlp(nn.Identity, [1]), 1).fluctuations(particles=2**14, replicas=4)
    assert found.test_outputs_cov is not None
    assert found.test_outputs_cov_stderr is not None
    for value, error, wanted in (
        (found.outputs_cov[0], found.outputs_cov_stderr[0], gram[:2, :2]),
        (found.outputs_cov[1], found.outputs_cov_stderr[1], expected[:2, :2]),
        (found.test_outputs_cov[1], found.test_outputs_cov_stderr[1], expected[2:, 2:]),
    ):
        assert bool(((value - wanted).abs() < 5 * error + 1e-3).all())


CASES = {
    "tanh": mlp(nn.Tanh, [1]),
    "uniform bias": mlp(nn.Tanh, [1], bias=True),
    "two layers": mlp(nn.Tanh, [1, 1]),
    "widths n and 2n": mlp(nn.Tanh, [1, 2]),
    "linear": mlp(nn.Identity, [2, 1]),
    "relu": mlp(nn.ReLU, [1]),
    "two layers of relu": mlp(nn.ReLU, [1, 1]),
}


SLOW = ("two layers", "linear", "two layers of relu")
SETUPS = [pytest.param(n, Y, id=n, marks=[pytest.mark.slow] if n in SLOW else []) for n in CASES]


@pytest.mark.parametrize(("name", "targets"), [*SETUPS, pytest.param("linear", torch.zeros_like(Y), id="zero targets")])
def test_finite_networks_over_seeds(name, targets):
    """Variances and covariances within 4 standard errors of 400 seeds, as they are for Gaussian outputs.

    With zero targets the residuals vanish in the limit, and with them directions that finite matrices meet.
    """
    make, seeds, width = CASES[name], 400, 256
    found = compiled(make, 2, targets).fluctuations(particles=1024, replicas=2)
    runs = trained(make, X, targets, TEST, steps=2, width=width, seeds=seeds)
    sample = scaled_covariances(runs, width)
    limit = found.outputs_cov
    variances = limit.diagonal(dim1=1, dim2=2)
    z = (sample[:, :2, :2].diagonal(dim1=1, dim2=2) / variances - 1) / (2 / seeds) ** 0.5
    assert float(z.abs().max()) < 4
    spread = (variances[:, 0] * variances[:, 1] + limit[:, 0, 1].square()).div(seeds).sqrt()
    assert float(((sample[:, 0, 1] - limit[:, 0, 1]) / spread).abs().max()) < 4
    assert found.test_outputs_cov is not None
    z = (sample[:, 2, 2] / found.test_outputs_cov[:, 0, 0] - 1) / (2 / seeds) ** 0.5
    assert float(z.abs().max()) < 4


def test_feature_kernels_over_seeds():
    """Each variance within three standard errors; the first layer's start is a mean of independent coordinates."""
    width, seeds = 192, 400
    c = compiled(CASES["two layers"], 1)
    law = c.fluctuations(particles=2048, activations=["1", "3"])
    runs = [c.simulate(width, seed) for seed in range(seeds)]
    for name in ("1", "3"):
        found = torch.stack([r.feature_kernel(name)[:, :2, :2] for r in runs]).var(0) * width
        std = law.feature_kernel_std(name, width) ** 2 * width
        error = (2 / seeds) ** 0.5 * std + law.kernels_cov_stderr[name].diagonal(dim1=1, dim2=2).reshape(2, 2, 2)
        assert bool(((found - std).abs() < 3 * error + 0.03 * std).all()), name  # 3 %: the next order at this width
    t = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    weight = torch.exp(-t * t / 2) * (t[1] - t[0]) / (2 * torch.pi) ** 0.5
    square = torch.tanh(t * X[0].norm()) ** 2
    exact = float((weight * square**2).sum() - (weight * square).sum() ** 2)
    assert law.kernels_cov["1"][0, 0, 0] == pytest.approx(exact, rel=0.03)
    with pytest.raises(UsageError, match="ask for it"):
        law.feature_kernel_std("0", width)
    with pytest.raises(UsageError, match="no activation 'nothing'"):
        c.fluctuations(particles=64, activations=["nothing"])


def test_what_it_is_good_for():
    found = compiled(mlp(nn.Tanh, [1]), 1).fluctuations(particles=512, replicas=2)
    assert found.outputs_std(400).shape == (2, 2, 1)
    assert torch.allclose(found.outputs_std(400), found.outputs_std(100) / 2)
    width = found.width_for(0.01)
    assert float(found.outputs_std(width).square().mean((1, 2)).max().sqrt()) <= 0.01
    assert found.loss_var is not None
    assert found.loss_var.shape == (2,)
    with pytest.raises(UsageError):
        found.width_for(0.0)


class _Heads(nn.Module):
    """The product of the two halves of the axis, twice."""

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        both = torch.tanh(first) * torch.tanh(second)
        return torch.cat([both, both], -1)


def _ntk(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    first, last = nn.Linear(3, n, bias=False), nn.Linear(n, 1, bias=False)
    nn.init.normal_(first.weight)
    nn.init.normal_(last.weight, std=n**-0.5)
    model = nn.Sequential(first, nn.Tanh(), last).double()
    return model, torch.optim.SGD(model.parameters(), lr=LR / n)


@pytest.mark.parametrize(
    ("make", "message"), [(_ntk, "random in the limit"), (mlp(_Heads, [1]), "blocks")], ids=["random output", "blocks"]
)
def test_what_has_no_such_law(make, message):
    with pytest.raises(UndeterminedLimitError, match=message):
        compiled(make, 1).fluctuations(particles=256, replicas=1)
