"""Laws that are unknown, or parameters that share randomness, are errors that say why."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
import torch
from initialisation_helpers import HALF, close, inplace, law, laws_of, named, reason
from torch import Tensor, nn

from tpcompile.capture.graph import Scaled
from tpcompile.capture.initialisation import copies, record
from tpcompile.laws import Constant, Normal, Orthogonal, Pieces


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda n: torch.randn(n).abs(), "aten.abs"),
        (lambda n: torch.randn(n).square() * 2 + 1, "aten.pow"),
        (lambda n: torch.randn(n) * torch.randn(n), "product of two random values"),
        (lambda n: torch.rand(n) + torch.rand(n), "not all normal"),
        (lambda n: torch.ones(n) / torch.randn(n), "division by a random value"),
        (lambda n: (lambda w: w / w.norm())(torch.randn(n)), "norm"),
        (lambda n: (lambda w: w - w.mean())(torch.randn(n)), "aten.mean"),
        (lambda n: (lambda w: w * (1 / w.std().item()))(torch.randn(n)), "read from random values"),
        (lambda n: (lambda w: w * (2 / w.std().item()))(torch.randn(n)), "reads random values"),
        (lambda n: (lambda w: w + w.T)(torch.randn(n, n)), "share a random draw"),
        (lambda n: (lambda w: w[:-1] + w[1:])(torch.randn(n)), "share a random draw"),
        (lambda n: (lambda v, w: (v + w) + v)(torch.randn(n), torch.randn(n)), "depend on each other"),
        (lambda n: torch.randn(n, 1).expand(n, n), "share a random draw"),
        (lambda n: torch.randn(n).repeat(2), "share a random draw"),
        (lambda n: torch.randn(n, n).tril(), "different laws"),
        (lambda n: torch.cat([torch.randn(1), 2 * torch.randn(n - 1)]), "different laws"),
        (lambda n: torch.cat([torch.randn(n), torch.rand(2)]), "different laws"),
        (lambda n: torch.randn(n) * torch.arange(n), "different laws"),
        (lambda n: torch.arange(n).float().sin(), "constant entries that differ"),
        (lambda n: torch.eye(n), "constant entries that differ"),
        (lambda n: torch.empty(n, n), "never written"),
        (lambda n: torch.empty(n, n).exponential_(), "aten.exponential_"),
        (lambda n: torch.randn(n) * torch.bernoulli(torch.full((n,), 0.5)), "aten.bernoulli"),
        (lambda n: torch.randn(n)[torch.randperm(n)], "aten.randperm"),
        (lambda n: torch.randn(n, n) @ torch.randn(n, n), "aten.mm"),
        (lambda n: torch.from_numpy(np.random.default_rng(0).normal(size=n)), "did not see being drawn"),
        (lambda n: nn.Parameter(torch.tensor(np.arange(n), dtype=torch.float32)), "did not see being drawn"),
        (lambda n: 2 * torch.tensor(torch.randn(n).tolist()), "did not see being drawn"),
        (lambda n: torch.linalg.qr(torch.randn(n, n))[0], "sign correction"),
        (lambda n: torch.randn(n, n).to_sparse(), "dense"),
        (lambda n: torch.randn(n, 2).view(torch.float64), "bytes"),
        (lambda n: torch.randn(n).int(), "aten._to_copy"),
    ],
)
def test_unknown_laws_say_why(make: Callable[[int], Tensor], words: str) -> None:
    message = reason(make)
    assert words in message
    assert "parameter 'w'" in message


@pytest.mark.parametrize(
    ("fill", "words"),
    [
        (lambda w, n: nn.init.eye_(w), "constant entries that differ"),
        (lambda w, n: nn.init.sparse_(w, 0.5), "law tpcompile does not know"),
        (lambda w, n: w[:3].normal_(), "never written"),
        (lambda w, n: w.normal_()[0].zero_(), "no fixed share of an axis"),
        (lambda w, n: w.normal_()[0].mul_(2.0), "different laws"),
        (lambda w, n: w.normal_()[0].exp_(), "aten.exp_"),
        (lambda w, n: nn.init.orthogonal_(w)[: n // 2].neg_(), "orthogonal"),
        (lambda w, n: w.copy_(torch.from_numpy(np.random.default_rng(0).normal(size=(n, n)))), "did not see"),
        (lambda w, n: torch.ops.aten._foreach_abs_([w.normal_()]), "_foreach_abs_"),
    ],
)
def test_partly_written_tensors(fill: Callable[[Tensor, int], Any], words: str) -> None:
    assert words in reason(inplace(fill))


def test_dirac_and_embedding_padding() -> None:
    assert "differ" in reason(inplace(lambda w, n: nn.init.dirac_(w), 3, 3, 3))
    assert laws_of(lambda n: nn.Embedding(4, n, padding_idx=1))["weight"] == Pieces(
        0, ((Fraction(1), 0), (Fraction(2), 0), (Fraction(4), 0)), (Normal(1.0), Constant(0.0), Normal(1.0))
    )


def test_the_message_names_the_users_line() -> None:
    assert "test_initialisation_unknown.py:" in reason(lambda n: torch.randn(n).abs())


def test_orthogonal_shapes() -> None:
    assert law(lambda n: nn.init.orthogonal_(torch.empty(n, 2 * n))) == Orthogonal(1.0)
    assert law(lambda n: nn.init.orthogonal_(torch.empty(2 * n, n)).t() * -1) == Orthogonal(1.0)
    assert law(lambda n: nn.init.orthogonal_(torch.empty(n, 2, 3))) == Orthogonal(1.0)

    def by_hand(n: int) -> Tensor:
        q, r = torch.linalg.qr(torch.randn(n, n))
        return q * torch.sign(torch.diagonal(r)) / math.sqrt(n)

    assert close(law(by_hand), Orthogonal(1.0, -HALF))
    assert "orthogonal" in reason(lambda n: nn.init.orthogonal_(torch.empty(n, n))[:, 1:])

    def with_its_source(n: int) -> dict[str, Tensor]:
        a = torch.randn(n, n)
        q, r = torch.linalg.qr(a)
        return {"a": a, "q": q * r.diag().sign()}

    assert "'a' and 'q' are computed from one random draw" in reason(with_its_source)


def test_shared_draws() -> None:
    def copied(n: int) -> dict[str, Tensor]:
        w = torch.randn(n, n)
        return {"a": nn.Parameter(w), "b": nn.Parameter(2 * w.t().clone())}

    assert "parameters 'a' and 'b' share one random draw" in reason(copied)

    def overlapping(n: int) -> dict[str, Tensor]:
        w = torch.randn(n)
        return {"a": w[:4].clone(), "b": w[3:].clone()}

    assert "share one random draw" in reason(overlapping)

    def halves(n: int) -> dict[str, Tensor]:
        w = torch.randn(2 * n)
        return {"a": w[:n], "b": w[n:] / n}

    assert close(laws_of(halves)["b"], Normal(1.0, width_exponent=Fraction(-1)))

    def summed(n: int) -> dict[str, Tensor]:
        w = torch.randn(n)
        return {"a": w, "b": w + torch.randn(n)}

    assert "share one random draw" in reason(summed)
    assert set(laws_of(copied, {"b": Normal(2.0)})) == {"a", "b"}  # the user takes responsibility

    def cloned(n: int) -> nn.Module:
        layer = nn.Linear(n, n)
        return nn.ModuleList([layer, copy.deepcopy(layer)])

    found = laws_of(cloned)  # a layer that starts as another is followed as such
    assert found["0.weight"] == found["1.weight"]
    tensors = {n: named(record(cloned, n)) for n in (8, 16)}
    assert copies(tensors)["1.weight"] == ("0.weight", Scaled(1.0, Fraction(0)))
    assert set(copies(tensors)) == {"1.weight", "1.bias"}
