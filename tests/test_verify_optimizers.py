"""Exponents of what optimizers do beside their update: schedules, clipping, decay, epsilon, matrix-wise functions."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from test_verify import MLP, X, Y
from torch import nn
from zoo_optimizers import Muon

import tpcompile as tp
from tpcompile.capture import capture
from tpcompile.evaluate.reference import run
from tpcompile.ir import Output, finish
from tpcompile.lowering.lower import lower
from tpcompile.lowering.value import Value
from tpcompile.simulate import build, seeded

HALF = Fraction(1, 2)


def sgd(p, lr):
    return torch.optim.SGD(p, lr=lr)


def adam(p, lr):
    return torch.optim.Adam(p, lr=lr, eps=0.0)


def verified(optimizer, power, schedule=None, clip=None, steps=2):
    """A standard parametrization with a rate of that power of the width."""

    def make(n):
        model = MLP(n)
        update = optimizer(model.parameters(), 0.1 * n ** float(power))

        def before(*_):
            assert clip is not None
            nn.utils.clip_grad_norm_(model.parameters(), clip)

        if clip is not None:
            update.register_step_pre_hook(before)
        return (model, update) if schedule is None else (model, update, schedule(update))

    return tp.verify(make, X, Y, F.mse_loss, steps=steps)


def warm_up(optimizer):
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda t: t / 4)


@pytest.mark.parametrize(("optimizer", "power"), [(sgd, -1), (adam, -3 * HALF)])
def test_a_schedule_is_read_step_by_step(optimizer, power):
    report = verified(optimizer, power, warm_up)
    assert report.verdict == "kernel regime"
    assert report.change("outputs", 1).at_most(-1)  # the first rate is zero
    assert report.change_exponent("outputs", 2) == 0
    assert {p.lr_exponent for p in report.parameters.values()} == {power}


def test_a_schedule_whose_rates_grow_with_the_width_is_unstable_when_they_come():
    def make(n):
        model = MLP(n)
        update = sgd(model.parameters(), 0.1 / n)
        return model, update, torch.optim.lr_scheduler.LambdaLR(update, lambda t: 1.0 if t < 1 else float(n))

    report = tp.verify(make, X, Y, F.mse_loss, steps=2)
    assert report.verdict == "unstable"
    assert report.change_exponent("outputs", 1) == 0
    assert "at step 2" in (report.first_problem or "")


@pytest.mark.parametrize(
    ("optimizer", "power", "verdict"),
    [
        (sgd, 0, "unstable"),  # the norm is n^(1/2): clipping makes the rate n^(-1/2), too much by n^(1/2)
        (sgd, -HALF, "kernel regime"),
        (sgd, -1, "trivial"),
        (adam, -3 * HALF, "kernel regime"),  # does not see the norm
    ],
)
def test_clipping_by_the_global_norm(optimizer, power, verdict):
    """In the standard parametrization the readout's gradient is Θ(1), and the global norm n^(1/2)."""
    report = verified(optimizer, power, clip=1.0)
    assert report.verdict == verdict
    if verdict == "unstable":
        assert report.change_exponent("outputs", 1) == HALF


def clipped(make, limit):
    """The same with gradients clipped, reached by the optimizer's own groups."""

    def setup(n):
        model, update = make(n)

        def before(update, *_):
            nn.utils.clip_grad_norm_([p for g in update.param_groups for p in g["params"]], limit)

        update.register_step_pre_hook(before)
        return model, update

    return setup


def test_clipping_needs_the_form_of_a_parametrization_whose_global_norm_is_of_order_one():
    """Of two forms of one training, clipping by a constant keeps that of Tensor Programs IV and stops Table 3's."""

    def table3(n):
        model = MLP(n)
        nn.init.normal_(model.readout.weight, std=1 / n)
        rates = (0.1 * n, 0.1, 0.1, 0.1 / n)
        return model, torch.optim.SGD(
            [{"params": [p], "lr": r} for p, r in zip(model.parameters(), rates, strict=True)]
        )

    assert tp.verify(table3, X, Y, F.mse_loss, steps=2).verdict == "maximal update"
    assert tp.verify(clipped(table3, 1e-3), X, Y, F.mse_loss, steps=2).verdict == "trivial"
    inputs, targets = X[:2, :2], Y[:2]
    report = tp.verify(clipped(tp.abc.mup(3).factory(), 1e-3), inputs, targets, F.mse_loss, steps=2)
    assert report.verdict == "maximal update"


@pytest.mark.parametrize("momentum", [{"dampening": 0.5}, {"nesterov": True}])
def test_momentum_of_sgd_changes_no_exponent(momentum):
    plain = verified(lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.9, **momentum), -1)
    assert plain.verdict == "kernel regime"
    assert plain.changes == verified(sgd, -1).changes


def test_bad_schedules():
    with pytest.raises(tp.errors.FactoryError, match="depend on the measured loss"):
        verified(sgd, -1, torch.optim.lr_scheduler.ReduceLROnPlateau)
    with pytest.raises(tp.errors.FactoryError, match=r"not a torch\.optim\.lr_scheduler\.LRScheduler"):
        verified(sgd, -1, lambda update: "cosine")
    with pytest.raises(tp.errors.FactoryError, match="another optimizer"):
        verified(sgd, -1, lambda _: warm_up(sgd([nn.Parameter(torch.ones(1))], 1.0)))


def by_layer(optimizer, readout_std, **powers):
    """Rates of the input layer, the hidden layers and the readout as powers of the width."""

    def make(n):
        model = MLP(n)
        nn.init.normal_(model.readout.weight, std=n**readout_std)
        rates = [powers.get("first", 0), powers.get("hidden", 0), powers.get("hidden", 0), powers.get("readout", 0)]
        groups = [{"params": [p], "lr": 0.1 * n**r} for p, r in zip(model.parameters(), rates, strict=True)]
        return model, optimizer(groups, n)

    return make


def muon(groups, n):
    return Muon(groups, lr=0.1, eps=0.0)


def test_muon_wants_rates_that_do_not_scale():
    """Spectral condition (2310.17813): an orthogonal update times sqrt(max(1, rows / columns)) needs no power of n.

    Only the readout does: torch's factor leaves a row of ``n^(-1/2)`` entries, the condition asks for 1/n.
    """
    right = by_layer(muon, -1, readout=-0.5)
    report = tp.verify(right, X, Y, F.mse_loss, steps=2)
    assert report.verdict == "maximal update"
    assert all(p.effect_exponent == 0 for p in report.parameters.values())
    too_slow = tp.verify(by_layer(muon, -1, readout=-0.5, hidden=-1), X, Y, F.mse_loss, steps=2)
    assert too_slow.parameters["hidden.1.weight"].effect_exponent == -1  # Adam's 1/n on top of the normalisation
    rules = tp.mup(by_layer(muon, -0.5, hidden=-1), X, Y, F.mse_loss)
    found = {k.removesuffix(".weight"): (r.init_exponent, r.lr_exponent) for k, r in rules.items()}
    assert found == {"hidden.0": (0, 0), "hidden.1": (-HALF, 0), "hidden.2": (-HALF, 0), "readout": (-1, -HALF)}


def test_muon_of_torch_is_the_published_algorithm():
    """But for its precision, which the trace leaves out."""
    outputs = []
    for optimizer in (
        lambda groups, n: torch.optim.Muon(groups, lr=0.1, weight_decay=0.3),
        lambda groups, n: Muon(groups, lr=0.1, decay=0.3),
    ):
        make = by_layer(optimizer, -0.5)
        lowered = lower(capture(make, X.double(), Y.double(), F.mse_loss, None, 2), HALF, width=12)
        f = lowered.values["outputs/2"]
        assert isinstance(f, Value)
        program = finish(lowered.context.algebra.builder, {"f": Output(f.terms, None, (3, 1))})
        with seeded(0):
            weights = {k: p.detach().double() for k, p in build(make, 12)[0].named_parameters()}
        outputs.append(run(program, weights, 12)[program.outputs["f"].terms[0][1]])
    torch.testing.assert_close(outputs[0], outputs[1], rtol=1e-9, atol=1e-12)


def adafactor(first, second):
    """With epsilons that are these powers of the width: beside squared gradients, and of the relative step."""

    def optimizer(groups, n):
        return torch.optim.Adafactor(groups, lr=0.1, eps=(1e-9 * n**first, 1e-3 * n**second), weight_decay=0.0)

    return optimizer


@pytest.mark.parametrize(
    ("second", "power"),
    [
        (0, -1),  # a relative step of eps2, the larger one: the rate itself scales, as Adam's
        (-1, -0.5),  # one of the parameter's own n^(-1/2): Tensor Programs V, appendix B.3
    ],
)
def test_adafactor_is_adam_with_a_relative_step(second, power):
    last = -1 if second == 0 else 0  # the readout's initial values are 1/n
    report = tp.verify(by_layer(adafactor(-1, second), -1, hidden=power, readout=last), X, Y, F.mse_loss, steps=2)
    assert report.verdict == "maximal update"
    fast = tp.verify(by_layer(adafactor(-1, second), -1, readout=last), X, Y, F.mse_loss, steps=1)
    assert fast.parameters["hidden.1.weight"].effect_exponent == -power


def test_epsilons_of_adafactor_take_over_where_gradients_vanish():
    report = tp.verify(by_layer(adafactor(0, 0), -1, hidden=-1, readout=-1), X, Y, F.mse_loss, steps=1)
    assert report.parameters["hidden.1.weight"].effect_exponent == -1  # the gradient, n^-1, over a constant


def mup_adam(epsilon, decay=lambda n: 0.0):
    """Weight decay in the hidden layers only."""

    def optimizer(groups, n):
        groups = [{**g, "weight_decay": decay(n) if 0 < i < 3 else 0.0} for i, g in enumerate(groups)]
        return torch.optim.AdamW(groups, eps=epsilon(n))

    return by_layer(optimizer, -1, hidden=-1, readout=-1)


def test_an_epsilon_that_takes_over_is_noted_with_its_width():
    """A constant beside gradients of 1/n: the width where they cross, within a factor 2 of the real gradients there."""
    report = tp.verify(mup_adam(lambda n: 1e-4), X, Y, F.mse_loss, steps=1, advice=False)
    (note,) = [line for line in report.notes if "takes over" in line]
    assert "`hidden.1.weight`" in note
    assert "n^-1" in note
    width = int(float(note.split("a width of about ")[1].split()[0]))
    sizes = []
    for seed in range(5):
        torch.manual_seed(seed)
        model = mup_adam(lambda n: 0.0)(width)[0]
        grads = torch.autograd.grad(F.mse_loss(model(X), Y), list(model.parameters())[:3])
        sizes.append(max(float(g.square().mean().sqrt()) for g in grads))
    assert 0.5 < sorted(sizes)[2] / 1e-4 < 2
    for epsilon in (lambda n: 0.0, lambda n: 1e-4 / n, lambda n: 1e-4 * n**-2.0):
        report = tp.verify(mup_adam(epsilon), X, Y, F.mse_loss, steps=1, advice=False)
        assert report.verdict == "maximal update"
        assert not any("takes over" in line for line in report.notes)


@pytest.mark.parametrize(
    ("power", "verdict", "effect"),
    [
        (0, "maximal update", 0),  # times a rate of 1/n: no decay in the limit
        (1, "maximal update", 0),  # the rate is undone: decay of order one
        (2, "unstable", 1),  # undone twice
    ],
)
def test_decoupled_weight_decay_is_multiplied_by_the_rate(power, verdict, effect):
    make = mup_adam(lambda n: 0.0, lambda n: 0.01 * n**power)
    report = tp.verify(make, X, Y, F.mse_loss, steps=2, advice=False)
    assert report.verdict == verdict
    assert report.parameters["hidden.1.weight"].effect[0].exponent == effect


def coupled(power, optimizer=torch.optim.Adam):
    """Only one hidden layer trains, with a weight decay of that power of the width added to its gradient of 1/n."""

    def make(n):
        model = MLP(n)
        nn.init.normal_(model.readout.weight, std=1 / n)
        for name, p in model.named_parameters():
            p.requires_grad_(name == "hidden.1.weight")
        decay = (0.3 if power == 0 else 0.03) * n**power
        return model, optimizer([model.get_parameter("hidden.1.weight")], lr=0.3 / n, weight_decay=decay, eps=0.0)

    return make


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.RMSprop, torch.optim.NAdam])
@pytest.mark.parametrize(("power", "effect"), [(0, -HALF), (-0.5, 0), (-1, 0)])
def test_coupled_weight_decay_that_dominates_the_gradient(power, effect, optimizer):
    """Decay of initial entries of n^(-1/2) beside gradients of 1/n: the update is a function of the initial matrix.

    It acts as a random matrix does, by n^(1/2) of its entries, where that of the gradient acts by n of them.
    """
    report = tp.verify(coupled(power, optimizer), X, Y, F.mse_loss, steps=2, advice=False)
    assert [s.exponent for s in report.parameters["hidden.1.weight"].effect] == [effect, effect]
    assert report.change_exponent("hidden.1", 1) == effect
    assert report.verdict == ("trivial" if effect else "maximal update")


def muon_of_torch(groups, n):
    return torch.optim.Muon(groups, lr=0.1, weight_decay=0.0, eps=0.0)


MEASURED = {
    "Muon": by_layer(muon_of_torch, -1, readout=-0.5),
    "Muon, hidden rates of 1/n": by_layer(muon_of_torch, -1, hidden=-1, readout=-0.5),
    "Adafactor": by_layer(adafactor(-1, -1), -1, hidden=-0.5),
    "SGD, clipped": clipped(
        by_layer(lambda groups, n: torch.optim.SGD(groups), -0.5, first=-0.5, hidden=-0.5, readout=-0.5), 0.01
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("power", [0, -0.5])
def test_coupled_weight_decay_has_the_measured_slopes(power):
    report = tp.verify(coupled(power), X, Y, F.mse_loss, steps=2, advice=False)
    check = tp.coordinate_check(coupled(power), X, Y, F.mse_loss, steps=2, widths=(128, 256, 512, 1024), seeds=5)
    assert all(agree for *_, agree in check.rows(report)), check.rows(report)


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_exponents_are_the_measured_slopes(name):
    """Widths 128 to 1024, five seeds: every value and change within 0.1 and two standard errors."""
    make = MEASURED[name]
    report = tp.verify(make, X, Y, F.mse_loss, steps=2, advice=False)
    assert report.stable
    check = tp.coordinate_check(make, X, Y, F.mse_loss, steps=2, widths=(128, 256, 512, 1024), seeds=5)
    rows = check.rows(report)
    assert len(rows) == 18
    assert all(agree for *_, agree in rows), [row for row in rows if not row[-1]]
