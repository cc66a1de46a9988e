"""Verify on models as they are written in the wild: their exponents against really trained networks."""

from __future__ import annotations

import copy
import math
from fractions import Fraction

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.parametrization.changes import Run
from tpcompile.parametrization.measure import Measurement

X, Y = (
    torch.randn(4, 6, generator=torch.Generator().manual_seed(0)),
    torch.randn(4, 6, generator=torch.Generator().manual_seed(1)),
)


class Autoencoder(nn.Module):
    """A bottleneck of two numbers; torch's own initial values."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, 2))
        self.decode = nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


class Slopes(nn.Module):
    """Trained slopes below zero, one for all and one a coordinate."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, n), nn.PReLU(), nn.Linear(n, n), nn.PReLU(n), nn.Linear(n, 6))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


@pytest.mark.parametrize(("model", "name"), [(Autoencoder, "encode.2.bias"), (Slopes, "layers.1.weight")])
def test_small_biases_behind_kinks_leave_gradients_of_narrow_parameters_decided(model, name):
    """Biases of n^(-1/2) move n^(-1/2) of a relu's slopes: in a sum with free signs that is less."""

    def make(n: int):
        m = model(n)
        return m, torch.optim.SGD(m.parameters(), lr=0.3 / n)

    gradient = tp.verify(make, X, Y, F.mse_loss, steps=1, advice=False).parameters[name].gradient[0]
    assert gradient.exponent == 0
    widths, points = (64, 512, 4096), []
    for n in widths:
        for seed in range(16):
            torch.manual_seed(seed)
            m = model(n)
            F.mse_loss(m(X), Y).backward()
            points.append((math.log(n), math.log(float(m.get_parameter(name).grad.norm()))))
    x, y = np.array(points).T
    (slope, _), covariance = np.polyfit(x, y, 1, cov=True)
    assert abs(slope) < 3 * covariance[0, 0] ** 0.5 < 0.3


def test_a_parameter_of_one_number_has_a_state_that_is_no_counter():
    """Adam's averages of a logit scale are values of the trace, its counter of steps is not."""

    class Scaled(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.hidden, self.readout = nn.Linear(6, n), nn.Linear(n, 6)
            self.scale = nn.Parameter(torch.tensor(0.5))

        def forward(self, x: Tensor) -> Tensor:
            return self.scale.exp() * self.readout(torch.tanh(self.hidden(x))) / 8

    report = tp.verify(
        lambda n: (m := Scaled(n), torch.optim.Adam(m.parameters(), 0.1 / n)), X, Y, F.mse_loss, steps=2, advice=False
    )
    assert report.parameters["scale"].effect[0].exponent == -1


@pytest.mark.parametrize("ddof", [0, 1])
def test_numbers_with_n_minus_one_are_series(ddof):
    """A variance over n - 1 coordinates has gradients with 2 / (n - 1)."""

    class Normed(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.hidden, self.readout = nn.Linear(6, n), nn.Linear(n, 6)

        def forward(self, x: Tensor) -> Tensor:
            h = self.hidden(x)
            return self.readout((h - h.mean(-1, keepdim=True)) / (h.std(-1, keepdim=True, correction=ddof) + 1e-5))

    def make(n: int):
        m = Normed(n)
        return m, torch.optim.SGD(m.parameters(), lr=0.1)

    report = tp.verify(make, X, Y, F.mse_loss, steps=1, advice=False)
    assert not report.undecided
    assert report.changes["outputs", 1].exponent == 1
    compiled = tp.compile(lambda n: Normed(n), X)
    compiled.check(widths=(256, 1024), seeds=4)


class Attending(nn.Module):
    """Tied embeddings, one block of causal attention in two heads, a LayerNorm: values of fixed standard deviation."""

    def __init__(self, n: int, power: float) -> None:
        super().__init__()
        self.n, self.power = n, power
        self.embed = nn.Embedding(7, n)
        self.mix, self.out = nn.Linear(n, 3 * n, bias=False), nn.Linear(n, n, bias=False)
        self.norm = nn.LayerNorm(n)
        for p in (self.embed.weight, self.mix.weight, self.out.weight):
            nn.init.normal_(p, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens)
        q, k, v = (x.unflatten(-1, (2, -1)).transpose(1, 2) for x in self.mix(self.norm(h)).split(self.n, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=8 * self.n**self.power)
        return F.linear(h + self.out(mixed.transpose(1, 2).flatten(2)), self.embed.weight)


TOKENS = torch.tensor([[0, 3, 5, 1], [2, 2, 6, 4]])


def language_loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def attending(power: float):
    def make(n: int):
        m = Attending(n, power)
        return m, torch.optim.AdamW(m.parameters(), 1e-3, weight_decay=0.1)

    return make


def test_advice_names_the_factor_that_attention_lacks_and_verifies_it_in_the_traced_program():
    """The same rules, gradients and verdict as of a model with 1/d in its code."""
    reports = [
        tp.verify(attending(power), TOKENS, TOKENS.flip(1), loss=language_loss, steps=2) for power in (-0.5, -1.0)
    ]
    for report in reports:
        assert report.verdict == "unstable"
        assert report.advised == "maximal update"
    factor, *rest = reports[0].advice
    assert "a factor n^-1/2 is missing (attention: 1/d for 1/sqrt(d))" in factor
    assert tuple(rest) == reports[1].advice


def test_gradients_of_a_product_carry_its_factor():
    """Put behind the product in the traced program: every exponent is that of the model with the factor in its code."""
    found = []
    for power, factors in ((-0.5, {0: Fraction(-1, 2)}), (-1.0, {})):
        run = Run(attending(power), TOKENS, TOKENS.flip(1), language_loss, None, 1)
        found.append(Measurement(run.capture(), factors=factors).sizes().found)
    assert found[0] == found[1]


def test_saturated_attention_is_unstable():
    """Logits that grow have no softmax: a decided growth, although nothing behind it can be followed."""
    report = tp.verify(attending(0.0), TOKENS, TOKENS.flip(1), loss=language_loss, steps=1, advice=False)
    assert report.verdict == "unstable"


class Queried(nn.Module):
    """Learned queries that read the inputs (a cross-attention of latents)."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(2, n))
        self.embed, self.attend = nn.Linear(6, n), nn.MultiheadAttention(n, 2, batch_first=True)
        self.readout = nn.Linear(n, 6)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embed(torch.stack([x, x.sin(), x.cos()], 1))
        mixed, _ = self.attend(self.queries.expand(len(x), -1, -1), h, h, need_weights=False)
        return self.readout(mixed.mean(1))


def test_learned_queries_are_activations():
    """A learned vector times a matrix is an activation: its product with the keys is one of two activations."""
    report = tp.verify(
        lambda n: (m := Queried(n), torch.optim.Adam(m.parameters(), 1e-3)), X, Y, loss=F.mse_loss, steps=2
    )
    assert report.verdict == "unstable"
    assert report.advised == "maximal update"
    assert "the product of two activations in module 'attend'" in report.advice[0]


def test_a_scale_of_small_logits_stays_of_order_one():
    """Cosine similarities are n^(-1/2) at first: the rate of their scale must not make up for that."""

    class Contrast(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.left, self.right = (nn.Sequential(nn.Linear(6, n), nn.ReLU(), nn.Linear(n, n)) for _ in range(2))
            self.scale = nn.Parameter(torch.tensor(1.0))

        def forward(self, x: Tensor) -> Tensor:
            left, right = F.normalize(self.left(x), dim=-1), F.normalize(self.right(x.sin()), dim=-1)
            return self.scale.exp() * left @ right.T

    report = tp.verify(
        lambda n: (m := Contrast(n), torch.optim.Adam(m.parameters(), 1e-3)),
        X, torch.arange(4), loss=F.cross_entropy, steps=2,
    )  # fmt: skip
    assert report.advised is not None
    assert not any("`scale`: learning rate" in line or "`scale`: initial" in line for line in report.advice)


class Copied(nn.Module):
    """Two hidden layers of the same initial values, as torch's TransformerEncoder makes them, the second one halved."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed, self.readout = nn.Linear(6, n, bias=False), nn.Linear(n, 1, bias=False)
        self.first = nn.Linear(n, n, bias=False)
        for layer, std in ((self.embed, 0.5), (self.first, n**-0.5), (self.readout, 1 / n)):
            nn.init.normal_(layer.weight, std=std)
        self.second = copy.deepcopy(self.first)
        with torch.no_grad():
            self.second.weight.mul_(0.5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(torch.tanh(self.embed(x))))
        return self.readout(torch.tanh(h + self.second(h)))


def copied(n: int):
    m = Copied(n)
    groups = [([m.embed.weight], 0.5 * n), ([m.first.weight, m.second.weight], 0.5), ([m.readout.weight], 0.5 / n)]
    return m, torch.optim.SGD([{"params": p, "lr": lr} for p, lr in groups])


def test_layers_of_the_same_initial_values_are_correlated():
    """The limit of a deep-copied layer knows that it starts as the other one does; trained, they part."""
    compiled = tp.compile(copied, X, Y[:, :1], loss=F.mse_loss, steps=2)
    check = compiled.check(widths=(256, 1024, 4096), seeds=8)
    assert check.passed
    assert tp.verify(copied, X, Y[:, :1], loss=F.mse_loss, steps=2).verdict == "maximal update"


def test_a_transformer_of_torch_is_followed():
    """nn.TransformerEncoder copies its layer."""

    class Encoder(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.embed, self.readout = nn.Embedding(7, n), nn.Linear(n, 7)
            layer = nn.TransformerEncoderLayer(n, 2, 2 * n, dropout=0.0, batch_first=True, norm_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

        def forward(self, tokens: Tensor) -> Tensor:
            return self.readout(self.layers(self.embed(tokens)))

    report = tp.verify(
        lambda n: (m := Encoder(n), torch.optim.Adam(m.parameters(), 1e-3)),
        TOKENS, TOKENS.flip(1), loss=language_loss, steps=1,
    )  # fmt: skip
    assert report.verdict == "unstable"
    assert report.advised == "maximal update"
