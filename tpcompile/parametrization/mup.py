"""``tp.mup``: the maximal update parametrization of a model and its optimizer, solved from the traced program."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from tpcompile.capture import Capture
from tpcompile.collector import put_off
from tpcompile.errors import UndeterminedLimitError, UsageError
from tpcompile.laws import Law
from tpcompile.parametrization.advice import factor_lines
from tpcompile.parametrization.changes import Change, Run, scale_parameters
from tpcompile.parametrization.factors import Factor, Solution, solution
from tpcompile.parametrization.measure import Measurement, parameter_names
from tpcompile.parametrization.multipliers import multiply
from tpcompile.parametrization.report import Report


@dataclass(frozen=True)
class Rule:
    """How one parameter scales with the width in the maximal update parametrization.

    ``init_exponent`` is of the standard deviation of its entries (None: it starts at exactly zero and stays so),
    ``lr_exponent`` of its learning rate (None: not trained), ``multiplier_exponent`` of a factor in front of it, where
    several operations use it the largest (``own.multipliers`` has one for each).
    ``gradient_exponent`` is that of its gradient's entries, ``epsilon_exponent`` that of what an epsilon is added to:
    mostly the root of their squares, which scales alike.
    """

    name: str
    init_exponent: Fraction | None
    lr_exponent: Fraction | None
    multiplier_exponent: Fraction
    gradient_exponent: Fraction | None
    epsilon_exponent: Fraction | None
    own: Change  # what was changed against the user's own setup

    @property
    def decay_exponent(self) -> Fraction | None:
        """Of a weight decay that is multiplied by the learning rate: their product stays."""
        return None if self.lr_exponent is None else -self.lr_exponent


@dataclass(frozen=True)
class Rules(Mapping[str, Rule]):
    """Rules by parameter, the report of the setup that follows them, and factors that its products lack."""

    rules: Mapping[str, Rule]
    report: Report
    sizes: Mapping[str, tuple[tuple[Fraction, int], ...]]  # of every parameter's axes: coefficient, power of the width
    factors: tuple[Factor, ...] = ()
    """What products of two activations lack in the model's code (attention: 1/d for 1/sqrt(d)); the rules are those of
    the model that has it."""

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

        ``eps`` is scaled as what it is added to, ``weight_decay`` so that its product with the learning rate stays.
        """
        ratio = self._ratio(model, base_width)
        groups: dict[tuple[Any, ...], dict[str, Any]] = {}
        for name, p in model.named_parameters():
            rule = self[name]
            if rule.lr_exponent is None or not p.requires_grad:
                continue
            group: dict[str, Any] = {"lr": lr * ratio ** float(rule.lr_exponent)}
            if eps is not None:
                group["eps"] = eps * ratio ** float(rule.epsilon_exponent or 0)
            if weight_decay is not None:
                group["weight_decay"] = weight_decay * ratio ** float(-rule.lr_exponent)
            key = (rule.lr_exponent, rule.epsilon_exponent if eps is not None else None)
            groups.setdefault(key, {"params": [], **group})["params"].append(p)
        return list(groups.values())

    def apply_init_(self, model: nn.Module, base_width: float) -> nn.Module:
        """Rescale the model's initial values in place; a model of the base width stays as it is."""
        scale_parameters(model, {name: rule.own.init for name, rule in self.items()}, self._ratio(model, base_width))
        return model

    def apply_multipliers_(self, model: nn.Module, base_width: float) -> nn.Module:
        """Put the rules' multipliers in front of parameters in the model's forward; without any it stays as it is."""
        multiply(model, {name: rule.own.multipliers for name, rule in self.items()}, self._ratio(model, base_width))
        return model

    def _ratio(self, model: nn.Module, base_width: float) -> float:
        if not base_width > 0:
            raise UsageError(f"the base width must be positive, got {base_width!r}", where="base_width")
        return self.width(model) / base_width

    def to_dict(self) -> dict[str, dict[str, Any]]:
        """Exponents as strings, by parameter."""
        return {
            name: {
                "init": None if r.init_exponent is None else str(r.init_exponent),
                "lr": None if r.lr_exponent is None else str(r.lr_exponent),
                "multiplier": str(r.multiplier_exponent),
                "multipliers": [str(e) for e in r.own.multipliers],
                "gradient": None if r.gradient_exponent is None else str(r.gradient_exponent),
                "epsilon": None if r.epsilon_exponent is None else str(r.epsilon_exponent),
                "weight_decay": None if r.decay_exponent is None else str(r.decay_exponent),
            }
            for name, r in self.rules.items()
        }

    def to_json(self, path: str | Path) -> None:
        """Write the rules."""
        Path(path).write_text(json.dumps(self.to_dict(), indent=1) + "\n")

    def __str__(self) -> str:
        return self.table()

    def table(self, form: str = "text") -> str:
        """One line for each parameter, as "text", or for a paper as "markdown" or "latex"."""
        from tpcompile.report.rules import rules_table

        return rules_table(self, form)


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
    multipliers: Mapping[str, Fraction | int | float] | None = None,
) -> Rules:
    """The maximal update parametrization of a model and optimizer: exponents of initial values and learning rates.

    ``multipliers`` are exponents of factors in front of parameters that are to be there, another representative of the
    abc symmetry. Solves, over exact fractions, for the exponents at which every parameter's update changes the output
    of the operation that uses it by Θ(1), and initial values are as large as stability allows. Multipliers are needed
    only where one parameter stands in operations that ask for different scales. The sizes are piecewise linear in the
    exponents; each round solves the linear pieces at hand and traces them again (Definition 5.1 and Theorem 5.6 of
    Tensor Programs IV, 2011.14522; Tensor Programs V, 2203.03466). Arguments as of :func:`tpcompile.verify`.
    Products of two activations that grow whatever the parameters' scales (attention logits with 1/sqrt(d)) need a
    factor in the model's code: ``rules.factors`` has it and its line, and a warning says so.
    Raises UndeterminedLimitError if no stable point is reached, or where a mean may be zero by its number.
    """
    run = Run(make, inputs, targets, loss, optimizer, steps, init, widths)
    with put_off():
        return _solved(run, multipliers or {})


def _solved(run: Run, multipliers: Mapping[str, Fraction | int | float]) -> Rules:
    setup = run.capture()
    given = {name: (Fraction(e),) for name, e in multipliers.items()}
    unknown = sorted(set(given) - set(parameter_names(setup)))
    if unknown:
        raise UsageError(f"there is no parameter '{unknown[0]}'", where="multipliers")
    found = solution(run, Measurement(setup, generic=True), given)
    report = found.report
    if found.measured.doubts.met:
        raise UndeterminedLimitError(
            next(iter(found.measured.doubts.met.values())),
            where="mup",
            advice="which rules are right depends on it: tp.verify(...) reports both cases; write the mean as one that "
            "vanishes by signs, or subtract what is measured in place of a number",
        )
    if not report.stable:
        raise UndeterminedLimitError(
            f"no learning rates and initial values were found that make training stable: {report.first_problem}",
            where="mup",
            advice="a value that grows whatever the parameters' scales needs a multiplier of its own in the model; "
            "print tp.verify(...) for all sizes",
        )
    for line in factor_lines(found.factors):
        warnings.warn(f"{line}; the rules are those of the model that has it", stacklevel=3)
    return _rules(setup, found)


def _rules(setup: Capture, found: Solution) -> Rules:
    changes, report = found.changes, found.report
    rules = {}
    for name, p in report.parameters.items():
        start = p.init_exponent
        gradient = p.gradient_exponent if p.gradient else None
        gradient = gradient if isinstance(gradient, Fraction) else None
        rules[name] = Rule(
            name=name,
            init_exponent=start if isinstance(start, Fraction) else None,
            lr_exponent=p.lr_exponent,
            multiplier_exponent=max(changes.get(name, Change()).multipliers, key=abs, default=Fraction(0)),
            gradient_exponent=gradient,
            epsilon_exponent=found.sizes.beside_epsilon.get(name, gradient),
            own=changes.get(name, Change()),
        )
    shapes = {
        str(node.target): tuple((s.coefficient, s.power) for s in node.shape or ())
        for node in setup.nodes
        if node.kind == "parameter"
    }
    return Rules(rules, report, shapes, found.factors)
