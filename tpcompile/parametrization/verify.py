"""``tp.verify``: the exponents of a training setup, from its traced program; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from tpcompile.collector import put_off
from tpcompile.errors import TpcompileError
from tpcompile.laws import Law
from tpcompile.parametrization.advice import advice_lines
from tpcompile.parametrization.changes import NONE, Change, Run
from tpcompile.parametrization.doubts import Doubts, both
from tpcompile.parametrization.factors import solution
from tpcompile.parametrization.measure import Measurement
from tpcompile.parametrization.report import Report
from tpcompile.parametrization.summary import make_report

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
    try:
        found = solution(run, measured)
    except TpcompileError as error:
        return replace(report, notes=(*report.notes, f"no maximal update rules were found: {error}"))
    lines = advice_lines(measured.capture, found.changes, found.factors)
    if not lines:
        return report
    after = found.report
    if not after.stable:
        why = f"what was derived for maximal updates is {after.verdict} ({after.first_problem}), so it is left out"
        return replace(report, notes=(*report.notes, why))
    beyond = report.takeover_width is not None and not found.factors and all(map(_epsilon_only, found.changes.values()))
    return replace(report, advice=lines, advised=after.verdict, verdict_below=after.verdict if beyond else None)


def _epsilon_only(change: Change) -> bool:
    return replace(change, epsilon=NONE) == Change()
