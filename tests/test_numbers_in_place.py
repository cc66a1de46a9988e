"""Multipliers that a model holds as buffers are multipliers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpcompile as tp

TOKENS, NEXT = torch.tensor([0, 1, 2]), torch.tensor([1, 2, 3])


class Embedded(nn.Module):
    """An embedding of entries n^(-1/2), times the root of the width, as in Gemma."""

    def __init__(self, n: int, held: str) -> None:
        super().__init__()
        self.embed, self.hidden, self.read = (
            nn.Embedding(5, n),
            nn.Linear(n, n, bias=False),
            nn.Linear(n, 5, bias=False),
        )
        self.held = held
        self.register_buffer("scale", torch.tensor(n**0.5))
        self.register_buffer("shrink", torch.tensor(n**-0.5))
        nn.init.normal_(self.embed.weight, std=n**-0.5)
        nn.init.normal_(self.hidden.weight, std=n**-0.5)
        nn.init.normal_(self.read.weight, std=1 / n)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        scaled = {"times": h * self.scale, "before": self.scale * h, "over": h / self.shrink}
        number = h * h.shape[-1] ** 0.5
        return self.read(torch.tanh(self.hidden(scaled.get(self.held, number))))


def report(held: str) -> tp.Report:
    def make(n: int):
        model = Embedded(n, held)
        groups = [{"params": [p], "lr": 0.1 * n**e} for p, e in zip(model.parameters(), (-0.5, -1, -1), strict=True)]
        return model, torch.optim.Adam(groups, eps=0.0)

    return tp.verify(make, TOKENS, NEXT, loss=F.cross_entropy, steps=2)


@pytest.mark.parametrize("held", ["times", "before", "over"])
def test_a_buffer_of_one_number_counts_as_a_multiplier(held):
    found, number = report(held), report("number")
    assert found.verdict == number.verdict == "maximal update"
    assert [p.effect for p in found.parameters.values()] == [p.effect for p in number.parameters.values()]
