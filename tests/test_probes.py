"""What a model does outside of its own tensors: caches, sizes that small probe widths round, layouts in memory."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tpcompile as tp

X = torch.linspace(-1, 1, 12).reshape(3, 4)
IMAGES = torch.linspace(-1, 1, 96).reshape(2, 3, 4, 4)


class Scaled(nn.Module):
    """A hidden layer times a constant made by ``f`` from the width."""

    def __init__(self, n: int, f) -> None:
        super().__init__()
        self.first, self.readout, self.f, self.n = nn.Linear(4, n), nn.Linear(n, 1), f, n

    def forward(self, x):
        return self.readout(torch.tanh(self.first(x)) * self.f(self.n))


def test_a_cache_that_the_first_width_fills():
    @functools.lru_cache
    def positions(count):
        return torch.arange(count).sum() * 0.5

    cached = tp.compile(lambda n: Scaled(n, lambda _: positions(3)), X)
    plain = tp.compile(lambda n: Scaled(n, lambda _: 1.5), X)
    found, expected = cached.evaluate().outputs_cov, plain.evaluate().outputs_cov
    assert found is not None
    assert expected is not None
    assert torch.allclose(found, expected, rtol=1e-12)


def test_sizes_that_small_widths_round():
    """A sixteenth of the width, two at least, is proportional from width 32 on only."""

    class Model(Scaled):
        def __init__(self, n):
            super().__init__(n, lambda _: 1.0)
            self.part = nn.Parameter(torch.ones(max(2, n // 16)))

        def forward(self, x):
            return super().forward(x) + self.part.mean()

    assert tp.compile(Model, X).evaluate().outputs.shape == (1, 3, 1)
    with pytest.raises(tp.errors.FactoryError, match="'part' is not proportional"):
        tp.compile(Model, X, widths=(16, 32, 64))


def test_the_first_error_is_told_where_no_widths_help():
    class Model(Scaled):
        def __init__(self, n):
            super().__init__(n, lambda _: 1.0)
            self.part = nn.Parameter(torch.ones(n + 2))

    with pytest.raises(tp.errors.FactoryError, match=r"width 16: \(18,\)"):
        tp.compile(Model, X)


def test_pooling_of_images_with_channels_last():
    """Pooled to one place, torch changes the strides of the result in place, and autograd goes back through them."""

    class Model(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.first, self.second, self.readout = nn.Conv2d(3, n, 1), nn.Linear(n, n), nn.Linear(n, 1)
            nn.init.normal_(self.readout.weight, std=1 / n)

        def forward(self, x):
            tokens = torch.tanh(self.second(self.first(x).flatten(2).mT))
            return self.readout(F.adaptive_avg_pool2d(tokens.mT.unflatten(2, (4, 4)), 1).flatten(1))

    def make(n):
        model = Model(n)
        layers = {model.first: 0.3 * n, model.second: 0.3, model.readout: 0.3 / n}
        groups = [{"params": [layer.weight], "lr": lr} for layer, lr in layers.items()]
        return model, torch.optim.SGD(groups)

    compiled = tp.compile(make, IMAGES, torch.ones(2, 1), F.mse_loss, steps=2)
    assert compiled.check(widths=(256, 512), seeds=8).passed
