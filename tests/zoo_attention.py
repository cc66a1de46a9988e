"""Attention, embeddings and transformer blocks, written out and as torch has them."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo import ABC, Case, data


def normal(fan_out: int, fan_in: int, std: float) -> nn.Linear:
    """A linear layer of normal weights, without bias."""
    layer = nn.Linear(fan_in, fan_out, bias=False)
    nn.init.normal_(layer.weight, std=std)
    return layer


class Attention(nn.Module):
    """Self-attention on a sequence of n-vectors; ``how`` picks one of the ways to write it.

    ``heads`` is the number of heads, or ``head`` their size; ``power`` that of the head size in the logits' scale.
    """

    def __init__(self, n: int, how: str = "written", heads: int = 1, head: int = 0, power: float = 1.0) -> None:
        super().__init__()
        self.heads = n // head if head else heads
        self.size = n // self.heads
        self.scale = self.size**-power
        self.how = how
        std = n**-0.5
        if how == "fused":
            self.qkv = normal(3 * n, n, std)
        else:
            self.q, self.k, self.v = (normal(n, n, std) for _ in range(3))
        if how == "tied":
            self.k = self.q
        self.out = normal(n, n, std)

    def forward(self, x: Tensor) -> Tensor:  # (B, S, n)
        b, s, n = x.shape
        q, k, v = self.qkv(x).chunk(3, -1) if self.how == "fused" else (self.q(x), self.k(x), self.v(x))
        q, k, v = (t.view(b, s, self.heads, self.size).transpose(1, 2) for t in (q, k, v))
        if self.how in ("sdpa", "causal sdpa"):
            y = F.scaled_dot_product_attention(q, k, v, scale=self.scale, is_causal=self.how == "causal sdpa")
        else:
            logits = q @ k.transpose(-2, -1) * self.scale
            if self.how == "masked":
                logits = logits.masked_fill(torch.triu(torch.ones(s, s, dtype=torch.bool), 1), float("-inf"))
            if self.how == "added mask":
                logits = logits + torch.triu(torch.full((s, s), float("-inf")), 1)
            y = logits.softmax(-1) @ v
        return self.out(y.transpose(1, 2).reshape(b, s, n))


class Torch(nn.Module):
    """nn.MultiheadAttention; ``cross`` takes its keys and values from another sequence."""

    def __init__(self, n: int, heads: int, cross: bool = False, mask: bool = False) -> None:
        super().__init__()
        self.inner = nn.MultiheadAttention(n, heads, batch_first=True)
        self.cross, self.mask = cross, mask
        for p in self.inner.parameters():
            if p.dim() == 2:
                nn.init.normal_(p, std=n**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        other = torch.sin(x) if self.cross else x
        mask = nn.Transformer.generate_square_subsequent_mask(x.shape[1]) if self.mask else None
        mask = mask.to(x.dtype) if mask is not None else None
        return self.inner(x, other, other, need_weights=False, attn_mask=mask)[0]


class Sequence(nn.Module):
    """Embedding, attention, an MLP of each position, residual streams, and a muP readout of the mean position."""

    def __init__(self, n: int, attention: nn.Module, mlp: bool = False) -> None:
        super().__init__()
        self.embed = ABC(n, 2, n, -0.5, 0.5)
        self.attention = attention
        self.up = normal(2 * n, n, n**-0.5) if mlp else None
        self.down = normal(n, 2 * n, n**-0.5) if mlp else None
        self.readout = ABC(n, n, 1, 0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:  # (B, S, 2)
        h = self.embed(x)
        h = h + self.attention(torch.tanh(h))
        if self.up is not None and self.down is not None:
            h = h + self.down(F.gelu(self.up(h)))
        return self.readout(torch.tanh(h)).mean(1)


class Tokens(nn.Module):
    """Token and position embeddings, with the rows of the table picked in one of several ways."""

    def __init__(self, n: int, how: str, classes: int = 5, length: int = 3) -> None:
        super().__init__()
        self.how, self.classes = how, classes
        self.table = nn.Embedding(classes, n)
        self.position = nn.Parameter(torch.randn(length, n))
        self.hidden = normal(n, n, n**-0.5)
        self.readout = ABC(n, n, 1, 0.5, 0.5)

    def forward(self, x: Tensor) -> Tensor:  # (B, S) integers
        if self.how == "index":
            h = self.table.weight[x]
        elif self.how == "one hot":
            h = F.one_hot(x, self.classes).to(self.table.weight.dtype) @ self.table.weight
        else:
            h = self.table(x)
        if self.how == "tied":
            logits = torch.tanh(self.hidden(torch.tanh(h))) @ self.table.weight.T / h.shape[-1]
            return logits.mean(1)
        h = torch.tanh(h + self.position)
        return self.readout(torch.tanh(self.hidden(h))).mean(1)


def _trained(module: Callable[[int], nn.Module], lr: float = 0.5) -> Callable[[int], object]:
    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = module(n)
        vectors = [p for name, p in model.named_parameters() if "table" in name or "position" in name or "bias" in name]
        others = [p for p in model.parameters() if all(p is not v for v in vectors)]
        groups = [{"params": others, "lr": lr}] + ([{"params": vectors, "lr": lr * n}] if vectors else [])
        return model, torch.optim.SGD(groups, lr=lr)

    return make


def attention_cases() -> dict[str, Case]:
    """Training setups of attention by name."""
    x, y = data(2, 6)[0].reshape(2, 3, 2), data(2)[1]

    def case(attention: Callable[[int], nn.Module], mlp: bool = False) -> Case:
        return Case(_trained(lambda n: Sequence(n, attention(n), mlp)), x, y, steps=2)

    return {
        "one head": case(lambda n: Attention(n)),
        "two heads": case(lambda n: Attention(n, heads=2)),
        "fused": case(lambda n: Attention(n, "fused", heads=2)),
        "tied queries and keys": case(lambda n: Attention(n, "tied")),
        "masked": case(lambda n: Attention(n, "masked")),
        "added mask": case(lambda n: Attention(n, "added mask", heads=2)),
        "sdpa": case(lambda n: Attention(n, "sdpa", heads=2)),
        "causal sdpa": case(lambda n: Attention(n, "causal sdpa")),
        "heads of size 2": case(lambda n: Attention(n, head=2)),
        "masked heads of size 4": case(lambda n: Attention(n, "masked", head=4, power=0.5)),
        "sdpa with heads of size 2": case(lambda n: Attention(n, "sdpa", head=2)),
        "fused heads of size 2": case(lambda n: Attention(n, "fused", head=2)),
        "transformer block": case(lambda n: Attention(n, "causal sdpa", heads=2), mlp=True),
        "nn.MultiheadAttention, heads of size 4": case(lambda n: Torch(n, n // 4)),
        "nn.MultiheadAttention, masked": case(lambda n: Torch(n, n // 4, mask=True)),
        "nn.MultiheadAttention, cross": case(lambda n: Torch(n, n // 4, cross=True)),
    }


def root_cases() -> dict[str, Case]:
    """Logits over the root of a growing head size: Gaussian at initialisation, nothing is trained."""
    x = data(2, 6)[0].reshape(2, 3, 2)

    def case(attention: Callable[[int], nn.Module]) -> Case:
        return Case(lambda n: Sequence(n, attention(n)), x, None, loss=None, steps=0)

    return {
        "one head": case(lambda n: Attention(n, power=0.5)),
        "two heads": case(lambda n: Attention(n, heads=2, power=0.5)),
        "fused": case(lambda n: Attention(n, "fused", heads=2, power=0.5)),
        "causal": case(lambda n: Attention(n, "causal sdpa", heads=2, power=0.5)),
        "nn.MultiheadAttention": case(lambda n: Torch(n, 2)),
        "nn.MultiheadAttention, cross": case(lambda n: Torch(n, 2, cross=True)),
    }


def embedding_cases() -> dict[str, Case]:
    """Training setups with integer inputs by name."""
    x, y = torch.tensor([[1, 2, 0], [4, 2, 2]]), data(2)[1]
    out: dict[str, Case] = {}
    for how in ("module", "index", "one hot"):
        out[f"embedding, {how}"] = Case(_trained(lambda n, how=how: Tokens(n, how)), x, y, steps=2)
    labels = torch.tensor([1, 3])
    out["embedding, tied"] = Case(_trained(lambda n: Tokens(n, "tied")), x, labels, loss=F.cross_entropy, steps=2)
    return out
