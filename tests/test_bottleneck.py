"""A layer of finite width between growing ones: its activations stay random in the NTK parametrization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn

import tpcompile as tp

X = torch.tensor([[1.0, 0.0], [0.6, -0.8]])
Y = torch.tensor([[1.0], [-1.0]])
LR = 0.5


class Bottleneck(nn.Module):
    """n -> 2 -> n in the NTK parametrization: pre-activations of the narrow layer are random, and move."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.randn(n, 2)), nn.Parameter(torch.randn(2, n))
        self.c, self.d = nn.Parameter(torch.randn(n, 2)), nn.Parameter(torch.randn(1, n))
        self.n = n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        g = torch.tanh(torch.tanh(x @ self.a.T) @ self.b.T / self.n**0.5)
        return torch.tanh(g @ self.c.T / 2**0.5) @ self.d.T / self.n**0.5


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=LR)


def trained(n: int, seeds: int, steps: int) -> torch.Tensor:
    """Outputs ``(seeds, steps + 1, N)`` of networks of width n, all seeds at once by hand-written gradients."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(seeds, *shape, generator=generator).requires_grad_()

    weights = [draw(n, 2), draw(2, n), draw(n, 2), draw(1, n)]
    outputs = []
    for _ in range(steps + 1):
        a, b, c, d = weights
        g = torch.tanh(torch.tanh(X @ a.mT) @ b.mT / n**0.5)
        f = torch.tanh(g @ c.mT / 2**0.5) @ d.mT / n**0.5
        outputs.append(f.detach()[..., 0])
        loss = (f - Y).square().mean((1, 2)).sum()  # gradients of the seeds do not mix
        steps_down = torch.autograd.grad(loss, weights)
        weights = [(w - LR * s).detach().requires_grad_() for w, s in zip(weights, steps_down, strict=True)]
    return torch.stack(outputs, 1)


def test_the_limit_is_the_law_of_wide_networks():
    steps = 2
    compiled = tp.compile(Bottleneck, X, Y, F.mse_loss, optimizer=sgd, steps=steps)
    limit = compiled.evaluate(particles=1024, replicas=8, ensemble=64)
    assert limit.loss is not None
    assert limit.loss_stderr is not None
    assert limit.outputs_cov is not None
    assert limit.outputs_cov_stderr is not None
    found = trained(256, 1000, steps).double()
    losses = (found - Y[:, 0]).square().mean(2)
    z = (losses.mean(0) - limit.loss) / (losses.var(0) / len(losses) + limit.loss_stderr.square()).sqrt()
    assert float(z.abs().max()) < 3
    for t in range(steps + 1):
        centred = found[:, t] - found[:, t].mean(0)
        products = centred[:, :, None] * centred[:, None, :]
        error = (products.var(0) / len(found) + limit.outputs_cov_stderr[t].square()).sqrt()
        assert float(((products.mean(0) - limit.outputs_cov[t]) / error).abs().max()) < 3.5


def test_means_are_compared_with_the_ensemble():
    compiled = tp.compile(Bottleneck, X, Y, F.mse_loss, optimizer=sgd, steps=1)
    report = compiled.check(widths=(32, 128), seeds=32, particles=1024)
    assert "random" in report.notes[0]
    assert all(q.slope is None for q in report.quantities)
    assert report.passed, str(report)
