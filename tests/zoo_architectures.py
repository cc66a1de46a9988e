"""Architectures as people write them, functions of the width alone: plain torch, nothing of ours in them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

VOCABULARY, LENGTH = 5, 3


class RMSNorm(nn.Module):
    """Written out, as in Llama."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(n))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True)))


class SwiGLU(nn.Module):
    """``down(silu(gate x) * up x)``."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gate, self.up = nn.Linear(n, 2 * n, bias=False), nn.Linear(n, 2 * n, bias=False)
        self.down = nn.Linear(2 * n, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


def rotate(x: Tensor) -> Tensor:
    """Rotary position embedding of ``(batch, heads, length, size)``."""
    length, size = x.shape[-2:]
    rates = 10.0 ** (-torch.arange(0, size, 2) / size)
    angles = torch.cat([torch.arange(length)[:, None] * rates] * 2, -1).to(x.dtype)
    a, b = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-b, a], -1) * angles.sin()


class GroupedQuery(nn.Module):
    """Causal attention in which ``heads // groups`` queries share a key and a value; ``groups=1`` is multi-query.

    ``size`` is the head's; 0 for a fixed number of heads, whose size grows.
    """

    def __init__(
        self, n: int, heads: int = 4, groups: int = 2, power: float = 1.0, written: bool = False, rotary: bool = False
    ) -> None:
        super().__init__()
        self.heads, self.groups, self.size = heads, groups, n // heads
        self.written, self.rotary = written, rotary
        self.scale = self.size**-power
        self.q = nn.Linear(n, heads * self.size, bias=False)
        self.k, self.v = (nn.Linear(n, groups * self.size, bias=False) for _ in range(2))
        self.o = nn.Linear(heads * self.size, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q = self.q(x).view(batch, length, self.heads, self.size).transpose(1, 2)
        k, v = (f(x).view(batch, length, self.groups, self.size).transpose(1, 2) for f in (self.k, self.v))
        if self.rotary:
            q, k = rotate(q), rotate(k)
        if self.written:
            k, v = (t.repeat_interleave(self.heads // self.groups, dim=1) for t in (k, v))
            logits = (q @ k.transpose(-1, -2)) * self.scale
            future = torch.triu(torch.ones(length, length, dtype=torch.bool), 1)
            y = logits.masked_fill(future, -math.inf).softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale, enable_gqa=True)
        return self.o(y.transpose(1, 2).reshape(batch, length, -1))


class ManyHeads(nn.Module):
    """A growing number of heads of fixed size, with the default scale."""

    def __init__(self, n: int, size: int = 4) -> None:
        super().__init__()
        self.size = size
        self.qkv, self.o = nn.Linear(n, 3 * n, bias=False), nn.Linear(n, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, n = x.shape
        q, k, v = (t.view(batch, length, -1, self.size).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.o(y.transpose(1, 2).reshape(batch, length, n))


class Mixture(nn.Module):
    """Experts as modules, mixed by a softmax over all of them, or over the ``top`` that the router likes best."""

    def __init__(self, n: int, experts: int = 3, top: int = 0) -> None:
        super().__init__()
        self.top = top
        self.router = nn.Linear(n, experts, bias=False)
        self.up = nn.ModuleList(nn.Linear(n, 2 * n, bias=False) for _ in range(experts))
        self.down = nn.ModuleList(nn.Linear(2 * n, n, bias=False) for _ in range(experts))

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        if self.top:
            best, index = logits.topk(self.top, dim=-1)
            weights = torch.zeros_like(logits).scatter(-1, index, best.softmax(-1))
        else:
            weights = logits.softmax(-1)
        outputs = [down(F.gelu(up(x))) for up, down in zip(self.up, self.down, strict=True)]
        return torch.stack([weights[..., i, None] * y for i, y in enumerate(outputs)]).sum(0)


class Stacked(nn.Module):
    """Experts whose weights are stacked in one parameter: all at once, or indexed one by one."""

    def __init__(self, n: int, experts: int = 3, indexed: bool = False) -> None:
        super().__init__()
        self.experts, self.indexed = experts, indexed
        self.router = nn.Linear(n, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, n, 2 * n) / n**0.5)
        self.down = nn.Parameter(torch.randn(experts, 2 * n, n) / n**0.5)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        if self.indexed:
            outputs = [F.gelu(x @ self.up[i]) @ self.down[i] for i in range(self.experts)]
            return torch.stack([weights[..., i, None] * y for i, y in enumerate(outputs)]).sum(0)
        rows = x.reshape(-1, x.shape[-1]).expand(self.experts, -1, -1)
        y = torch.bmm(F.gelu(torch.bmm(rows, self.up)), self.down)
        return (weights.reshape(-1, self.experts).T[..., None] * y).sum(0).view_as(x)


class StateSpace(nn.Module):
    """A selective state-space block (Mamba, 2312.00752): how a state moves depends on the token."""

    def __init__(self, n: int, states: int = 2) -> None:
        super().__init__()
        self.states = states
        self.inner, self.gate = nn.Linear(n, 2 * n, bias=False), nn.Linear(n, 2 * n, bias=False)
        self.conv = nn.Conv1d(2 * n, 2 * n, 2, groups=2 * n, padding=1)
        self.select = nn.Linear(2 * n, 2 * states, bias=False)
        self.step = nn.Linear(2 * n, 2 * n)
        self.log_rate = nn.Parameter(torch.randn(2 * n, states))
        self.skip = nn.Parameter(torch.ones(2 * n))
        self.out = nn.Linear(2 * n, n, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        length = x.shape[1]
        u = F.silu(self.conv(self.inner(x).transpose(1, 2))[..., :length].transpose(1, 2))
        b, c = self.select(u).chunk(2, -1)
        step = F.softplus(self.step(u))
        decay = torch.exp(step[..., None] * -torch.exp(self.log_rate))
        drive = (step * u)[..., None] * b[..., None, :]
        state, outputs = torch.zeros_like(drive[:, 0]), []
        for t in range(length):
            state = decay[:, t] * state + drive[:, t]
            outputs.append((state * c[:, t, None, :]).sum(-1))
        y = torch.stack(outputs, 1) + self.skip * u
        return self.out(y * F.silu(self.gate(x)))


class Adapted(nn.Module):
    """A frozen linear layer and a low-rank adapter of fixed rank (LoRA, 2106.09685)."""

    def __init__(self, n: int, rank: int = 2) -> None:
        super().__init__()
        self.base = nn.Linear(n, n, bias=False).requires_grad_(False)
        self.a, self.b = nn.Linear(n, rank, bias=False), nn.Linear(rank, n, bias=False)
        nn.init.zeros_(self.b.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.a(x))


class Language(nn.Module):
    """Embedding, residual blocks behind normalisations, and a readout; ``tied`` to the embedding if wished."""

    def __init__(
        self,
        n: int,
        *blocks: Callable[[int], nn.Module],
        norm: Callable[[int], nn.Module] = nn.LayerNorm,
        tied: bool = False,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, n)
        self.norms = nn.ModuleList(norm(n) for _ in blocks)
        self.blocks = nn.ModuleList(block(n) for block in blocks)
        self.last = norm(n)
        self.head = nn.Linear(n, VOCABULARY, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        for norm, block in zip(self.norms, self.blocks, strict=True):
            h = h + block(norm(h))
        return self.head(self.last(h))


class Recurrent(nn.Module):
    """A recurrent module of torch behind an embedding, and a readout at every position."""

    def __init__(self, n: int, kind: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, n)
        self.core = kind(n, n, batch_first=True)
        self.head = nn.Linear(n, VOCABULARY, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.core(self.embed(tokens))[0])


class Basic(nn.Module):
    """The basic block of a ResNet (1512.03385), with a 1x1 convolution where its width changes."""

    def __init__(self, inputs: int, outputs: int, norm: Callable[[int], nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm1, self.norm2 = norm(outputs), norm(outputs)
        self.short = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x)))))
        return F.relu(self.short(x) + y)


class Separable(nn.Module):
    """Depthwise and pointwise convolutions around a residual stream."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.depthwise, self.norm = nn.Conv2d(n, n, 3, padding=1, groups=n), nn.GroupNorm(1, n)
        self.up, self.down = nn.Conv2d(n, 2 * n, 1), nn.Conv2d(2 * n, n, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(F.gelu(self.up(self.norm(self.depthwise(x)))))


class Vision(nn.Module):
    """A first convolution, blocks, the mean over positions, and a readout."""

    def __init__(self, n: int, norm: Callable[[int], nn.Module], *blocks: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, n, 3, padding=1, bias=False), norm(n)
        self.blocks = nn.ModuleList(block(n) for block in blocks)
        outputs = self.blocks[-1](torch.zeros(2, n, 3, 3)).shape[1]
        self.head = nn.Linear(outputs, VOCABULARY, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.conv(x)))
        for block in self.blocks:
            h = block(h)
        return self.head(h.mean((2, 3)))


def maximal(
    model: Callable[[int], nn.Module],
    kind: Callable[..., torch.optim.Optimizer] = torch.optim.AdamW,
    lr: float = 0.02,
    std: float = 1.0,
    rate: float = 0.0,
    readouts: bool = True,
) -> Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]:
    """A factory by Table 3 of Tensor Programs V (2203.03466), beside the modules' own 1/sqrt(fan-in).

    What reads a growing axis has the rate ``lr / n`` (for SGD: what makes one has ``lr * n``), and where it makes none
    initial values of 1/n; these as nobody would forget them only where ``readouts``. ``rate`` is a power of n on top
    of all rates, ``std`` a number in front of the initial values of such readouts.
    """

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        made = model(n)
        wide = dict(model(2 * n).named_parameters())
        tables = {m.weight for m in made.modules() if isinstance(m, nn.Embedding)}
        groups = []
        for name, p in made.named_parameters():
            grows = [a != b for a, b in zip(p.shape, wide[name].shape, strict=True)]
            reads = p.ndim > 1 and grows[1] and p not in tables
            writes = any(grows[:1] + grows[2:]) or p in tables
            if reads and not writes and readouts:
                nn.init.normal_(p, std=std / n)
            if kind is torch.optim.SGD:
                power = (0 if writes else -1) if reads else (1 if writes else 0)
            else:
                power = -1 if reads else 0
            if p.requires_grad:
                groups.append({"params": [p], "lr": lr * n ** (power + rate)})
        if kind is torch.optim.SGD:
            return made, kind(groups)
        return made, kind(groups, eps=1e-8 * n**-3.0, weight_decay=0.0)

    return make


TOKENS = torch.tensor([[0, 1, 2], [2, 4, 1]])
NEXT = torch.tensor([[1, 2, 3], [4, 1, 0]])
IMAGES = torch.randn(3, 2, 3, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
LABELS = torch.tensor([0, 3, 1])


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy over the last axis."""
    return F.cross_entropy(output.reshape(-1, output.shape[-1]), target.reshape(-1))


LANGUAGE: dict[str, Callable[[int], nn.Module]] = {
    "grouped-query attention": lambda n: Language(n, GroupedQuery, SwiGLU, norm=RMSNorm),
    "grouped-query attention, written out": lambda n: Language(n, lambda n: GroupedQuery(n, written=True)),
    "multi-query attention": lambda n: Language(n, lambda n: GroupedQuery(n, groups=1)),
    "rotary attention": lambda n: Language(n, lambda n: GroupedQuery(n, groups=4, rotary=True)),
    "attention with the default scale": lambda n: Language(n, lambda n: GroupedQuery(n, groups=4, power=0.5)),
    "heads of fixed size": lambda n: Language(n, ManyHeads),
    "SwiGLU and RMSNorm": lambda n: Language(n, SwiGLU, norm=nn.RMSNorm),
    "mixture of experts, softmax": lambda n: Language(n, Mixture),
    "mixture of experts, top 2": lambda n: Language(n, lambda n: Mixture(n, top=2)),
    "stacked experts, indexed": lambda n: Language(n, lambda n: Stacked(n, indexed=True)),
    "stacked experts, bmm": lambda n: Language(n, Stacked),
    "selective state space": lambda n: Language(n, StateSpace),
    "adapters of fixed rank": lambda n: Language(n, Adapted, Adapted),
    "tied embedding": lambda n: Language(n, SwiGLU, tied=True),
    "GRU": lambda n: Recurrent(n, nn.GRU),
    "LSTM": lambda n: Recurrent(n, nn.LSTM),
}
VISION: dict[str, Callable[[int], nn.Module]] = {
    "ResNet, BatchNorm": lambda n: Vision(n, nn.BatchNorm2d, lambda n: Basic(n, n), lambda n: Basic(n, 2 * n)),
    "ResNet, GroupNorm": lambda n: Vision(
        n, lambda n: nn.GroupNorm(2, n), lambda n: Basic(n, n, lambda n: nn.GroupNorm(2, n))
    ),
    "depthwise separable": lambda n: Vision(n, lambda n: nn.GroupNorm(1, n), Separable),
}
