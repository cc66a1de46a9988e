"""``tp.verify``: the exponents of a training setup, from its traced program; nothing is trained."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from torch import Tensor

from tpcompile.capture import Capture
from tpcompile.collector import put_off
from tpcompile.errors import TpcompileError
from tpcompile.laws import Law
from tpcompile.parametrization.advice import advice_lines
from tpcompile.parametrization.cases import cases, open_values
from tpcompile.parametrization.changes import Run
from tpcompile.parametrization.doubts import Doubts, both
from tpcompile.parametrization.measure import Measurement, Shift, Sizes, init_exponent, parameter_names, trained
from tpcompile.parametrization.report import ParameterReport, Report, first_exponent
from tpcompile.parametrization.sizes import Size
from tpcompile.parametrization.solve import solve
from tpcompile.parametrization.verdict import aligned, too_large, verdict

Batches = Tensor | Sequence[Tensor]
_MOST_FACTORS = 4  # rounds in which factors of products are found


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
    advice: bool = True,
) -> Report:
    """Exponents of every activation, gradient and update over ``steps`` training steps, and the verdict.

    Arguments as of :func:`tpcompile.compile`; any optimizer whose step is made of tensor operations. ``advice`` derives
    what the maximal update parametrization would need, applies it to the factory and verifies that again (several
    traces more). Sources: Tensor Programs IV (2011.14522), IVb (2308.01814), V (2203.03466).
    Raises a :class:`~tpcompile.errors.TpcompileError` where the model cannot be captured; an operation that cannot be
    followed makes what comes after it undecided, and the report says so.
    """
    run = Run(make, inputs, targets, loss, optimizer, steps, init, widths)
    with put_off():
        setup = run.capture()
        measured = Measurement(setup)
        report = make_report(setup, measured.settled())
        if measured.doubts.met:
            other = Measurement(setup, doubts=Doubts(zero=True)).settled()
            return both(report, make_report(setup, other), measured.doubts)
        return advised(run, measured, report) if advice else report


def advised(run: Run, measured: Measurement, report: Report) -> Report:
    """The report with what to change for maximal updates, applied to the factory and verified again.

    Factors of products of two activations (1/d in place of 1/sqrt(d)) stand in the model's code: these are applied in
    the traced program.
    """
    setup = measured.capture
    factors: dict[int, Fraction] = {}
    try:
        for _ in range(_MOST_FACTORS):
            changes = solve(run, Measurement(setup, earlier=measured, factors=factors, generic=True))
            lines = advice_lines(setup, changes, factors)
            if not lines:
                return report
            applied = run.changed(changes).capture()
            sizes = Measurement(applied, earlier=measured, factors=factors, generic=True).settled()
            after = make_report(applied, sizes)
            larger = {} if after.stable else too_large(applied, sizes)
            if not larger:
                break
            factors = {i: factors.get(i, Fraction(0)) - larger.get(i, Fraction(0)) for i in {*factors, *larger}}
    except TpcompileError as error:
        return replace(report, notes=(*report.notes, f"no maximal update rules were found: {error}"))
    if not after.stable:
        why = f"what was derived for maximal updates is {after.verdict} ({after.first_problem}), so it is left out"
        return replace(report, notes=(*report.notes, why))
    return replace(report, advice=lines, advised=after.verdict)


def make_report(setup: Capture, sizes: Sizes, shifts: Mapping[str, Shift] | None = None) -> Report:
    """Verdict and tables from sizes."""
    moved = shifts or {}
    parameters = {name: _parameter(setup, sizes, name, moved.get(name, Shift())) for name in parameter_names(setup)}
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
        open_values=open_values(sizes, setup.activations),
        cases=cases(sizes, setup.activations, setup.steps, parameters) if found.name == "undecided" else {},
    )


def _parameter(setup: Capture, sizes: Sizes, name: str, shift: Shift) -> ParameterReport:
    moves = trained(setup, name)
    steps = range(1, setup.steps + 1)
    return ParameterReport(
        name=name,
        init_exponent=init_exponent(setup, name) + shift.init,
        lr_exponent=setup.learning_rates[name].exponent + shift.rate if moves else None,
        gradient=tuple(sizes["gradient", name, t - 1] for t in steps) if moves else (),
        update=tuple(sizes["update", name, t] for t in steps) if moves else (),
        effect=tuple(sizes["effect", name, t] for t in steps) if moves else (),
        propagated=tuple(sizes["propagated", name, t] for t in steps),
        start=sizes["start", name, 0],
        readout=name in sizes.finite,
    )


def _table(sizes: Sizes, quantity: str, names: tuple[str, ...]) -> dict[tuple[str, int], Size]:
    return {(n, t): s for name in names for (q, n, t), s in sizes.found.items() if q == quantity and n == name}


def _notes(parameters: Mapping[str, ParameterReport], sizes: Sizes, setup: Capture) -> tuple[str, ...]:
    notes = [*setup.notes, *sizes.takeovers]
    frozen = [p.name for p in parameters.values() if p.lr_exponent is None]
    if frozen:
        notes.append(f"not trained, so flat in a coordinate check whatever their scale: {', '.join(frozen)}")
    start = sizes["value", "outputs", 0].exponent
    if start is not None and -math.inf < start < 0:
        notes.append(f"the outputs at initialisation are n^{start}: a transient that training replaces, not a fault")
    notes += [
        f"a product of two activations in {p.place} is n^{p.start} at initialisation and n^{p.later} at step {p.step}, "
        f"when training has aligned them: divide it by n^{p.later} more (attention: 1/d for 1/sqrt(d))"
        for p in aligned(sizes, setup.steps)
    ]
    still = [
        p.name
        for p in parameters.values()
        if p.lr_exponent is not None and p.effect and first_exponent(p.effect) == -math.inf
    ]
    if still:
        notes.append(f"never moved in {setup.steps} steps (its gradient is exactly zero): {', '.join(still)}")
    return tuple(notes)
