"""Rates at which tangent kernels of finite networks approach the limit: ``python tests/benchmarks/kernel_rates.py``.

Prints, for models that no other library has, the root mean square distance of single draws from the limit, relative to
the mean of the limit's diagonal, at a few widths, and the slope over the widths with its standard error (bootstrap over
seeds). The theory says -1/2; not for attention with 1/sqrt(d), where the kernel of one network stays random.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor, nn

import tpcompile as tp

WIDTHS, SEEDS = (32, 64, 128, 256), 24


def scaled(weight: Tensor, x: Tensor) -> Tensor:
    return x @ weight.T * weight.shape[1] ** -0.5


class Recurrent(nn.Module):
    """One of torch's recurrent layers over two steps, with weights of variance one over their fan-in."""

    def __init__(self, n: int, kind: Callable[..., nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(3, n, batch_first=True)
        for p in self.layer.parameters():
            nn.init.normal_(p, 0.0, p.shape[1] ** -0.5 if p.dim() > 1 else 0.5)
        self.readout = nn.Parameter(torch.randn(1, n) * n**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1] @ self.readout.T


class Normed(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.weight = nn.Parameter(torch.randn(n, 8)), nn.Parameter(torch.randn(n, n))
        self.norms = nn.ModuleList(nn.BatchNorm1d(n) for _ in range(2))
        self.readout = nn.Parameter(torch.randn(1, n))

    def forward(self, x: Tensor) -> Tensor:
        for weight, norm in zip((self.first, self.weight), self.norms, strict=True):
            x = torch.relu(norm(scaled(weight, x)))
        return scaled(self.readout, x)


class Attention(nn.Module):
    """Softmax attention; the logits over the width (tied queries and keys) or over its root (random in the limit)."""

    def __init__(self, n: int, power: float) -> None:
        super().__init__()
        self.power = power
        self.first, self.query, self.value = (nn.Parameter(torch.randn(n, d)) for d in (3, n, n))
        self.key = nn.Parameter(torch.randn(n, n)) if power == 0.5 else self.query
        self.readout = nn.Parameter(torch.randn(1, n))

    def forward(self, x: Tensor) -> Tensor:
        h = scaled(self.first, x)
        q, k, v = (scaled(w, h) for w in (self.query, self.key, self.value))
        weights = torch.softmax(q @ k.transpose(-1, -2) / q.shape[-1] ** self.power, -1)
        return scaled(self.readout, (weights @ v).mean(1))


class Tied(nn.Module):
    """A matrix and its transpose."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.weight = nn.Parameter(torch.randn(n, 3)), nn.Parameter(torch.randn(n, n))
        self.readout = nn.Parameter(torch.randn(1, n))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(scaled(self.weight, scaled(self.first, x)))
        return scaled(self.readout, torch.relu(scaled(self.weight.T, h)))


MODELS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...], bool]] = {
    "tied weights": (Tied, (3,), False),
    "batch normalisation": (Normed, (8,), True),
    "attention, 1/d": (lambda n: Attention(n, 1.0), (2, 3), False),
    "attention, 1/sqrt(d)": (lambda n: Attention(n, 0.5), (2, 3), False),
    "RNN": (lambda n: Recurrent(n, nn.RNN), (2, 3), False),
    "GRU": (lambda n: Recurrent(n, nn.GRU), (2, 3), False),
    "LSTM": (lambda n: Recurrent(n, nn.LSTM), (2, 3), False),
}


def distances(name: str) -> Tensor:
    """Squared relative distances ``(widths, seeds)`` of single draws."""
    make, shape, batch = MODELS[name]
    x = torch.randn(7 if batch else 2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = tp.kernel(make, x.float() if batch else x[0].float(), batch=batch)
    limit = k.ntk(x)
    found = [[k.empirical(n, x, seed=s, get="ntk") - limit for s in range(SEEDS)] for n in WIDTHS]
    squares = torch.stack([torch.stack(row).square().mean((1, 2)) for row in found])
    return squares / limit.diagonal().mean() ** 2


def slope(squares: Tensor) -> float:
    """Of the logarithm of the root mean square over that of the width."""
    x = torch.tensor(WIDTHS, dtype=torch.float64).log()
    y = 0.5 * squares.mean(1).log()
    x = x - x.mean()
    return float((x * y).sum() / x.square().sum())


def row(name: str) -> tuple[list[float], float, float]:
    """Root mean square distances, slope and its standard error."""
    squares = distances(name)
    generator = torch.Generator().manual_seed(0)
    picks = [torch.randint(SEEDS, squares.shape, generator=generator) for _ in range(200)]
    spread = torch.tensor([slope(squares.gather(1, pick)) for pick in picks])
    return squares.mean(1).sqrt().tolist(), slope(squares), float(spread.std())


def main() -> None:
    print(f"| model | {' | '.join(map(str, WIDTHS))} | slope |")
    print("|---" * (len(WIDTHS) + 2) + "|")
    for name in sys.argv[1:] or MODELS:
        found, rate, error = row(name)
        print(f"| {name} | {' | '.join(f'{d:.3f}' for d in found)} | {rate:.2f} +- {error:.2f} |", flush=True)


if __name__ == "__main__":
    main()
