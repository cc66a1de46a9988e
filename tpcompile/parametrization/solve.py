"""Exponents of the maximal update parametrization: moves of single exponents, each traced again."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from tpcompile.capture import Capture
from tpcompile.errors import UndeterminedLimitError
from tpcompile.lowering.value import HALF
from tpcompile.parametrization.changes import Change, Run
from tpcompile.parametrization.decay import decay_kind
from tpcompile.parametrization.effects import uses
from tpcompile.parametrization.measure import (
    DEEPEST,
    Measurement,
    Shift,
    Sizes,
    init_exponent,
    parameter_names,
    trained,
)
from tpcompile.parametrization.report import largest_exponent
from tpcompile.parametrization.sizes import ZERO
from tpcompile.parametrization.ties import excess, grown_uses, shared

_MOST_ROUNDS, _MOST_TIES, _MOST_LOWERED = 40, 8, 2
_FAR = Fraction(3)  # a bound beyond is none that a learning rate is changed by while others are known
_AWAY = Fraction(-8)  # puts an epsilon or a weight decay below everything else


def solve(
    run: Run, own: Measurement, given: Mapping[str, Sequence[Fraction]] | None = None
) -> tuple[dict[str, Change], Measurement]:
    """What every parameter of a run needs for the maximal update parametrization; ``own`` measures it as it is.

    Also the measurement that this was found by, with epsilon and weight decay out of the way.

    Multipliers only where one parameter stands in operations that ask for different scales, or as ``given``. Initial
    values and learning rates are solved for with epsilon and weight decay out of the way: these follow,
    epsilon as the gradients and weight decay so that its product with the learning rate stays.
    Raises UndeterminedLimitError if no stable point is reached.
    """
    setup = own.capture
    away = {
        name: Change(
            epsilon=_AWAY if _matters(setup, name, "eps") else Fraction(0),
            decay=_AWAY if _matters(setup, name, "weight_decay") else Fraction(0),
        )
        for name in parameter_names(setup)
        if trained(setup, name)
    }
    multipliers: dict[str, tuple[Fraction, ...]] = {name: tuple(each) for name, each in (given or {}).items()}
    several = shared(run, setup)
    shifts = _shared_inits(own, several)
    latest = own
    for _ in range(_MOST_TIES):
        around = {
            name: replace(away.get(name, Change()), multipliers=multipliers.get(name, ()))
            for name in parameter_names(setup)
        }
        alone = setup if not any(c != Change() for c in around.values()) else run.captured(around)
        latest = Measurement(alone, shifts, latest)
        sizes = latest.sizes(2 * HALF)
        more = excess(several, sizes, setup.steps)
        if not more:
            latest = moved(latest, several)
            shifts, sizes = latest.shifts, latest.sizes()
            more = excess(several, sizes, setup.steps)
        if not more:
            break
        for name, by_use in more.items():
            before = multipliers.get(name, (Fraction(0),) * len(by_use))
            multipliers[name] = tuple(b - e for b, e in zip(before, by_use, strict=True))
    else:
        raise UndeterminedLimitError(
            f"no multipliers found in {_MOST_TIES} rounds", where=", ".join(multipliers),
            advice="the operations that use these parameters ask for scales that keep changing: untie them",
        )  # fmt: skip
    changes = {}
    for name, shift in shifts.items():
        change = Change(init=shift.init, rate=shift.rate, multipliers=multipliers.get(name, ()))
        if name in away and away[name].epsilon:
            beside = sizes.beside_epsilon.get(name)
            if beside is not None:
                change = replace(change, epsilon=beside - setup.settings[name]["eps"].exponent)
        if name in away and away[name].decay:
            rate = setup.learning_rates[name].exponent + shift.rate
            kept = -rate - setup.settings[name]["weight_decay"].exponent
            change = replace(change, decay=_AWAY if decay_kind(setup, name) == "normalised" else kept)
        changes[name] = change
    return changes, latest


def settle(run: Run, measured: Measurement) -> dict[str, Fraction]:
    """What is still to be added to the exponents of learning rates of a run, with all else in its place."""
    setup = measured.capture
    start = Measurement(setup, {name: Shift() for name in parameter_names(setup)}, measured)
    return {name: shift.rate for name, shift in moved(start, shared(run, setup)).shifts.items()}


def _shared_inits(own: Measurement, several: Mapping[str, int]) -> dict[str, Shift]:
    """Initial values at which the first growing output of a parameter of several uses is Θ(1): the others follow it."""
    setup = own.capture
    shifts = {name: Shift() for name in parameter_names(setup)}
    sizes = own.sizes(HALF) if several else Sizes({})
    for name in several:
        starts = [sizes.by_use.get(("start", name, 0, use), ZERO).exponent for use in grown_uses(setup, name)]
        first = next((e for e in starts if e != -math.inf), None)
        if first is not None:
            shifts[name] = Shift(init=-Fraction(first))
    return shifts


def _matters(setup: Capture, name: str, key: str) -> bool:
    value = setup.settings.get(name, {}).get(key)
    return value is not None and value.coefficient != 0


def moved(start: Measurement, several: Mapping[str, int]) -> Measurement:
    """Exponents of initial values and learning rates: single moves, each traced again, until nothing is left to move.

    The sizes are piecewise linear in the exponents, with pieces that only the trace knows (cancellation, saturation):
    a linear program would solve one piece and have to be traced again like a move. What the moves end at is measured
    by the trace itself, so it does not depend on the way there.
    """
    setup, latest = start.capture, start
    names = [name for name in parameter_names(setup) if trained(setup, name)]
    random = [name for name in parameter_names(setup) if init_exponent(setup, name) != -math.inf]
    growing = setup.grown_parameters
    lowered: Counter[str] = Counter()  # how often initial values were too large: what grows again is not raised again
    late: frozenset[str] = frozenset()  # parameters whose effect is larger at a later step than at the first
    moves: dict[str, Shift] = {}
    tried: dict[str, Shift] = {}  # moves by what is only a bound
    deepest = 2 * HALF
    seen: set[tuple[Shift, ...]] = set()
    guessed: set[str] = set()  # parameters whose rates were raised
    circle = False  # what was raised together was lowered together again: one rate at a time from then on
    for _ in range(_MOST_ROUNDS):
        circle |= (where := tuple(latest.shifts.values())) in seen
        seen.add(where)
        sizes = latest.sizes(deepest)
        if excess(several, sizes, setup.steps):
            return latest  # a matter of multipliers
        moves = _first_effects(setup, sizes, [name for name in names if name not in late])
        bounds = {n: move for n, move in moves.items() if not sizes["effect", n, _first_step(setup, sizes, n)].exact}
        stuck = [n for n, move in bounds.items() if tried.get(n) == move]
        if stuck and deepest < DEEPEST:  # bounds that do not follow the rates: what was cut off decides
            deepest, tried = DEEPEST, {}
            continue
        tried |= bounds
        moves = {n: move for n, move in moves.items() if n not in stuck}
        if len(bounds) < len(moves):  # large bounds are what others make of a value: these come first
            moves = {n: move for n, move in moves.items() if n not in bounds or abs(move.rate) <= _FAR}
        if not moves:
            moves, grown = _growth(setup, sizes, names, random)
            late |= grown
            lowered.update(name for name, move in moves.items() if move.init)
        sizes_of = {n: init_exponent(setup, n) + latest.shifts[n].init + _behind(setup, n, 0) for n in random}
        small = [n for n in random if lowered[n] < _MOST_LOWERED and (n in growing or sizes_of[n] < 0)]
        if not moves:
            unsure = [name for name in names if name not in guessed]
            moves = _small(setup, sizes, [name for name in names if name in late], small, unsure)
            guessed |= {name for name, move in moves.items() if move.rate}
        moves = dict(list(moves.items())[:1]) if circle else moves
        if not moves and deepest == DEEPEST:
            return latest
        if not moves:
            if all(size.bound != math.inf for (quantity, *_), size in sizes.found.items() if quantity == "effect"):
                return latest
            deepest = DEEPEST  # what is not known at all may only have been cut off
            continue
        shifts = {
            n: Shift(s.init - m.init, s.rate - m.rate)
            for n, s in latest.shifts.items()
            for m in (moves.get(n, Shift()),)
        }
        latest = Measurement(setup, shifts, latest)
    raise UndeterminedLimitError(
        f"no maximal update parametrization found in {_MOST_ROUNDS} rounds",
        where=", ".join(list(moves)[:3]),
        advice="print tp.verify(...) to see which value is undecided or grows whatever the parameters' scales",
    )


def _first_step(setup: Capture, sizes: Sizes, name: str) -> int:
    """The first step at which a parameter has an effect; 0 if there is none."""
    steps = (t for t in range(1, setup.steps + 1) if sizes["effect", name, t].exponent != -math.inf)
    return next(steps, 0)


def _first_effects(setup: Capture, sizes: Sizes, names: Sequence[str]) -> dict[str, Shift]:
    """Learning rates at which the first effect is Θ(1); where only a bound is known, at which it is O(1).

    A parameter of no growing axis, as a scale of logits that are small at first, moves by Θ(1) at the most.
    """
    moves = {}
    for name in names:
        t = _first_step(setup, sizes, name)
        first = sizes["effect", name, t].bound if t else -math.inf
        if t and name not in setup.grown_parameters:
            first = max(first, sizes["update", name, t].bound + _behind(setup, name, t))
        if math.isfinite(first) and first != 0:
            moves[name] = Shift(rate=Fraction(first))
    return moves


def _behind(setup: Capture, name: str, step: int) -> Fraction:
    """The largest power of n that the multipliers behind a parameter's uses have."""
    return max((use.factor for use in uses(setup, name, step)), default=Fraction(0))


def _growth(
    setup: Capture, sizes: Sizes, names: Sequence[str], random: Sequence[str]
) -> tuple[dict[str, Shift], frozenset[str]]:
    """What grows at the first step at which anything does: updates, or else initial values that pass changes on.

    Initial values are scaled down by n^(1/2) at most, what alignment adds to a random sum: the rest is what other
    parameters have done, and the next round shows it. Also the names of the parameters whose updates grow.
    """
    for step in range(setup.steps + 1):
        large = {n: e for n in names if (e := sizes["effect", n, step].exponent) is not None and e > 0}
        if large:
            return {n: Shift(rate=Fraction(e)) for n, e in large.items()}, frozenset(large)
        passed = {n: sizes["propagated" if step else "start", n, step].exponent for n in random}
        grown = {n: e for n, e in passed.items() if e is not None and e > 0}
        if grown:
            return {n: Shift(init=min(Fraction(e), HALF)) for n, e in grown.items()}, frozenset()
    return {}, frozenset()


def _small(
    setup: Capture, sizes: Sizes, late: Sequence[str], random: Sequence[str], unsure: Sequence[str]
) -> dict[str, Shift]:
    """What could be larger: initial values of activations that vanish, learning rates, initial values of readouts.

    Initial values by n^(1/2) a round, for the same reason; rates of parameters that move most later on. Those of
    ``unsure`` also where it is only known that they could be larger: by as much as is known.
    """
    steps = range(1, setup.steps + 1)
    vanishing: dict[str, float] = {}
    for n in random:  # an activation vanishes for its initial values, or for an input that does
        for use in grown_uses(setup, n):
            fed, made = sizes.by_use.get(("input", n, 0, use)), sizes.by_use.get(("start", n, 0, use), ZERO)
            whole = fed is None or (fed.exponent is not None and fed.exponent >= 0)
            if whole and made.exponent is not None and -math.inf < made.exponent < 0:
                vanishing[n] = min(vanishing.get(n, 0.0), float(made.exponent))
    if vanishing:
        return {n: Shift(init=max(Fraction(e), -HALF)) for n, e in vanishing.items()}
    effects = {n: tuple(sizes["effect", n, t] for t in steps) for n in late}
    rates = {n: largest_exponent(found) for n, found in effects.items()}
    moves = {n: Shift(rate=Fraction(e)) for n, e in rates.items() if e is not None and -math.inf < e < 0}
    if moves:
        return moves
    bounded = [n for n in unsure if n in effects and rates[n] is None and all(s.bound < 0 for s in effects[n])]
    known = {n: max((s.exponent for s in effects[n] if s.exponent is not None), default=-math.inf) for n in bounded}
    moves = {n: Shift(rate=Fraction(e)) for n, e in known.items() if e > -math.inf}
    if moves:
        return moves
    passes = {n: [sizes["start", n, 0], *(sizes["propagated", n, t] for t in steps)] for n in random}
    inits = {n: max(s.bound for s in p) for n, p in passes.items() if all(s.exact for s in p[:2])}
    return {n: Shift(init=max(Fraction(e), -HALF)) for n, e in inits.items() if -math.inf < e < 0}
