"""``tp.mup``: the maximal update parametrization of a model and its optimizer, solved from the traced program."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpcompile.capture import Capture
from tpcompile.errors import UndeterminedLimitError, UsageError
from tpcompile.laws import Law
from tpcompile.lowering.value import HALF
from tpcompile.parametrization.measure import Shift, Sizes, measure
from tpcompile.parametrization.report import Report, largest_exponent
from tpcompile.parametrization.verify import captured, init_exponent, make_report, parameter_names

_MOST_ROUNDS = 40


@dataclass(frozen=True)
class Rule:
    """How one parameter scales with the width in the maximal update parametrization.

    ``init_exponent`` is of the standard deviation of its entries (None: it starts at exactly zero and stays so),
    ``lr_exponent`` of its learning rate (None: not trained), ``multiplier_exponent`` of a factor in front of it.
    ``gradient_exponent`` is that of its gradient's entries: an epsilon beside the root of their squares scales alike.
    """

    name: str
    init_exponent: Fraction | None
    lr_exponent: Fraction | None
    multiplier_exponent: Fraction
    gradient_exponent: Fraction | None
    own: Shift  # what was changed against the user's own setup


@dataclass(frozen=True)
class Rules(Mapping[str, Rule]):
    """Rules by parameter, and the report of the setup that follows them."""

    rules: Mapping[str, Rule]
    report: Report
    sizes: Mapping[str, tuple[tuple[Fraction, int], ...]]  # of every parameter's axes: coefficient, power of the width

    def __getitem__(self, name: str) -> Rule:
        if name not in self.rules:
            raise UsageError(
                f"there is no parameter '{name}'", where="rules", advice=f"there are {', '.join(self.rules)}"
            )
        return self.rules[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.rules)

    def __len__(self) -> int:
        return len(self.rules)

    def width(self, model: nn.Module) -> float:
        """The width of a model that the factory has made, from the shapes of its parameters."""
        for name, p in model.named_parameters():
            for length, (coefficient, power) in zip(p.shape, self.sizes.get(name, ()), strict=False):
                if power == 1:
                    return length / float(coefficient)
        raise UsageError("no parameter of this model grows with the width", where="model")

    def param_groups(
        self,
        model: nn.Module,
        lr: float,
        base_width: float,
        eps: float | None = None,
        weight_decay: float | None = None,
    ) -> list[dict[str, Any]]:
        """Groups for ``torch.optim``: ``lr`` is the learning rate at ``base_width``, scaled for this model's width.

        ``eps`` is scaled as the gradients are, ``weight_decay`` so that its product with the learning rate stays.
        """
        ratio = self._ratio(model, base_width)
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for name, p in model.named_parameters():
            rule = self[name]
            if rule.lr_exponent is None or not p.requires_grad:
                continue
            group: dict[str, Any] = {"lr": lr * ratio ** float(rule.lr_exponent)}
            if eps is not None:
                group["eps"] = eps * ratio ** float(rule.gradient_exponent or 0)
            if weight_decay is not None:
                group["weight_decay"] = weight_decay * ratio ** float(-rule.lr_exponent)
            key = (rule.lr_exponent, rule.gradient_exponent if eps is not None else None)
            groups.setdefault(key, {"params": [], **group})["params"].append(p)
        return list(groups.values())

    def apply_init_(self, model: nn.Module, base_width: float) -> nn.Module:
        """Rescale the model's initial values in place; a model of the base width stays as it is."""
        ratio = self._ratio(model, base_width)
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.mul_(ratio ** float(self[name].own.init))
        return model

    def _ratio(self, model: nn.Module, base_width: float) -> float:
        if not base_width > 0:
            raise UsageError(f"the base width must be positive, got {base_width!r}", where="base_width")
        return self.width(model) / base_width

    def to_dict(self) -> dict[str, dict[str, str | None]]:
        """Exponents as strings, by parameter."""
        return {
            name: {
                "init": None if r.init_exponent is None else str(r.init_exponent),
                "lr": None if r.lr_exponent is None else str(r.lr_exponent),
                "multiplier": str(r.multiplier_exponent),
                "gradient": None if r.gradient_exponent is None else str(r.gradient_exponent),
            }
            for name, r in self.rules.items()
        }

    def to_json(self, path: str | Path) -> None:
        """Write the rules."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    def __str__(self) -> str:
        from tpcompile.report.exponents import rules_text

        return rules_text(self)


def mup(
    make: Callable[[int], Any],
    inputs: Tensor | Sequence[Tensor],
    targets: Tensor | Sequence[Tensor] | None = None,
    loss: Callable[..., Tensor] | None = None,
    optimizer: Callable[..., Any] | None = None,
    steps: int = 2,
    *,
    init: Mapping[str, Law] | None = None,
    widths: Sequence[int] | None = None,
) -> Rules:
    """The maximal update parametrization of a model and optimizer: exponents of initial values and learning rates.

    Solves, over exact fractions, for the exponents at which every parameter's update changes the output of the
    operation that uses it by Θ(1), and initial values are as large as stability allows: no multipliers are needed
    unless one parameter stands in two operations that ask for different scales. The sizes are piecewise linear in the
    exponents; each round solves the linear pieces at hand and traces them again (Definition 5.1 and Theorem 5.6 of
    Tensor Programs IV, 2011.14522; Tensor Programs V, 2203.03466). Arguments as of :func:`tpcompile.verify`.
    Raises UndeterminedLimitError if no stable point is reached.
    """
    setup = captured(make, inputs, targets, loss, optimizer, steps, init=init, widths=widths)
    return solve(setup)


def solve(setup: Capture) -> Rules:
    """The rules of a captured setup: moves of single exponents, each traced again, until nothing is left to move."""
    names = [name for name in parameter_names(setup) if f"parameter/{name}/1" in setup.outputs]
    shifts = {name: Shift() for name in names}
    late: frozenset[str] = frozenset()  # parameters whose effect is larger at a later step than at the first
    moves: dict[str, Shift] = {}
    for _ in range(_MOST_ROUNDS):
        sizes = measure(setup, shifts, deepest=2 * HALF)
        random = [name for name in names if init_exponent(setup, name) != -math.inf]
        moves = _first_effects(setup, sizes, [name for name in names if name not in late])
        if not moves:
            moves, grown = _growth(setup, sizes, names, random)
            late |= grown
        moves = moves or _small(setup, sizes, sorted(late), random)
        if not moves:
            return _rules(setup, shifts)
        shifts = {
            n: Shift(s.init - m.init, s.rate - m.rate) for n, s in shifts.items() for m in (moves.get(n, Shift()),)
        }
    raise UndeterminedLimitError(
        f"no maximal update parametrization found in {_MOST_ROUNDS} rounds",
        where=", ".join(list(moves)[:3]),
        advice="print tp.verify(...) to see which value is undecided or grows whatever the parameters' scales",
    )


def _first_effects(setup: Capture, sizes: Sizes, names: Sequence[str]) -> dict[str, Shift]:
    """Learning rates at which the first effect is Θ(1); where only a bound is known, at which it is O(1)."""
    moves = {}
    for name in names:
        effects = (sizes["effect", name, t] for t in range(1, setup.steps + 1))
        first = next((s.bound for s in effects if s.exponent != -math.inf), -math.inf)
        if math.isfinite(first) and first != 0:
            moves[name] = Shift(rate=Fraction(first))
    return moves


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


def _small(setup: Capture, sizes: Sizes, late: Sequence[str], random: Sequence[str]) -> dict[str, Shift]:
    """Initial values and, of the parameters that move most later on, learning rates that could be larger."""
    steps = range(1, setup.steps + 1)
    passes = {n: [sizes["start", n, 0], *(sizes["propagated", n, t] for t in steps)] for n in random}
    inits = {n: max(s.bound for s in p) for n, p in passes.items() if all(s.exact for s in p[:2])}
    moves = {n: Shift(init=Fraction(e)) for n, e in inits.items() if -math.inf < e < 0}
    if moves:
        return moves
    rates = {n: largest_exponent(tuple(sizes["effect", n, t] for t in steps)) for n in late}
    return {n: Shift(rate=Fraction(e)) for n, e in rates.items() if e is not None and -math.inf < e < 0}


def _rules(setup: Capture, shifts: Mapping[str, Shift]) -> Rules:
    report = make_report(setup, measure(setup, shifts), shifts)
    rules = {}
    for name, p in report.parameters.items():
        start = p.init_exponent
        gradient = p.gradient_exponent if p.gradient else None
        rules[name] = Rule(
            name=name,
            init_exponent=start if isinstance(start, Fraction) else None,
            lr_exponent=p.lr_exponent,
            multiplier_exponent=Fraction(0),
            gradient_exponent=gradient if isinstance(gradient, Fraction) else None,
            own=shifts.get(name, Shift()),
        )
    shapes = {
        str(node.target): tuple((s.coefficient, s.power) for s in node.shape or ())
        for node in setup.nodes
        if node.kind == "parameter"
    }
    return Rules(rules, report, shapes)
