"""Factors of products of two activations, found together with the exponents of parameters.

Attention logits ``q . k / sqrt(d)`` grow when training aligns their operands, whatever the parameters' scales: 1/d in
place of 1/sqrt(d) (Tensor Programs V, 2203.03466, definition 4.1). Such factors stand in a model's code, so that they
are applied in its traced program, to the products and to what they pass back.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

from tpcompile.capture import Capture
from tpcompile.parametrization.changes import Change, Run
from tpcompile.parametrization.effects import products
from tpcompile.parametrization.measure import Measurement, Sizes
from tpcompile.parametrization.report import Report
from tpcompile.parametrization.solve import settle, solve
from tpcompile.parametrization.summary import make_report
from tpcompile.parametrization.verdict import hidden_products, largest_product, too_large

_MOST_ROUNDS = 4
_LEARNING = ("maximal update", "feature learning")


@dataclass(frozen=True)
class Factor:
    """A power of n that a product of two activations lacks, and where that is in the model."""

    place: str
    source: str | None
    exponent: Fraction

    @property
    def where(self) -> str:
        return self.place + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True)
class Solution:
    """What a setup needs for the maximal update parametrization, and the setup that has it with its report."""

    changes: Mapping[str, Change]
    factors: tuple[Factor, ...]
    measured: Measurement
    sizes: Sizes
    report: Report


def solution(run: Run, own: Measurement, given: Mapping[str, Sequence[Fraction]] | None = None) -> Solution:
    """Exponents of parameters and factors of products; ``own`` measures the run as it is, ``given`` as in solve.

    Raises UndeterminedLimitError where :func:`~tpcompile.parametrization.solve.solve` does; the report says whether
    the result is stable.
    """
    setup = own.capture
    exponents: dict[int, Fraction] = {}
    guessed: set[int] = set()

    def followed(changes: Mapping[str, Change]) -> tuple[Measurement, Sizes, Report]:
        """The setup that has these changes."""
        if not any(exponents.values()) and all(change == Change() for change in changes.values()):
            measured = own
        else:
            measured = Measurement(run.changed(changes).capture(), earlier=own, factors=exponents, generic=True)
        sizes = measured.settled()
        return measured, sizes, make_report(measured.capture, sizes)

    for _ in range(_MOST_ROUNDS):
        changes, found = solve(run, Measurement(setup, earlier=own, factors=exponents, generic=True), given)
        sizes = found.settled()  # products that grow are seen before anything is traced again
        stable = make_report(found.capture, sizes, found.shifts).stable
        moves, hidden = _moves(found.capture, sizes, guessed, stable)
        if not moves:
            measured, sizes, report = followed(changes)
            moves, hidden = _moves(measured.capture, sizes, guessed, report.stable)
        if not moves:
            break
        guessed |= hidden
        exponents = {i: exponents.get(i, Fraction(0)) - moves.get(i, Fraction(0)) for i in {*exponents, *moves}}
    else:
        measured, sizes, report = followed(changes)
    if report.verdict not in _LEARNING:  # epsilons in their place may be what updates scale with (Adadelta)
        rates = settle(run.changed(changes), measured)
        if any(rates.values()):
            changes = {name: replace(change, rate=change.rate + rates.get(name, 0)) for name, change in changes.items()}
            measured, sizes, report = followed(changes)
    made = products(setup, 0)
    factors = tuple(Factor(made[i].origin.place, made[i].origin.source, e) for i, e in sorted(exponents.items()) if e)
    return Solution(changes, factors, measured, sizes, report)


def _moves(capture: Capture, sizes: Sizes, guessed: set[int], stable: bool) -> tuple[dict[int, Fraction], set[int]]:
    """Powers of n to divide products by, and those among them that are guesses.

    Behind a product that grows nothing is known: those that may grow too get the same factor, which is taken back
    later as far as it makes a product vanish at all steps.
    """
    moves = {} if stable else too_large(capture, sizes)
    hidden = set() if not moves else hidden_products(capture, sizes) - {*moves, *guessed}
    most = max(moves.values(), default=Fraction(0))
    spare = {i: e for i in guessed if (e := largest_product(capture, sizes, i)) is not None and -math.inf < e < 0}
    return {**dict.fromkeys(hidden, most), **moves, **{i: Fraction(e) for i, e in spare.items()}}, hidden
