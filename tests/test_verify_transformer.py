"""Verdicts on a transformer block with an adaptive optimizer, traced from plain torch code."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tpcompile as tp


class Block(nn.Module):
    """Pre-norm block: causal attention of two heads from a fused projection, and a GELU perceptron."""

    def __init__(self, n: int, scale: float | None):
        super().__init__()
        self.scale = scale
        self.ln1, self.ln2 = nn.LayerNorm(n), nn.LayerNorm(n)
        self.qkv, self.o = nn.Linear(n, 3 * n), nn.Linear(n, n)
        self.up, self.down = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)

    def forward(self, x):
        batch, length, n = x.shape
        parts = self.qkv(self.ln1(x)).split(n, dim=2)
        q, k, v = (t.view(batch, length, 2, n // 2).transpose(1, 2) for t in parts)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        x = x + self.o(y.transpose(1, 2).reshape(batch, length, n))
        return x + self.down(F.gelu(self.up(self.ln2(x))))


class Model(nn.Module):
    def __init__(self, n: int, scale: float | None):
        super().__init__()
        self.token, self.place = nn.Embedding(5, n), nn.Embedding(3, n)
        self.block = Block(n, scale)
        self.ln, self.head = nn.LayerNorm(n), nn.Linear(n, 5, bias=False)

    def forward(self, tokens):
        x = self.token(tokens) + self.place(torch.arange(tokens.shape[1]))
        return self.head(self.ln(self.block(x)))


TOKENS = torch.tensor([[0, 1, 2], [2, 4, 1]])
NEXT = torch.tensor([[1, 2, 3], [4, 1, 0]])


def loss(output, target):
    return F.cross_entropy(output.reshape(-1, 5), target.reshape(-1))


def factory(maximal: bool, scaled: bool):
    """``maximal``: readout and hidden rates of Tensor Programs V, table 3; ``scaled``: attention with 1/d."""

    def make(n: int):
        model = Model(n, 2 / n if scaled else None)
        if maximal:
            nn.init.normal_(model.head.weight, std=1 / n)
        groups = []
        for name, p in model.named_parameters():
            hidden = p.ndim == 2 and not name.startswith(("token", "place"))
            groups.append({"params": [p], "lr": 1e-2 / n if hidden and maximal else 1e-2, "eps": 1e-8 / n})
        return model, torch.optim.AdamW(groups, weight_decay=0.0)

    return make


def test_maximal_updates_with_attention_logits_divided_by_the_head_size():
    report = tp.verify(factory(True, True), TOKENS, NEXT, loss=loss, steps=2)
    assert report.verdict == "maximal update"
    for name in ("block.qkv", "block.o", "block.down", "ln", "head"):
        assert report.change_exponent(name, step=2) == 0
    assert report.exponent("block.qkv", step=0) == 0


def test_attention_with_the_default_scale_blows_up():
    """q and k become correlated after one step, so that their product grows like d and logits like sqrt(d)."""
    report = tp.verify(factory(True, False), TOKENS, NEXT, loss=loss, steps=2)
    assert report.verdict == "unstable"
    assert report.first_problem == "a product of two activations in module 'block' grows like n^1/2 at step 1"


@pytest.mark.slow
def test_default_scale_is_seen_in_real_training():
    """Slope of the attention logits' change after two steps of the real model over the width."""
    sizes = []
    widths = (128, 512, 2048)
    for n in widths:
        changes = []
        for seed in range(4):
            torch.manual_seed(seed)
            model, optimizer = factory(True, False)(n)
            seen = []

            def logits(model=model, n=n):
                x = model.token(TOKENS) + model.place(torch.arange(3))
                q, k, _ = model.block.qkv(model.block.ln1(x)).split(n, dim=2)
                q, k = (t.view(2, 3, 2, -1).transpose(1, 2) for t in (q, k))
                return q @ k.mT / math.sqrt(n / 2)

            for _ in range(3):
                seen.append(logits().detach())
                optimizer.zero_grad()
                loss(model(TOKENS), NEXT).backward()
                optimizer.step()
            changes.append(float((seen[2] - seen[0]).square().mean()))
        sizes.append(math.sqrt(sum(changes) / len(changes)))
    slope = math.log(sizes[-1] / sizes[0]) / math.log(widths[-1] / widths[0])
    assert abs(slope - 0.5) < 0.15
