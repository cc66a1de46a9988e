"""Random sequence models and their training: blocks, norms, pooling, loss and momentum from one seed.

Everything is in the maximal update parametrization: attention with 1/d, hidden matrices of variance 1/n at rate 1.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY = 5
RATE = 0.2
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "tanh": torch.tanh,
    "relu": torch.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "sin": torch.sin,
}


@dataclass(frozen=True)
class Options:
    """What a random model is made of."""

    blocks: tuple[str, ...]
    norm: str
    residual: bool
    positions: bool
    activation: str
    pooling: str
    heads: int
    causal: bool
    padding: Literal["zeros", "circular"]
    gated: bool
    length: int
    outputs: int


class Linear(nn.Module):
    def __init__(self, size: int, out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, size) * size**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Attention(nn.Module):
    def __init__(self, n: int, o: Options) -> None:
        super().__init__()
        self.options = o
        self.q, self.k, self.v, self.out = (Linear(n, n) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        batch, length, n = x.shape
        size = n // self.options.heads
        q, k, v = (f(x).view(batch, length, -1, size).transpose(1, 2) for f in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=self.options.causal, scale=1 / size)
        return self.out(mixed.transpose(1, 2).reshape(batch, length, n))


class Recurrent(nn.Module):
    def __init__(self, n: int, o: Options) -> None:
        super().__init__()
        self.w, self.u, self.activation = Linear(n, n), Linear(n, n), ACTIVATIONS[o.activation]

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.activation(self.w(h) + self.u(x[:, t]))
            out.append(h)
        return torch.stack(out, 1)


class GRU(nn.Module):
    def __init__(self, n: int, o: Options) -> None:
        super().__init__()
        self.cell = nn.GRUCell(n, n)
        for p in self.cell.parameters():
            nn.init.normal_(p, std=n**-0.5 if p.ndim == 2 else 0.0)

    def forward(self, x: Tensor) -> Tensor:
        h, out = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.cell(x[:, t], h)
            out.append(h)
        return torch.stack(out, 1)


class Convolution(nn.Module):
    def __init__(self, n: int, o: Options) -> None:
        super().__init__()
        self.layer = nn.Conv1d(n, n, 3, padding=1, padding_mode=o.padding, bias=False)
        self.activation = ACTIVATIONS[o.activation]
        nn.init.normal_(self.layer.weight, std=(3 * n) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.layer(x.transpose(1, 2)).transpose(1, 2))


class MLP(nn.Module):
    def __init__(self, n: int, o: Options) -> None:
        super().__init__()
        self.up, self.down, self.activation = Linear(n, 2 * n), Linear(2 * n, n), ACTIVATIONS[o.activation]
        self.gate = Linear(n, 2 * n) if o.gated else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.activation(self.up(x))
        return self.down(h if self.gate is None else h * self.gate(x))


class RMSNorm(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-5) * self.weight


BLOCKS: dict[str, Callable[[int, Options], nn.Module]] = {
    "attention": Attention,
    "recurrent": Recurrent,
    "gru": GRU,
    "convolution": Convolution,
    "mlp": MLP,
}
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "none": lambda n: nn.Identity(),
    "layer": lambda n: nn.LayerNorm(n, elementwise_affine=False),
    "affine": nn.LayerNorm,
    "rms": RMSNorm,
}
POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "last": lambda x: x[:, -1],
    "mean": lambda x: x.mean(1),
    "max": lambda x: x.amax(1),
    "max values": lambda x: x.max(1).values,
}


class Model(nn.Module):
    def __init__(self, n: int, o: Options) -> None:
        super().__init__()
        self.options = o
        self.tokens = nn.Embedding(VOCABULARY, n)
        self.positions = nn.Parameter(torch.randn(o.length, n)) if o.positions else None
        self.blocks = nn.ModuleList(BLOCKS[kind](n, o) for kind in o.blocks)
        self.norms = nn.ModuleList(NORMS[o.norm](n) for _ in o.blocks)
        self.readout = nn.Parameter(torch.randn(o.outputs, n) / n)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tokens(tokens)
        x = x if self.positions is None else x + self.positions
        for block, norm in zip(self.blocks, self.norms, strict=True):
            y = block(norm(x))
            x = x + y if self.options.residual else y
        return POOLINGS[self.options.pooling](torch.tanh(x)) @ self.readout.T


@dataclass(frozen=True)
class SequenceTraining:
    """The arguments of ``tp.compile``, and what they are made of."""

    options: Options
    make: Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]
    inputs: Tensor
    targets: Tensor
    loss: Callable[[Tensor, Tensor], Tensor]
    steps: int


def sequence_training(seed: int) -> SequenceTraining:
    """The setup of a seed: one or two blocks, two or three tokens, one or two steps."""
    r = random.Random(seed)
    classes = r.random() < 0.5
    o = Options(
        blocks=tuple(r.choice(list(BLOCKS)) for _ in range(r.choice([1, 1, 2]))),
        norm=r.choice(list(NORMS)),
        residual=r.random() < 0.7,
        positions=r.random() < 0.5,
        activation=r.choice(list(ACTIVATIONS)),
        pooling=r.choice(list(POOLINGS)),
        heads=r.choice([1, 2]),
        causal=r.random() < 0.5,
        padding=r.choice(["zeros", "circular"]),
        gated=r.random() < 0.5,
        length=r.choice([2, 3]),
        outputs=3 if classes else 1,
    )
    momentum, steps = r.choice([0.0, 0.8]), r.choice([1, 2])

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Model(n, o)
        rate = lambda name, p: (
            RATE * (1.0 if min(p.shape[:2]) >= n and p.ndim > 1 else 1 / n if name == "readout" else n)
        )
        groups = [{"params": [p], "lr": rate(name, p)} for name, p in model.named_parameters()]
        return model, torch.optim.SGD(groups, lr=RATE, momentum=momentum)

    first = torch.randint(0, VOCABULARY, (o.length,), generator=torch.Generator().manual_seed(seed))
    inputs = torch.stack([first, (first + 1) % VOCABULARY])
    targets = torch.tensor([0, 2]) if classes else torch.tensor([[1.0], [-1.0]])
    return SequenceTraining(o, make, inputs, targets, F.cross_entropy if classes else F.mse_loss, steps)
