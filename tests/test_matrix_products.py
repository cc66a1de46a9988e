"""Products of growing matrices in a model: the same limit as products with vectors, one after the other."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpcompile as tp

X = torch.tensor([[1.0, 0.5], [-0.3, 0.8]])
Y = torch.tensor([[1.0], [-1.0]])
Forward = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    def __init__(self, n: int, hidden: Forward) -> None:
        super().__init__()
        self.hidden = hidden
        self.u, self.w, self.v = (nn.Parameter(torch.randn(s)) for s in ((n, 2), (n, n), (1, n)))
        nn.init.normal_(self.w, std=n**-0.5)
        nn.init.normal_(self.v, std=1 / n)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x @ self.u.T)
        return torch.tanh(self.hidden(self, h)) @ self.v.T


FORMS: dict[str, tuple[Forward, Forward]] = {
    "square": (lambda m, h: h @ (m.w @ m.w), lambda m, h: (h @ m.w) @ m.w),
    "gram": (lambda m, h: h @ (m.w.T @ m.w), lambda m, h: (h @ m.w.T) @ m.w),
    "identity": (lambda m, h: F.linear(h, torch.eye(h.shape[1]) + m.w), lambda m, h: h + h @ m.w.T),
    "rows": (
        lambda m, h: F.linear(h, m.w * m.u[:, :1].detach() + m.w),
        lambda m, h: (h @ m.w.T) * m.u[:, 0].detach() + h @ m.w.T,
    ),
    "power": (
        lambda m, h: h @ torch.linalg.matrix_power(m.w / 2 + m.w.T / 2, 2),
        lambda m, h: sum((h @ a + h @ a.T for a in (m.w,)), 0 * h) @ (m.w + m.w.T) / 4,
    ),
}


def compiled(hidden: Forward, adam: bool = False) -> tp.Compiled:
    def make(n: int):
        net = Net(n, hidden)
        if adam:
            return net, torch.optim.Adam(net.parameters(), lr=0.1 / n, eps=0.0)
        groups = [(net.u, 0.3 * n), (net.w, 0.3), (net.v, 0.3 / n)]
        return net, torch.optim.SGD([{"params": [p], "lr": lr} for p, lr in groups], lr=0.1)

    return tp.compile(make, X, Y, F.mse_loss, steps=2)


@pytest.mark.parametrize("name", FORMS)
def test_products_are_applied_factor_by_factor(name):
    found, known = (compiled(f).evaluate("particles", particles=1024, replicas=2, kernels=False) for f in FORMS[name])
    assert torch.allclose(found.outputs, known.outputs, rtol=1e-6, atol=1e-9)
    assert (known.outputs[-1] - known.outputs[0]).abs().max() > 0.01


def test_a_trained_product_against_finite_width():
    c = compiled(FORMS["gram"][0])
    limit = c.evaluate("particles", particles=16384)
    runs = torch.stack([c.simulate(512, seed).outputs for seed in range(12)])
    error = runs.std(0) / 12**0.5 + limit.outputs_stderr
    assert ((runs.mean(0) - limit.outputs).abs() < 3 * error + 1 / 512).all()


def test_entrywise_functions_of_matrices_have_no_evaluation():
    with pytest.raises(tp.TpcompileError, match="entrywise function of a growing matrix"):
        compiled(FORMS["square"][0], adam=True).evaluate(particles=1024)
