"""Verdicts on architectures as people write them, and their exponents against the slopes of really trained models."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from slope_setups import X, adam, package_setups, trained
from torch import nn
from zoo_architectures import (
    IMAGES,
    LABELS,
    LANGUAGE,
    NEXT,
    TOKENS,
    VISION,
    GroupedQuery,
    Language,
    Mixture,
    loss,
    maximal,
)

import tpcompile as tp

MODELS = LANGUAGE | VISION
# Quick ones; all others are slow tests.
DEFAULT = (
    "multi-query attention",
    "rotary attention",
    "heads of fixed size",
    "SwiGLU and RMSNorm",
    "mixture of experts, top 2",
    "stacked experts, bmm",
    "adapters of fixed rank",
    "GRU",
    "LSTM",
    "depthwise separable",
)


@pytest.mark.parametrize("name", ["mup's perceptron, MuSGD", "mup's tied transformer, as it rescales it"])
def test_examples_of_the_package_mup(name):
    """It multiplies a shared readout's weight, the embedding, by the root of the width's ratio."""
    pytest.importorskip("mup", reason="pip install --no-deps mup")
    setup = {k: v for kind in package_setups() for k, v in kind.items()}[name]()
    report = tp.verify(setup.make, setup.inputs, setup.targets, setup.loss, steps=setup.steps, advice=False)
    assert report.verdict == setup.verdict
    if "tied" in name:
        assert report.first_problem == "the 'encoder' at initialisation grows like n^1/2"


def verified(name, steps=2, **options):
    x, y = (TOKENS, NEXT) if name in LANGUAGE else (IMAGES, LABELS)
    make = maximal(MODELS[name], **options)
    return tp.verify(make, x, y, loss=loss, steps=steps, advice=False), (make, x, y)


# Exponents do not depend on the constant in the rate, but which power is the largest at these widths does: the part of
# order one needs a larger rate to stand out of what is n^(-1/2).
RATES = {"adapters of fixed rank": 0.2}
# What is of order one stays below what is n^(-1/2) at these widths: the pull on a router of experts that a choice
# at random picks, for these tokens (test_picked_experts_pull_the_router has others).
UNRESOLVED = {("mixture of experts, top 2", torch.optim.SGD): [("change", "blocks.0.router", 2)]}


def steps_of(name):
    """Adapters from zero need a step more: the second factor moves first, then the first, then their product."""
    return 3 if "adapters" in name else 2


@pytest.mark.parametrize("name", DEFAULT)
def test_table_3_is_maximal(name):
    report, _ = verified(name, steps_of(name))
    assert report.verdict == "maximal update", report
    assert not report.undecided


@pytest.mark.parametrize(("power", "problem"), [(1, None), (0.5, "'blocks.0' grows like n^1/2 at step 1")])
def test_layers_that_each_hide_half_an_order(power, problem):
    """What is left out of a series adds up in full where attention logits are random sums: deeper series decide."""
    blocks = [lambda n: GroupedQuery(n, groups=4, power=power)] * 6
    make = maximal(lambda n: Language(n, *blocks))
    report = tp.verify(make, TOKENS, NEXT, loss=loss, steps=1, advice=False)
    assert report.verdict == ("unstable" if problem else "maximal update")
    assert (report.first_problem or "").endswith(problem or "")


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD])
@pytest.mark.parametrize("name", MODELS)
def test_exponents_are_the_measured_slopes(name, optimizer):
    """Of every value and change, decided or bounded, within 0.1 and three standard errors."""
    steps = steps_of(name)
    report, (make, x, y) = verified(name, steps, kind=optimizer, lr=RATES.get(name, 0.02))
    check = tp.coordinate_check(make, x, y, loss=loss, steps=steps, widths=(64, 128, 256, 512), seeds=4)
    for quantity, value, step, exact, slope, _ in check.rows(report):
        if (quantity, value, step) in UNRESOLVED.get((name, optimizer), []):
            continue
        size = report.size(value, step) if quantity == "value" else report.change(value, step)
        margin = 0.1 + 3 * slope.stderr
        if size.exponent is None:
            assert slope.slope <= size.bound + margin, (quantity, value, step, exact, str(slope))
        elif size.exponent != slope.slope:
            assert math.isfinite(slope.slope), (quantity, value, step, exact, str(slope))
            assert abs(size.exponent - slope.slope) <= margin, (quantity, value, step, exact, str(slope))


def test_a_router_is_first_moved_by_a_random_sum():
    """At step 1 the readout is still independent of the experts' outputs: their product is n^(-1/2)."""
    report, _ = verified("mixture of experts, softmax", kind=torch.optim.SGD)
    assert report.change_exponent("blocks.0.router", 1) == Fraction(-1, 2)
    assert report.parameters["blocks.0.router.weight"].gradient_exponent == Fraction(-1, 2)


class Picking(nn.Module):
    """A mixture of experts of inputs that have much in common."""

    X = torch.tensor([[1.0, 0.3], [1.0, -0.3], [1.0, 0.0]])
    Y = torch.tensor([[4.0], [-4.0], [6.0]])

    def __init__(self, n, top):
        super().__init__()
        self.embed = nn.Linear(2, n, bias=False)
        self.mixture = Mixture(n, experts=4, top=top)
        self.readout = nn.Linear(n, 1, bias=False)
        nn.init.normal_(self.embed.weight)

    def forward(self, x):
        return self.readout(self.mixture(self.embed(x)))


@pytest.mark.slow
@pytest.mark.parametrize("top", [0, 2])
def test_picked_experts_pull_the_router(top):
    """An expert that few inputs picked has learned less; of a softmax all have learned the same in the limit.

    The root mean square over seeds: which experts are picked is a matter of chance at every width.
    """
    widths, make = (64, 256, 1024), maximal(lambda n: Picking(n, top), torch.optim.SGD, lr=0.2)

    def pull(n, seed):
        torch.manual_seed(seed)
        model, optimizer = make(n)
        assert isinstance(model, Picking)
        squares = []
        model.mixture.router.register_full_backward_hook(lambda *xs: squares.append(float(xs[2][0].square().mean())))
        for _ in range(2):
            optimizer.zero_grad()
            F.mse_loss(model(Picking.X), Picking.Y).backward()
            optimizer.step()
        return torch.tensor(squares)

    sizes = torch.stack([torch.stack([pull(n, seed) for seed in range(24)]).mean(0).sqrt() for n in widths])
    logs = torch.tensor(widths).log()
    slopes = ((logs - logs.mean()) @ sizes.log()) / (logs - logs.mean()).square().sum()
    report = tp.verify(make, Picking.X, Picking.Y, F.mse_loss, steps=2, advice=False)
    exact = [Fraction(-1, 2), Fraction(0) if top else Fraction(-1, 2)]
    assert [size.exponent for size in report.parameters["mixture.router.weight"].gradient] == exact
    assert slopes.tolist() == pytest.approx(list(map(float, exact)), abs=0.15)


def test_a_shift_behind_a_normalisation_has_the_effect_of_its_updates():
    """It starts at zero, where the output without it is the output without its updates."""
    report, _ = verified("depthwise separable")
    assert report.parameters["norm.bias"].effect_exponent == 0


def test_which_experts_are_best_has_no_limit_where_two_meet():
    """Sizes are followed, numbers are not: at initialisation all logits tend to zero."""
    make = maximal(MODELS["mixture of experts, top 2"], torch.optim.SGD)
    with pytest.raises(tp.errors.TpcompileError, match="the largest of computed values"):
        tp.compile(make, TOKENS)


@pytest.mark.parametrize("power", [0, -1])
def test_what_is_made_of_a_parameter_need_not_be_linear_in_it(power):
    """The effect is that of exp(w) - exp(w0), not of exp(w - w0)."""

    class Model(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.first, self.readout = nn.Linear(4, n, bias=False), nn.Linear(n, 1, bias=False)
            self.log_scale = nn.Parameter(torch.randn(n))
            nn.init.normal_(self.readout.weight, std=1 / n)

        def forward(self, x):
            return self.readout(torch.tanh(self.first(x)) * torch.exp(self.log_scale))

    # in the order of the parameters: the scale, the first layer, the readout
    make = trained(Model, adam, 0.1, power, 0, -1)
    report = tp.verify(make, X, torch.ones(3, 1), F.mse_loss, steps=1, advice=False)
    assert report.parameters["log_scale"].effect_exponent == power
