"""``tp.verify``: the exponents of a training setup, from its traced program; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from torch import Tensor

from tpcompile.capture import Capture, capture
from tpcompile.errors import UsageError
from tpcompile.laws import Constant, Law
from tpcompile.parametrization.measure import Shift, Sizes, measure
from tpcompile.parametrization.report import ParameterReport, Report, first_exponent, largest_exponent
from tpcompile.parametrization.sizes import Exponent, Size
from tpcompile.parametrization.verdict import verdict

Batches = Tensor | Sequence[Tensor]


def verify(
    make: Callable[[int], Any],
    inputs: Batches,
    targets: Batches | None = None,
    loss: Callable[..., Tensor] | None = None,
    optimizer: Callable[..., Any] | None = None,
    steps: int = 3,
    *,
    init: Mapping[str, Law] | None = None,
    widths: Sequence[int] | None = None,
) -> Report:
    """Exponents of every activation, gradient and update over ``steps`` training steps, and the verdict.

    Arguments as of :func:`tpcompile.compile`; any optimizer whose step is made of tensor operations. Sources: Tensor
    Programs IV (2011.14522), IVb (2308.01814), V (2203.03466).
    Raises a :class:`~tpcompile.errors.TpcompileError` where the model cannot be captured; an operation that cannot be
    followed makes what comes after it undecided, and the report says so.
    """
    return report_of(captured(make, inputs, targets, loss, optimizer, steps, init=init, widths=widths))


def captured(
    make: Any, inputs: Any, targets: Any, loss: Any, optimizer: Any, steps: int, *, init: Any = None, widths: Any = None
) -> Capture:
    """The training run with everything that exponents are asked of."""
    if loss is None:
        raise UsageError("verify needs a loss: it follows training", where="loss", advice="e.g. loss=F.mse_loss")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise UsageError(f"steps must be a positive int, got {steps!r}", where="steps")
    return capture(make, inputs, targets, loss, optimizer, steps, init=init, widths=widths, exponents=True)


def report_of(setup: Capture, shifts: Mapping[str, Shift] | None = None) -> Report:
    """The report of a captured setup, with powers of n on top of its own."""
    sizes = measure(setup, shifts)
    return make_report(setup, sizes, shifts or {})


def make_report(setup: Capture, sizes: Sizes, shifts: Mapping[str, Shift]) -> Report:
    """Verdict, tables and advice from sizes."""
    parameters = {name: _parameter(setup, sizes, name, shifts.get(name, Shift())) for name in parameter_names(setup)}
    found = verdict(sizes, setup.activations, setup.steps, parameters)
    return Report(
        verdict=found.name,
        stable=found.stable,
        first_problem=found.problem,
        steps=setup.steps,
        activations=setup.activations,
        values=_table(sizes, "value", (*setup.activations, "outputs", "loss")),
        changes=_table(sizes, "change", (*setup.activations, "outputs", "loss")),
        gradients=_table(sizes, "gradient", setup.activations),
        parameters=parameters,
        notes=_notes(parameters, sizes, setup),
        undecided={name: str(error) for name, error in sizes.undecided.items()},
    )


def parameter_names(setup: Capture) -> tuple[str, ...]:
    """Parameters in the order of the model."""
    return tuple(dict.fromkeys(str(node.target) for node in setup.nodes if node.kind == "parameter"))


def init_exponent(setup: Capture, name: str) -> Exponent:
    """Power of n of the standard deviation of a parameter's entries (of its value, where it is constant)."""
    node = next(node for node in setup.nodes if node.kind == "parameter" and str(node.target) == name)
    law = setup.laws[node.name] if node.name in setup.laws else setup.laws[name]
    return -math.inf if isinstance(law, Constant) and law.value == 0 else Fraction(law.width_exponent)


def _parameter(setup: Capture, sizes: Sizes, name: str, shift: Shift) -> ParameterReport:
    trained = f"parameter/{name}/1" in setup.outputs
    rate = setup.learning_rates[name].exponent + shift.rate if trained else None
    start = init_exponent(setup, name) + shift.init
    steps = range(1, setup.steps + 1)
    report = ParameterReport(
        name=name,
        init_exponent=start,
        lr_exponent=rate,
        gradient=tuple(sizes["gradient", name, t - 1] for t in steps) if trained else (),
        update=tuple(sizes["update", name, t] for t in steps) if trained else (),
        effect=tuple(sizes["effect", name, t] for t in steps) if trained else (),
        propagated=tuple(sizes["propagated", name, t] for t in steps) if trained else (),
        start=sizes["start", name, 0],
        readout=name in sizes.finite,
    )
    return ParameterReport(**{**vars(report), "advice": _advice(report)})


def _advice(p: ParameterReport) -> tuple[str, ...]:
    out = []
    if p.lr_exponent is None:
        return ()
    e = first_exponent(p.effect)
    if e is not None and e not in (0, -math.inf):
        assert isinstance(e, Fraction)
        does = "too large" if e > 0 else "smaller than it could be"
        out.append(
            f"`{p.name}`: learning rate should scale as n^{p.lr_exponent - e}, it scales as n^{p.lr_exponent} "
            f"(the update is {does}: its effect is n^{e})"
        )
    through = largest_exponent((p.start, *p.propagated))
    if through is not None and through > 0 and isinstance(p.init_exponent, Fraction):
        out.append(
            f"`{p.name}`: initial values should scale as n^{p.init_exponent - Fraction(through)}, they scale as "
            f"n^{p.init_exponent} (they pass changes of their input on with n^{through})"
        )
    return tuple(out)


def _table(sizes: Sizes, quantity: str, names: tuple[str, ...]) -> dict[tuple[str, int], Size]:
    return {(n, t): s for name in names for (q, n, t), s in sizes.found.items() if q == quantity and n == name}


def _notes(parameters: Mapping[str, ParameterReport], sizes: Sizes, setup: Capture) -> tuple[str, ...]:
    notes = []
    frozen = [p.name for p in parameters.values() if p.lr_exponent is None]
    if frozen:
        notes.append(f"not trained, so flat in a coordinate check whatever their scale: {', '.join(frozen)}")
    start = sizes["value", "outputs", 0].exponent
    if start is not None and -math.inf < start < 0:
        notes.append(f"the outputs at initialisation are n^{start}: a transient that training replaces, not a fault")
    still = [
        p.name
        for p in parameters.values()
        if p.lr_exponent is not None and p.effect and first_exponent(p.effect) == -math.inf
    ]
    if still:
        notes.append(f"never moved in {setup.steps} steps (its gradient is exactly zero): {', '.join(still)}")
    return tuple(notes)
