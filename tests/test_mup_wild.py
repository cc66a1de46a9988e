"""Rules of models whose values are small before training: bottlenecks, scales of logits, slopes, dot products."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpcompile as tp

HALF = Fraction(1, 2)
X, Y = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2])


def sgd(build):
    """A factory with plain SGD of one rate."""

    def make(n: int):
        model = build(n)
        return model, torch.optim.SGD(model.parameters(), lr=0.1)

    return make


def following(make, rules: tp.Rules, base: int = 64):
    """The same setup by the rules, as a user applies them."""

    def made(n: int):
        model, _ = make(n)
        rules.apply_init_(model, base_width=base)
        return model, torch.optim.SGD(rules.param_groups(model, lr=0.1, base_width=base), lr=0.1)

    return made


def found(rules: tp.Rules) -> dict[str, tuple[Fraction | None, Fraction | None]]:
    return {name: (rule.init_exponent, rule.lr_exponent) for name, rule in rules.items()}


class Bottleneck(nn.Module):
    """An autoencoder: its code is small before training, and so is what reaches the decoder."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 2))
        self.decoder = nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.decoder(self.encoder(x))


def test_a_bottleneck_has_the_rates_of_its_later_steps():
    """Rates that suit the first steps raise each other: these are those of Tensor Programs V, table 3, at both ends."""
    make = sgd(Bottleneck)
    rules = tp.mup(make, X, X, loss=F.mse_loss, steps=2)
    wide, read, fixed = (0, 1), (-1, -1), (0, 0)
    expected = {f"{half}.0.{kind}": wide for half in ("encoder", "decoder") for kind in ("weight", "bias")}
    expected |= {f"{half}.2.weight": read for half in ("encoder", "decoder")}
    expected |= {f"{half}.2.bias": fixed for half in ("encoder", "decoder")}
    assert found(rules) == expected
    assert tp.verify(following(make, rules), X, X, loss=F.mse_loss, steps=2).verdict == "maximal update"


class Pairs(nn.Module):
    """Logits are the scaled inner products of normalised features, as in contrastive learning."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.left = nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, n))
        self.right = nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, n))
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> Tensor:
        a, b = F.normalize(self.left(x), dim=-1), F.normalize(self.right(x), dim=-1)
        return (self.scale.exp() * a) @ b.t()


def test_a_scale_of_logits_that_grow_in_training_has_a_rate_of_order_one():
    """Its first gradient is small, as the logits are; a rate that makes up for that blows up a step later."""
    make = sgd(Pairs)
    rules = tp.mup(make, X, Y, loss=F.cross_entropy, steps=2)
    assert found(rules)["scale"] == (0, 0)
    assert found(rules)["left.0.weight"] == (0, 1)
    assert found(rules)["left.2.weight"] == (-HALF, 0)
    assert rules.report.verdict == "maximal update"
    assert tp.verify(following(make, rules), X, Y, loss=F.cross_entropy, steps=2).verdict == "maximal update"


def test_slopes_of_kinks_get_the_rate_of_vectors():
    """Where only bounds of later effects are known, a rate is raised by what is known, and measured again."""

    def build(n: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, n), nn.PReLU(), nn.Linear(n, n), nn.PReLU(n), nn.Linear(n, 3))

    make = sgd(build)
    rules = tp.mup(make, X, Y, loss=F.cross_entropy, steps=2)
    assert found(rules)["3.weight"] == (0, 1)
    assert found(rules)["1.weight"] == (0, 0)
    assert rules.report.verdict == "maximal update"


class Alike(nn.Module):
    """Inner products of values that are correlated from the start, without any scale."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed, self.hidden, self.read = nn.Embedding(5, n), nn.Linear(n, n), nn.Linear(n, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        h = torch.tanh(self.hidden(self.embed(tokens)))
        return self.read(torch.softmax(h @ h.transpose(-1, -2), -1) @ h).mean(-2)


def test_a_dot_product_of_correlated_values_lacks_a_factor_and_the_model_with_it_does_not():
    tokens = torch.tensor([[0, 1, 2], [3, 4, 0], [2, 2, 1]])

    class Scaled(Alike):
        def forward(self, tokens: Tensor) -> Tensor:
            h = torch.tanh(self.hidden(self.embed(tokens)))
            return self.read(torch.softmax(h @ h.transpose(-1, -2) / h.shape[-1], -1) @ h).mean(-2)

    with pytest.warns(UserWarning, match=r"in the model's own forward .*: a factor n\^-1 is missing"):
        rules = tp.mup(sgd(Alike), tokens, Y, loss=F.cross_entropy, steps=2)
    assert [f.exponent for f in rules.factors] == [-1]
    written = tp.mup(sgd(Scaled), tokens, Y, loss=F.cross_entropy, steps=2)
    assert not written.factors
    assert found(rules) == found(written)
    assert rules.report.verdict == written.report.verdict == "maximal update"


def perceptron(n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, 3))


def derived(optimizer) -> tp.Rules:
    return tp.mup(perceptron, X, Y, loss=F.cross_entropy, optimizer=optimizer, steps=2)


def test_updates_of_two_additions_scale_as_one():
    """NAdam adds the gradient's part and the momentum's part one after the other: rules are those of Adam."""
    adam, nadam = derived(torch.optim.Adam), derived(torch.optim.NAdam)
    assert found(nadam) == found(adam)
    assert {r.epsilon_exponent for r in nadam.values()} == {-1, 0}
    assert nadam.report.verdict == "maximal update"


def test_adadelta_scales_with_its_epsilon():
    """Its epsilon stands beside squared gradients and is what updates start from: they are of the gradients' size."""
    rules = derived(torch.optim.Adadelta)
    adam = derived(torch.optim.Adam)
    for name, rule in rules.items():
        gradient, before = rule.gradient_exponent, adam[name]
        assert gradient is not None
        assert before.lr_exponent is not None
        assert rule.epsilon_exponent == 2 * gradient
        assert rule.init_exponent == before.init_exponent
        assert rule.lr_exponent == before.lr_exponent - gradient
    assert rules.report.verdict == "maximal update"


class Images(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, n, 3, padding=1), nn.Conv2d(n, n, 3, padding=1)
        self.read = nn.Linear(n, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.read(F.relu(self.second(F.relu(self.first(x)))).mean((2, 3)))


def test_adafactor_of_convolutions_is_followed():
    """The outer products of its row and column means are over the positions of a kernel."""
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(2))

    def optimizer(params):
        return torch.optim.Adafactor(params, lr=1e-2)

    report = tp.verify(Images, x, Y, loss=F.cross_entropy, optimizer=optimizer, steps=1)
    assert report.changes["second", 1].exponent == HALF
    assert report.advised == "maximal update"


def test_where_only_epsilons_are_in_the_way_the_verdict_below_their_width_is_told():
    rules = derived(torch.optim.Adam)

    def following_with(eps: float | None):
        def made(n: int):
            model = rules.apply_init_(perceptron(n), base_width=64)
            groups = rules.param_groups(model, lr=0.01, base_width=64, eps=eps)
            return model, torch.optim.Adam(groups)

        return tp.verify(made, X, Y, loss=F.cross_entropy, steps=2)

    unscaled, scaled = following_with(None), following_with(1e-8)
    assert (unscaled.verdict, unscaled.verdict_below) == ("kernel regime", "maximal update")
    assert unscaled.takeover_width is not None
    assert 1e5 < unscaled.takeover_width < 1e9
    assert "up to a width of about" in str(unscaled)
    assert (scaled.verdict, scaled.verdict_below, scaled.takeover_width) == ("maximal update", None, None)


def test_a_parameter_that_nothing_reads_is_left_out_of_the_verdict():
    class Spare(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.layers, self.spare = perceptron(n), nn.Linear(n, n)

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x)

    rules = tp.mup(Spare, X, Y, loss=F.cross_entropy, optimizer=torch.optim.Adam, steps=2)
    assert rules.report.verdict == "maximal update"
    (note,) = [line for line in rules.report.notes if "not read" in line]
    assert "spare.weight, spare.bias" in note


def test_bounds_that_earlier_layers_make_large_are_no_learning_rates():
    """Five attentions without norms: at the first rates only bounds are known behind the first, up to n^200."""

    class Stack(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.first = nn.Linear(3, n)
            self.maps = nn.ModuleList(nn.Linear(n, 3 * n) for _ in range(5))

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            for projections in self.maps:
                q, k, v = projections(x).chunk(3, dim=-1)
                x = x + torch.softmax(q @ k.mT / x.shape[-1] ** 0.5, -1) @ v
            return x

    def make(n: int):
        model = Stack(n)
        return model, torch.optim.SGD(model.parameters(), lr=1 / n)

    x = torch.randn(1, 3, 3, generator=torch.Generator().manual_seed(0))
    report = tp.verify(make, x, torch.zeros(1), lambda y, t: y.square().mean(), steps=1)
    assert report.advised == "maximal update"
