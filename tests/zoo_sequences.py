"""Factories whose width axes are split and joined, recurrent and attention models among them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from zoo import ABC, Case, data, trained


class Between(nn.Module):
    """Any function of the hidden vector between a muP input layer and its readout, with hidden layers to use."""

    def __init__(self, n: int, layers: dict[str, tuple[int, int]], f: Callable[..., Tensor], out: int = 1) -> None:
        super().__init__()
        self.n = n
        self.inp = ABC(n, 4, n, -0.5, 0.5)
        self.layers = nn.ModuleDict({k: ABC(n, a * n, b * n, 0.0, 0.5) for k, (a, b) in layers.items()})
        self.readout = ABC(n, out * n, 1, 0.5, 0.5)
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(torch.tanh(self.f(self, torch.tanh(self.inp(x)))))


def _between(f: Callable[..., Tensor], out: int = 1, **layers: tuple[int, int]) -> Callable[[int], nn.Module]:
    return lambda n: Between(n, layers, f, out)


def _chunk(m: Between, h: Tensor) -> Tensor:
    a, b, c = m.layers["w"](h).chunk(3, -1)
    return torch.tanh(a) * b + c


def _view_heads(m: Between, h: Tensor) -> Tensor:
    """A fixed number of heads."""
    q = m.layers["w"](h).view(h.shape[0], 2, m.n // 2)
    return torch.tanh(q * (1 + (q * q).mean(-1, keepdim=True))).flatten(1)


def _view_fixed(m: Between, h: Tensor) -> Tensor:
    """Heads of a fixed size."""
    q = m.layers["w"](h).view(h.shape[0], m.n // 4, 4)
    return (torch.sin(q) * (q * q).sum(-1, keepdim=True)).flatten(1)


def _rotate(m: Between, h: Tensor) -> Tensor:
    """Rotary: even and odd coordinates, and halves."""
    q = m.layers["w"](h)
    turned = torch.stack([-q[..., 1::2], q[..., 0::2]], -1).flatten(1)
    a, b = turned[..., : m.n // 2], turned[..., m.n // 2 :]
    return q + 0.5 * turned + torch.cat([b, -a], -1)


def _matrix_parts(m: Between, h: Tensor) -> Tensor:
    """Parts of the weight itself, by rows and by columns."""
    layer = m.layers["w"]
    assert isinstance(layer, ABC)
    up, down = layer.weight.chunk(2)  # of (2n, n)
    return torch.tanh(h @ up.T) @ down[:, : m.n // 2] @ down[:, : m.n // 2].T


def split_cases() -> dict[str, Case]:
    """Training setups by name."""
    x, y = data()
    models = {
        "chunk": _between(_chunk, w=(1, 3)),
        "cat": _between(
            lambda m, h: m.layers["w"](torch.cat([h, torch.sin(m.layers["v"](h))], -1)), v=(1, 1), w=(2, 1)
        ),
        "cat of unequal": _between(
            lambda m, h: m.layers["w"](torch.cat([m.layers["v"](h), h], -1)), v=(1, 2), w=(3, 1)
        ),
        "readout of cat": _between(lambda m, h: torch.cat([m.layers["w"](h), h], -1), out=2, w=(1, 1)),
        "fixed heads": _between(_view_heads, w=(1, 1)),
        "growing heads": _between(_view_fixed, w=(1, 1)),
        "rotary": _between(_rotate, w=(1, 1)),
        "swapped halves": _between(lambda m, h: torch.cat(m.layers["w"](h).chunk(2, -1)[::-1], -1) + h, w=(1, 1)),
        "mixed orders": _between(
            lambda m, h: m.layers["w"](h).view(-1, 2, m.n // 2).transpose(1, 2).flatten(1) * h + m.layers["w"](h),
            w=(1, 1),
        ),
        "parts of a matrix": _between(_matrix_parts, w=(1, 2)),
        "glu": _between(lambda m, h: nn.functional.glu(m.layers["w"](h)), w=(1, 2)),
    }
    return {
        name: Case(trained(make, lr=0.2), x, y, steps=2, test_inputs=data(2, seed=5)[0])
        for name, make in models.items()
    }
