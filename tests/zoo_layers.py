"""Factories with indexing, convolutions, pooling and normalisation, in the maximal update parametrization."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def mup_groups(model: nn.Module, n: int, lr: float) -> torch.optim.Optimizer:
    """SGD with rates n for vectors, 1 for matrices and finite parameters, 1/n where a growing axis is read out."""
    groups = []
    for name, p in model.named_parameters():
        grown = [2 * size >= n for size in p.shape]  # no finite axis is as long at the narrowest width
        read = sum(grown) == 1 and not grown[0] and "table" not in name and "places" not in name
        power = -1 if read else {0: 0, 1: 1, 2: 0}[sum(grown)]
        groups.append({"params": [p], "lr": lr * float(n) ** power})
    return torch.optim.SGD(groups, lr=1.0)


class Readout(nn.Linear):
    """A readout without bias whose initial weights are Θ(1/n)."""

    def __init__(self, n: int, k: int = 1) -> None:
        super().__init__(n, k, bias=False)
        nn.init.normal_(self.weight, std=1 / n)


class Indexed(nn.Module):
    """Tables looked up by tokens, positions and constants."""

    order: Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.table = nn.Embedding(7, n)
        self.places = nn.Parameter(torch.randn(5, n))
        self.readout = Readout(n)
        self.register_buffer("order", torch.tensor([0, 3, 1, 1]))

    def forward(self, x: Tensor) -> Tensor:  # (N, 4) tokens
        h = self.table(x) + self.places[self.order] + self.places[x % 5] + self.places[-1]
        h = torch.tanh(h).index_select(1, torch.tensor([2, 0, 0])).mean(1)
        return self.readout(h)


class Images(nn.Module):
    """A convolution of finitely many channels, a middle, a convolution of growing ones, and a readout of the mean."""

    def __init__(self, n: int, middle: nn.Module, last: nn.Module | None = None, **options: Any) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, n, 3, padding=1, **options)
        self.middle = middle
        self.last = last if last is not None else nn.Conv2d(n, n, 3, padding=1)
        self.readout = Readout(n)

    def forward(self, x: Tensor) -> Tensor:  # (N, 2, 4, 4)
        h = torch.tanh(self.last(self.middle(torch.tanh(self.first(x)))))
        return self.readout(h.flatten(2).mean(2))


class Series(nn.Module):
    """The same on lines."""

    def __init__(self, n: int, middle: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv1d(2, n, 3, padding=1)
        self.middle = middle
        self.readout = Readout(n)

    def forward(self, x: Tensor) -> Tensor:  # (N, 2, 8)
        return self.readout(torch.tanh(self.middle(torch.tanh(self.first(x)))).mean(2))


class Normed(nn.Module):
    """Two hidden layers with a normalisation each."""

    def __init__(self, n: int, norm: Callable[[], nn.Module], phi: Callable[[Tensor], Tensor] = torch.tanh) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, n), nn.Linear(n, n)
        self.norms = nn.ModuleList([norm(), norm()])
        self.readout = Readout(n)
        self.phi = phi

    def forward(self, x: Tensor) -> Tensor:
        h = self.phi(self.norms[0](self.first(x)))
        return self.readout(self.phi(self.norms[1](self.second(h))))


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, f: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.f = f

    def forward(self, x: Tensor) -> Tensor:
        return self.f(x)


def few_channels(n: int) -> nn.Module:
    """A convolution that reads out of growing channels."""
    conv = nn.Conv1d(n, 3, 2)
    nn.init.normal_(conv.weight, std=1 / n)
    return conv


def zeroed(conv: nn.Conv1d) -> nn.Module:
    """Weights that start at zero."""
    nn.init.zeros_(conv.weight)
    assert conv.bias is not None
    nn.init.normal_(conv.bias)
    return conv


MIDDLES: dict[str, Callable[[int], nn.Module]] = {
    "convolutions": lambda n: nn.Identity(),
    "average pooling": lambda n: nn.AvgPool2d(3, stride=2, padding=1),
    "adaptive pooling": lambda n: nn.AdaptiveAvgPool2d(3),
    "max pooling": lambda n: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
    "padded max pooling": lambda n: nn.MaxPool2d(3, stride=2, padding=1),
    "reflected": lambda n: nn.ReflectionPad2d(1),
    "replicated": lambda n: nn.ReplicationPad2d((0, 1, 2, 0)),
    "circular": lambda n: nn.Conv2d(n, n, 2, padding=1, padding_mode="circular"),
    "padded with ones": lambda n: nn.ConstantPad2d((1, 0, -1, 2), 1.0),
    "upsampled": lambda n: nn.Upsample(scale_factor=2),
    "bilinear": lambda n: nn.Upsample(scale_factor=1.5, mode="bilinear"),
    "windows": lambda n: Apply(lambda h: h.unfold(2, 2, 1).mean(-1)),
    "flipped and rolled": lambda n: Apply(lambda h: h.flip((2, 3)) * h.roll((1, 2), (2, 3))),
    "unfolded": lambda n: Apply(lambda h: F.unfold(h, 2, padding=1).reshape(len(h), n, 4, 5, 5).tanh().sum(2)),
    "folded": lambda n: Apply(lambda h: F.fold(F.unfold(h, (2, 3), padding=1), (4, 4), (2, 3), padding=1)),
    "batch norm of images": lambda n: nn.BatchNorm2d(n),
}

LINES: dict[str, Callable[[int], nn.Module]] = {
    "strided": lambda n: nn.Conv1d(n, n, 2, stride=2, dilation=3, padding=1),
    "depthwise": lambda n: nn.Conv1d(n, n, 3, groups=n, padding=2, bias=False),
    "groups": lambda n: nn.Conv1d(n, n, 3, groups=2),
    "groups from zero": lambda n: zeroed(nn.Conv1d(n, n, 3, groups=2)),
    "two channels a group": lambda n: nn.Sequential(
        nn.Conv1d(n, 2 * n, 3, groups=n, bias=False), nn.Tanh(), nn.Conv1d(2 * n, n, 1)
    ),
    "transposed": lambda n: nn.ConvTranspose1d(n, n, 3, stride=2, padding=1, output_padding=1),
    "pointwise": lambda n: nn.Conv1d(n, n, 1),
    "widening": lambda n: nn.Sequential(nn.Conv1d(n, 2 * n, 3), nn.GELU(), nn.Conv1d(2 * n, n, 3, padding="same")),
    "few channels": lambda n: nn.Sequential(few_channels(n), nn.Tanh(), nn.Conv1d(3, n, 2)),
    "max pooling of lines": lambda n: nn.MaxPool1d(2),
}

NORMS: dict[str, Callable[[int], nn.Module]] = {
    "layer norm": lambda n: nn.LayerNorm(n),
    "layer norm without weights": lambda n: nn.LayerNorm(n, elementwise_affine=False),
    "rms norm": lambda n: nn.RMSNorm(n, eps=1e-6),
    "group norm of one group": lambda n: nn.GroupNorm(1, n),
    "group norm": lambda n: nn.GroupNorm(4, n),
    "batch norm": lambda n: nn.BatchNorm1d(n),
    "batch norm by running statistics": lambda n: nn.BatchNorm1d(n).eval(),
    "normalize": lambda n: Apply(lambda h: F.normalize(h) * n**0.5),
    "divided by the norm": lambda n: Apply(lambda h: h / h.norm(dim=-1, keepdim=True) * n**0.5),
    "variance": lambda n: Apply(lambda h: h / torch.sqrt(h.var(-1, keepdim=True, correction=0) + 0.1)),
    "variance over the batch": lambda n: Apply(lambda h: h / (h.std(0) + 1)),
    "dropout switched off": lambda n: nn.Dropout().eval(),
}


def grown(module: Callable[[int], nn.Module], lr: float = 0.3) -> Callable[[int], Any]:
    """A factory of (module, SGD with the rates of :func:`mup_groups`)."""

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = module(n)
        return model, mup_groups(model, n, lr)

    return make


def setups() -> dict[str, tuple[Callable[[int], Any], Tensor, Tensor]]:
    """Factory, inputs and targets by name."""
    g = torch.Generator().manual_seed(1)
    y = torch.randn(3, 1, generator=g, dtype=torch.float64)
    tokens = torch.tensor([[1, 2, 3, 1], [0, 6, 2, 2], [5, 5, 4, 0]])
    images = torch.randn(3, 2, 4, 4, generator=g, dtype=torch.float64)
    lines, rows = images.reshape(3, 2, 16)[:, :, :8], images.reshape(3, 32)[:, :4]
    out = {"indexing": (grown(Indexed), tokens, y)}
    out |= {name: (grown(lambda n, f=f: Images(n, f(n))), images, y) for name, f in MIDDLES.items()}
    out |= {name: (grown(lambda n, f=f: Series(n, f(n))), lines, y) for name, f in LINES.items()}
    out |= {name: (grown(lambda n, f=f: Normed(n, lambda: f(n))), rows, y) for name, f in NORMS.items()}
    return out
