"""Means that are zero within the error of their evaluation: not decided, so that both cases are followed.

A constant in a model can centre a mean by its number (a relu less ``1 / sqrt(2 pi)``), which no structure shows. Such a
mean is evaluated on particles: if it is not zero within its error it certainly is not; otherwise it is in doubt.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction

from torch import Tensor

from tpcompile.errors import TpcompileError
from tpcompile.evaluate.limit import Settings, estimate
from tpcompile.ir import (
    Builder,
    Const,
    Contract,
    Data,
    Expand,
    Fluctuation,
    Gaussian,
    Mul,
    Node,
    Output,
    Permute,
    Sum,
    View,
    finish,
    reachable,
)
from tpcompile.parametrization.report import ParameterReport, Report
from tpcompile.parametrization.sizes import Size

_SETTINGS = Settings(replicas=6, evaluator="particles")
_PARTICLES = (2048, 4096)
_ENSEMBLES = (2, None)  # members where outputs are random: most means show with a pair of them that they are not zero
_MARGIN = 8.0  # standard errors; they are of few replicas
_ROUNDING = 1e-12
_FORWARD = ("module ", "the model's own forward")  # as places begin
_MOST_NODES = 150  # of the program that a mean is evaluated by; larger ones are of training steps, where numbers differ


@dataclass
class Doubts:
    """Evaluates means from which a number is subtracted; those in doubt count as zero if ``zero``."""

    zero: bool = False
    met: dict[Node, str] = field(default_factory=dict)  # the means in doubt: where they are taken, and what they are
    _known: dict[Node, bool] = field(default_factory=dict)

    def __call__(self, builder: Builder, place: str, moment: Node) -> bool:
        """Whether a mean over the width is assumed to be zero."""
        if moment not in self._known:
            self._known[moment] = self._doubtful(builder, place, moment)
        return self.zero and self._known[moment]

    def _doubtful(self, builder: Builder, place: str, moment: Node) -> bool:
        assert isinstance(moment.op, Contract)
        numbers = [_subtracted(x, builder) for x in moment.operands]
        if not any(numbers):
            return False
        needed = reachable([moment])
        if len(needed) > _MOST_NODES or any(isinstance(x.op, Gaussian | Fluctuation) for x in needed):
            return False
        program = finish(builder, {"mean": Output(((Fraction(0), moment),), None, moment.dims)})
        for ensemble in _ENSEMBLES:
            settings = replace(_SETTINGS, ensemble=ensemble)
            try:
                found = [estimate(program, replace(settings, particles=count)) for count in _PARTICLES]
            except TpcompileError:
                return False
            few, mean = (x.mean["mean"] for x in found)
            error = found[-1].stderr["mean"]
            # what depends on the number of particles besides is of order one over it: half of that with fewer
            margin = _MARGIN * error + 2 * (few - mean).abs() + _ROUNDING * max(numbers)
            if bool((mean.abs() > margin).any()):
                return False
        size = f"{float(mean.abs().max()):.1e} ± {float(error.max()):.0e}"
        self.met[moment] = f"a mean in {place}, of a value less a number, is {size}: zero or too small to tell"
        return True


def _subtracted(node: Node, builder: Builder) -> float:
    """The size of a number that is a summand of a value in a forward pass; 0 if there is none.

    Those of derivatives and of updates are no choice of anybody's that centres anything.
    """
    op = node.op
    if isinstance(op, View | Permute | Expand):
        return _subtracted(node.operands[0], builder)
    if isinstance(op, Mul):
        return max(_subtracted(x, builder) for x in node.operands)
    if node.kind != "vector" or not isinstance(op, Sum) or not builder.origins.get(node, "").startswith(_FORWARD):
        return 0.0
    return max(abs(c) * _number(x, builder.data) for c, x in zip(op.coefficients, node.operands, strict=True))


def _number(node: Node, data: Mapping[str, Tensor]) -> float:
    while isinstance(node.op, Expand | View):
        (node,) = node.operands
    if isinstance(node.op, Data):
        return float(data[node.op.name].abs().max())
    return abs(node.op.value) if isinstance(node.op, Const) else 0.0


def both(report: Report, other: Report, doubts: Doubts) -> Report:
    """One report of both cases: where the means in doubt are not zero, and where they are."""
    reason = next(iter(doubts.met.values()))
    same = report.verdict == other.verdict
    verdicts = {"if that mean is not zero": report.verdict, "if it is zero": other.verdict}

    def joined(a: Size, b: Size) -> Size:
        if a == b:
            return a
        either = None if a.exponent is None or b.exponent is None else (a.exponent, b.exponent)
        return Size(None, max(a.bound, b.bound), reason, either)

    def table(a: Mapping[tuple[str, int], Size], b: Mapping[tuple[str, int], Size]) -> dict[tuple[str, int], Size]:
        return {key: joined(size, b.get(key, size)) for key, size in a.items()}

    def parameter(a: ParameterReport, b: ParameterReport) -> ParameterReport:
        lists = {
            name: tuple(map(joined, getattr(a, name), getattr(b, name)))
            for name in ("gradient", "update", "effect", "propagated")
        }
        return replace(a, start=joined(a.start, b.start), **lists)

    return replace(
        report,
        verdict=report.verdict if same else "undecided",
        stable=report.stable and other.stable,
        first_problem=report.first_problem if same else reason,
        values=table(report.values, other.values),
        changes=table(report.changes, other.changes),
        gradients=table(report.gradients, other.gradients),
        parameters={name: parameter(p, other.parameters[name]) for name, p in report.parameters.items()},
        notes=tuple(dict.fromkeys((*report.notes, *other.notes))),
        open_values=(*doubts.met.values(), *dict.fromkeys((*report.open_values, *other.open_values))),
        cases=report.cases if same else verdicts,
    )
