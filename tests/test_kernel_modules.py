"""``tp.kernel`` of ordinary torch modules, layer by layer, against the means of a few finite networks."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpcompile as tp

WIDTH, SEEDS = 96, 6


def normal(module: nn.Module) -> nn.Module:
    """Weights of variance one over what they contract, small biases and positions, gains about one."""
    for name, p in module.named_parameters():
        if p.dim() == 1:
            nn.init.normal_(p, float(isinstance(module, nn.LayerNorm | nn.RMSNorm) and name == "weight"), 0.2)
        else:
            fan = p.shape[1:].numel() if not isinstance(module, nn.Embedding) else 1
            nn.init.normal_(p, 0.0, fan**-0.5)
    return module


class Net(nn.Module):
    """A first layer, the layer in question and a readout."""

    def __init__(self, n: int, first: nn.Module, middle: nn.Module, inputs: int) -> None:
        super().__init__()
        self.first, self.middle = normal(first), middle
        for child in middle.modules():
            if not list(child.children()):
                normal(child)
        self.readout = nn.Linear(inputs, 1, bias=False)
        nn.init.normal_(self.readout.weight, 0.0, inputs**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.middle(self.first(x)).flatten(1))


class SwiGLU(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (nn.Linear(n, n, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class Positions(nn.Module):
    """Learnt positional encodings and attention with 1/d over heads, four of growing or n/4 of fixed size."""

    def __init__(self, n: int, growing: bool) -> None:
        super().__init__()
        self.heads = n // 4 if growing else 4
        self.position = nn.Embedding(3, n)
        self.key, self.value, self.out = (nn.Linear(n, n, bias=False) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, n = x.shape
        x = x + self.position(torch.arange(length))
        keys, values = (f(x).view(batch, length, self.heads, -1).transpose(1, 2) for f in (self.key, self.value))
        size = n // self.heads
        weights = torch.softmax(keys @ keys.transpose(-1, -2) / size, -1)
        return x + self.out((weights @ values).transpose(1, 2).reshape(batch, length, n))


def dense(n: int) -> nn.Module:
    return nn.Linear(5, n)


def line(n: int) -> nn.Module:
    return nn.Conv1d(2, n, 3, padding=1)


MODELS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...] | None]] = {
    "gelu": (lambda n: Net(n, dense(n), nn.Sequential(nn.GELU(), nn.Linear(n, n), nn.ReLU()), n), (5,)),
    "swiglu": (lambda n: Net(n, dense(n), SwiGLU(n), n), (5,)),
    "glu": (lambda n: Net(n, dense(n), nn.Sequential(nn.Linear(n, 2 * n), nn.GLU()), n), (5,)),
    "rms norm": (lambda n: Net(n, dense(n), nn.Sequential(nn.RMSNorm(n), nn.Linear(n, n), nn.ReLU()), n), (5,)),
    "layer norm": (lambda n: Net(n, dense(n), nn.Sequential(nn.LayerNorm(n), nn.Linear(n, n), nn.ReLU()), n), (5,)),
    "dropout in evaluation mode": (
        lambda n: Net(n, dense(n), nn.Sequential(nn.ReLU(), nn.Dropout(0.5)), n).eval(),
        (5,),
    ),
    "convolution": (lambda n: Net(n, line(n), nn.Sequential(nn.ReLU(), nn.Conv1d(n, n, 3)), 4 * n), (2, 6)),
    "stride and dilation": (
        lambda n: Net(n, line(n), nn.Sequential(nn.ReLU(), nn.Conv1d(n, n, 3, stride=2, padding=2, dilation=2)), 3 * n),
        (2, 6),
    ),
    "groups": (
        lambda n: Net(n, line(n), nn.Sequential(nn.ReLU(), nn.Conv1d(n, n, 3, groups=2), nn.AdaptiveAvgPool1d(1)), n),
        (2, 6),
    ),
    "adaptive pooling": (
        lambda n: Net(n, line(n), nn.Sequential(nn.ReLU(), nn.Conv1d(n, n, 3), nn.AdaptiveAvgPool1d(2)), 2 * n),
        (2, 6),
    ),
    "embedding": (lambda n: Net(n, nn.Embedding(7, n), nn.Sequential(nn.Linear(n, n), nn.ReLU()), 3 * n), None),
    "attention, heads that grow": (lambda n: Net(n, nn.Linear(5, n), Positions(n, False), 3 * n), (3, 5)),
    "attention, more heads": (lambda n: Net(n, nn.Linear(5, n), Positions(n, True), 3 * n), (3, 5)),
}


def inputs(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    shape = MODELS[name][1]
    if shape is None:
        return torch.tensor([[0, 1, 2], [2, 1, 0], [3, 3, 4]])
    return torch.randn(3, *shape, generator=generator, dtype=torch.float64)


SLOW = ("attention, more heads",)  # random weights in the limit of many heads of fixed size: drawn


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in MODELS]
)
def test_tangent_kernel_of_a_module(name: str) -> None:
    """Standard parametrization: the kernel grows like n; deviations are of order 1/sqrt(n seeds) and 1/n."""
    make, x = MODELS[name][0], inputs(name)
    k = tp.kernel(make, x[0].float() if x.is_floating_point() else x[0])
    assert k.nngp_exponent == 0
    limit, error = k.ntk(x, errors=True)
    found = torch.stack([k.empirical(WIDTH, x, seed=seed, get="ntk", dtype=torch.float64) for seed in range(SEEDS)])
    noise = (found.var(0) / SEEDS + error**2).sqrt() + 3.0 / WIDTH * limit.diagonal().mean()
    assert float(((found.mean(0) - limit) / noise).abs().max()) < 4.0
