"""The verdict on a parametrization and its evidence: exponents of every value, and what to change."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tpcompile.errors import UndeterminedLimitError, UsageError
from tpcompile.parametrization.sizes import Exponent, Size

VERDICTS = ("maximal update", "feature learning", "kernel regime", "trivial", "unstable", "undecided")


@dataclass(frozen=True)
class ParameterReport:
    """Exponents of one parameter: every size below is ``Θ(n**exponent)``.

    ``gradient``, ``update``, ``effect`` and ``propagated`` have one entry a step; ``effect`` is what all updates so far
    do to the output of the operation that uses the parameter (0 at its maximum), ``propagated`` what its initial values
    make of the changes of that operation's input, ``start`` what they make at initialisation.
    """

    name: str
    init_exponent: Exponent | None
    lr_exponent: Fraction | None  # None: not trained
    gradient: tuple[Size, ...]
    update: tuple[Size, ...]
    effect: tuple[Size, ...]
    propagated: tuple[Size, ...]
    start: Size
    readout: bool  # its operation's output does not grow with the width
    used: bool = True  # whether the forward pass reads it

    @property
    def gradient_exponent(self) -> Exponent | None:
        """Of the first gradient that is not exactly zero."""
        return first_exponent(self.gradient)

    @property
    def effect_exponent(self) -> Exponent | None:
        """The largest effect over the traced steps; None if undecided."""
        return largest_exponent(self.effect)

    @property
    def maximal(self) -> bool:
        """True if its updates change its operation's output by Θ(1), as in the maximal update parametrization."""
        return self.effect_exponent == 0


def first_exponent(sizes: tuple[Size, ...]) -> Exponent | None:
    """The first that is not exactly zero; None if it is undecided."""
    for size in sizes:
        if size.exponent != -math.inf:
            return size.exponent
    return -math.inf


def largest_exponent(sizes: tuple[Size, ...]) -> Exponent | None:
    """The largest; None if one that could be larger is undecided."""
    known = [s.exponent for s in sizes if s.exponent is not None]
    top = max(known, default=-math.inf)
    return None if any(not s.exact and s.bound > top for s in sizes) else top


@dataclass(frozen=True)
class Report:
    """What :func:`tpcompile.verify` finds; ``print`` it for a table."""

    verdict: str
    stable: bool
    first_problem: str | None
    steps: int
    activations: tuple[str, ...]
    values: Mapping[tuple[str, int], Size]
    changes: Mapping[tuple[str, int], Size]
    gradients: Mapping[tuple[str, int], Size]
    parameters: Mapping[str, ParameterReport]
    notes: tuple[str, ...] = ()
    undecided: Mapping[str, str] = field(default_factory=dict)
    open_values: tuple[str, ...] = ()  # of which it is not decided whether they are below order one
    cases: Mapping[str, str] = field(default_factory=dict)  # where the verdict hangs on them: what it is in each case
    advice: tuple[str, ...] = ()  # what to change for maximal updates
    advised: str | None = None  # the verdict on the same setup with all of the advice applied
    takeover_width: float | None = None  # about where an epsilon takes over, beyond which the exponents hold
    verdict_below: str | None = None  # the verdict for smaller widths, where nothing but epsilons is in the way

    def size(self, name: str, step: int = 0) -> Size:
        """Size of an activation, "outputs" or "loss" before that step, or the bound that is known of it."""
        return self._find(self.values, name, step)

    def exponent(self, name: str, step: int = 0) -> Exponent:
        """Its exponent; -inf if it is exactly zero. Raises UndeterminedLimitError where it is not decided."""
        return self._decided(self.size(name, step), name, step)

    def change(self, name: str, step: int) -> Size:
        """Size of the change since initialisation."""
        return self._find(self.changes, name, step)

    def change_exponent(self, name: str, step: int) -> Exponent:
        """Its exponent; -inf if nothing changes. Raises UndeterminedLimitError where it is not decided."""
        return self._decided(self.change(name, step), name, step)

    def gradient_exponent(self, name: str, step: int = 0) -> Exponent:
        """Of the loss's gradient in an activation's coordinates."""
        return self._decided(self._find(self.gradients, name, step), name, step)

    def _find(self, where: Mapping[tuple[str, int], Size], name: str, step: int) -> Size:
        if (name, step) not in where:
            known = ", ".join(dict.fromkeys(n for n, _ in where))
            raise UsageError(f"there is no value '{name}' at step {step}", where="name", advice=f"there are {known}")
        return where[name, step]

    def _decided(self, size: Size, name: str, step: int) -> Exponent:
        if size.exponent is None:
            raise UndeterminedLimitError(
                f"the exponent of '{name}' at step {step} is not decided ({size})", where=name, advice=size.reason
            )
        return size.exponent

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain values; exponents as strings such as "-1/2", "-inf", "<= 0", "?"."""
        return {
            "verdict": self.verdict,
            "verdict_below": self.verdict_below,
            "takeover_width": self.takeover_width,
            "stable": self.stable,
            "first_problem": self.first_problem,
            "steps": self.steps,
            "values": _plain(self.values),
            "changes": _plain(self.changes),
            "gradients": _plain(self.gradients),
            "parameters": {
                name: {
                    "init": text(p.init_exponent),
                    "lr": text(p.lr_exponent),
                    "gradient": [plain(s) for s in p.gradient],
                    "update": [plain(s) for s in p.update],
                    "effect": [plain(s) for s in p.effect],
                    "propagated": [plain(s) for s in p.propagated],
                }
                for name, p in self.parameters.items()
            },
            "advice": list(self.advice),
            "advised": self.advised,
            "notes": list(self.notes),
            "undecided": dict(self.undecided),
            "open_values": list(self.open_values),
            "cases": dict(self.cases),
        }

    def __str__(self) -> str:
        from tpcompile.report.exponents import report_text

        return report_text(self)

    def to_html(self, path: Any) -> None:
        """Write the tables as one page."""
        from tpcompile.report.exponents import write_html

        write_html(self, path)


def plain(size: Size) -> str:
    """A size for machines."""
    return "-inf" if size.exponent == -math.inf else str(size)


def text(exponent: Exponent | None) -> str:
    """An exponent in a table."""
    return "-" if exponent is None else str(exponent)


def _plain(sizes: Mapping[tuple[str, int], Size]) -> dict[str, list[str]]:
    out: dict[str, list[str]] = {}
    for name, _ in sizes:
        out.setdefault(name, [plain(size) for (n, _), size in sizes.items() if n == name])
    return out
