"""Comparisons, casts and logical operations on inputs and on activations: the same numbers as torch's."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import tpcompile as tp

X = torch.tensor([[1.7, -0.5, 0.0, 0.4], [0.3, 2.8, -0.7, 0.0]])
INPUTS = {
    "not equal": lambda x: (x != 0.4).float(),
    "equal": lambda x: (x == 0.4).float(),
    "truncated": lambda x: (1.7 * x).long(),
    "truth": lambda x: x.bool().float(),
    "logical not": lambda x: torch.logical_not(x),
    "logical and": lambda x: torch.logical_and(x, x > -0.6).long(),
    "not not equal": lambda x: ~(x != 0),
    "first": lambda x: (x == 0).int().argmax(1, keepdim=True).expand(-1, 4),
    "filled": lambda x: x.masked_fill(x != 0.4, 2.0),
}


class Model(nn.Module):
    """The mean square over hidden units of a linear layer of standard normal weights, or of a function of it."""

    def __init__(self, n: int, f, hidden: bool) -> None:
        super().__init__()
        self.layer, self.f, self.hidden = nn.Linear(4, n, bias=False), f, hidden
        nn.init.normal_(self.layer.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = self.f(self.layer(x)) if self.hidden else self.layer(self.f(x) * 1.0)
        return h.square().mean(1, keepdim=True)


@pytest.mark.parametrize("f", INPUTS.values(), ids=INPUTS)
def test_of_inputs(f):
    """The limit is the squared length of what the layer reads."""
    limit = tp.compile(lambda n: Model(n, f, False), X).evaluate()
    assert torch.allclose(limit.outputs[0, :, 0], f(X).double().square().sum(1), rtol=1e-6)


@pytest.mark.parametrize("f", [lambda h: h.bool() * 1.0, lambda h: torch.logical_not(h) + 1.0, lambda h: h != 0.3])
def test_of_activations_that_are_not_zero(f):
    limit = tp.compile(lambda n: Model(n, lambda h: f(h) * 1.0, True), X).evaluate()
    assert torch.equal(limit.outputs.flatten(), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize(
    ("f", "message"),
    [(lambda h: h.long() * 1.0, "trunc"), (lambda h: h * (5 * h.mean(1, keepdim=True)).int(), "jumps")],
)
def test_activations_without_their_fraction_are_refused(f, message):
    with pytest.raises(tp.errors.UnsupportedOperationError, match=message):
        tp.compile(lambda n: Model(n, f, True), X)


def test_parts_without_entries():
    """A rotary embedding of all of a head leaves nothing over, which is joined on all the same."""

    def f(h):
        n = h.shape[1]
        return torch.cat([h[:, :n], 2 * h[:, n:], h[:, n:]], 1)

    limit = tp.compile(lambda n: Model(n, f, True), X).evaluate()
    assert torch.allclose(limit.outputs[0, :, 0], X.double().square().sum(1), rtol=1e-6)
