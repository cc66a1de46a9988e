"""The report of a setup from the sizes of its values: verdict, tables and remarks."""

from __future__ import annotations

import math
from collections.abc import Mapping

from tpcompile.capture import Capture
from tpcompile.parametrization.cases import cases, open_values
from tpcompile.parametrization.effects import uses
from tpcompile.parametrization.measure import Shift, Sizes, init_exponent, parameter_names, trained
from tpcompile.parametrization.report import ParameterReport, Report, first_exponent
from tpcompile.parametrization.sizes import Size
from tpcompile.parametrization.verdict import aligned, verdict


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
        takeover_width=min((takeover.width for takeover in sizes.takeovers), default=None),
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
        used=bool(uses(setup, name, 0)),
    )


def _table(sizes: Sizes, quantity: str, names: tuple[str, ...]) -> dict[tuple[str, int], Size]:
    return {(n, t): s for name in names for (q, n, t), s in sizes.found.items() if q == quantity and n == name}


def _notes(parameters: Mapping[str, ParameterReport], sizes: Sizes, setup: Capture) -> tuple[str, ...]:
    notes = [*setup.notes, *(takeover.text for takeover in sizes.takeovers)]
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
    unused = [p.name for p in parameters.values() if not p.used]
    if unused:
        notes.append(f"not read by the forward pass, so left out of the verdict: {', '.join(unused)}")
    still = [
        p.name
        for p in parameters.values()
        if p.lr_exponent is not None and p.used and p.effect and first_exponent(p.effect) == -math.inf
    ]
    if still:
        notes.append(f"never moved in {setup.steps} steps (its gradient is exactly zero): {', '.join(still)}")
    return tuple(notes)
