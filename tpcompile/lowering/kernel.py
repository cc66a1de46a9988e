"""The program behind a kernel: leading terms of a model's output and of its first variation for one input."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from tpcompile.capture.graph import Capture
from tpcompile.errors import UndeterminedLimitError
from tpcompile.ir import Fluctuation, Node, Output, Program, finish, reachable
from tpcompile.lowering.lower import lower
from tpcompile.lowering.request import DEEPEST
from tpcompile.lowering.value import HALF, Value, flat

OUTPUT, VARIATION = "outputs/0", "variation/0"


@dataclass(frozen=True)
class KernelProgram:
    """Leading nodes of the output and its variation (where captured) with their powers of n; None is exactly zero."""

    program: Program
    output: Node | None
    output_exponent: Fraction
    variation: Node | None
    variation_exponent: Fraction


def compile_kernel(capture: Capture) -> KernelProgram:
    """Lower until the leading term of everything is known.

    Raises UndeterminedLimitError where no depth of series shows a leading term, or where it is the fluctuation of a
    moment.
    """
    wanted = [name for name in (OUTPUT, VARIATION) if name in capture.outputs]
    depth = HALF
    while True:
        lowered = lower(capture, depth, kernel=True)
        values = {name: lowered.values[name] for name in wanted}
        unknown = [name for name, v in values.items() if isinstance(v, Value) and not v.terms and not v.is_zero]
        if not unknown:
            break
        depth += HALF
        if depth > DEEPEST:
            raise UndeterminedLimitError(
                f"no leading term of the {unknown[0].split('/')[0]} among {DEEPEST / HALF} half-orders of n",
                where=unknown[0],
            )
    leading: dict[str, tuple[Fraction, Node | None]] = {}
    outputs: dict[str, Output] = {}
    for name, value in values.items():
        if not isinstance(value, Value):
            raise UndeterminedLimitError("the model's output is a matrix of two growing axes", where=name)
        exponent, node = value.terms[0] if value.terms else (Fraction(0), None)
        if node is not None:
            _check(name, node)
            outputs[name] = Output(((exponent, node),), value.remainder, flat(value.axes))
        leading[name] = (exponent, node)
    program = finish(lowered.context.algebra.builder, outputs)
    moved = leading.get(VARIATION, (Fraction(0), None))
    return KernelProgram(program, leading[OUTPUT][1], leading[OUTPUT][0], moved[1], moved[0])


def _check(name: str, node: Node) -> None:
    if any(isinstance(x.op, Fluctuation) for x in reachable([node])):
        raise UndeterminedLimitError(
            f"the {name.split('/')[0]} of leading order contains the fluctuation of a moment: it has no kernel",
            where=name,
            advice="a readout of mean zero makes the output a Gaussian sum",
        )
