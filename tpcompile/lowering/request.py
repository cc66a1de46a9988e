"""From a capture to the program of what the user asks for, with as many orders as the question needs.

How deep series must be kept is decided backwards: lower, look whether every requested limit is known,
and lower again with more terms if not (theory, section 3).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from tpcompile.capture.graph import Capture, Scaled
from tpcompile.errors import UndeterminedLimitError, UnstableError
from tpcompile.ir import Fluctuation, Output, Program, finish, reachable
from tpcompile.lowering.context import Context
from tpcompile.lowering.lower import Lowered, lower
from tpcompile.lowering.settled import settled
from tpcompile.lowering.value import HALF, AnyValue, Value, has_width, largest

DEEPEST = Fraction(4)
_PER_WIDTH = Scaled(1.0, Fraction(-1))
_FLUCTUATION = "a fluctuation of relative size n^(-1/2) is multiplied by a power of n that undoes it"


@dataclass(frozen=True)
class Compilation:
    """The program of a capture, the depth of series that it took, and the activations that have a limit.

    ``growing`` names activations whose coordinates are not Θ(1), with their exponent at the worst step:
    they have no limiting kernel.
    """

    program: Program
    depth: Fraction
    activations: tuple[str, ...]
    growing: Mapping[str, Fraction]


def compile_capture(capture: Capture, only: tuple[str, ...] = ()) -> Compilation:
    """The program of all requested limits of a capture.

    Outputs: ``outputs/<t>``, ``test_outputs/<t>``, ``loss/<t>``, ``kernel/<name>/<t>/<blocks>`` with blocks
    ``xx``, ``xz``, ``zz`` (x inputs, z test inputs), ``change/<name>/<t>/<x or z>``, ``ntk/<parameter>/<t>``
    and their sum ``tangent/<t>``;
    ``only`` keeps those whose first part it names.
    Raises UnstableError where the parametrization blows up, UndeterminedLimitError where no depth of
    series decides a limit.
    """
    depth = HALF
    while True:
        lowered = lower(capture, depth)
        outputs, growing = requests(capture, lowered)
        if only:
            outputs = {name: out for name, out in outputs.items() if name.split("/")[0] in only}
        unknown = [name for name, out in outputs.items() if out.remainder is not None and out.remainder >= 0]
        if not unknown:
            outputs = {name: _settled(lowered.context, name, out) for name, out in outputs.items()}
            names = tuple(a for a in capture.activations if f"kernel/{a}/0/xx" in outputs)
            return Compilation(finish(lowered.context.algebra.builder, outputs), depth, names, growing)
        depth += HALF
        if depth > DEEPEST:
            raise UndeterminedLimitError(
                f"the limit of {unknown[0]} is not determined by the {DEEPEST / HALF} kept half-orders of n",
                where=unknown[0],
                advice=_FLUCTUATION,
            )


def split_name(name: str) -> tuple[str, int]:
    """The name of an output as that of the quantity, with ``*`` for the step, and the step."""
    behind = 2 if name.startswith(("kernel/", "change/")) else 1
    before, step, *after = name.rsplit("/", behind)
    return "/".join([before, "*", *after]), int(step)


def name_at(quantity: str, step: int) -> str:
    """Inverse of :func:`split_name`."""
    head, _, tail = quantity.rpartition("*")
    return f"{head}{step}{tail}"


def _settled(context: Context, name: str, out: Output) -> Output:
    """The output with a limit that no fluctuation enters; UndeterminedLimitError where one does."""
    if out.limit is None:
        return out
    limit = settled(context.algebra.nodes, context.algebra.parity, out.limit)
    if any(isinstance(x.op, Fluctuation) for x in reachable([limit])):
        raise UndeterminedLimitError(
            f"the limit of {name} is random: it contains the fluctuation of a moment",
            where=name,
            advice=_FLUCTUATION,
        )
    return replace(out, terms=tuple((e, limit if e == 0 else node) for e, node in out.terms))


def requests(capture: Capture, lowered: Lowered) -> tuple[dict[str, Output], dict[str, Fraction]]:
    """The outputs of a lowering as series, derived ones (kernels, changes, tangent kernels) included."""
    context = lowered.context
    values = lowered.values
    out: dict[str, Output] = {}
    for name, value in values.items():
        if name.startswith(("outputs/", "test_outputs/", "loss/")):
            assert isinstance(value, Value)
            out[name] = _output(value)
    growing: dict[str, Fraction] = {}
    for name in capture.activations:
        if not has_width(values[f"activation/{name}/0"].axes):
            continue  # a tapped scalar has no feature kernel
        sizes = [e for t in range(capture.steps + 1) if (e := _size(values[f"activation/{name}/{t}"])) and e > 0]
        if sizes:
            growing[name] = max(sizes)
        else:
            out |= _features(context, values, name, capture.steps)
    return out | _tangent(context, capture, values), growing


def _tangent(context: Context, capture: Capture, values: Mapping[str, AnyValue]) -> dict[str, Output]:
    """Every parameter's share of the tangent kernel at every step, and their sum."""
    out: dict[str, Output] = {}
    totals: dict[str, Value] = {}
    for name, value in values.items():
        if not name.startswith("jacobian/"):
            continue
        parameter, _, step = name.removeprefix("jacobian/").rpartition("/")
        context.algebra.builder.origin = f"the tangent kernel of '{parameter}', step {step}"
        share = context.times(_gram(context, value, value, keep=2), capture.learning_rates[parameter])
        assert isinstance(share, Value)
        if share.terms and share.terms[0][0] > 0:
            exponent = share.terms[0][0]
            raise UnstableError(
                f"the tangent kernel's share of '{parameter}' grows like n^{exponent}",
                value=parameter,
                step=int(step),
                exponent=exponent,
                advice="give the optimizer: its learning rates scale the tangent kernel",
            )
        out[f"ntk/{parameter}/{step}"] = _output(share)
        totals[step] = context.algebra.add((1.0, totals[step]), (1.0, share)) if step in totals else share
    return out | {f"tangent/{step}": _output(total) for step, total in totals.items()}


def _size(value: AnyValue) -> Fraction | None:
    return value.terms[0][0] if isinstance(value, Value) and value.terms else None


def _output(value: Value) -> Output:
    """The terms of exponent 0 and above: what vanishes is not kept."""
    kept = tuple((e, node) for e, node in value.terms if e >= 0)
    below = [e for e, _ in value.terms if e < 0]
    shape = tuple(d for axis in value.axes for d in (axis or (1,)))
    return Output(kept, largest(value.remainder, *below), shape)


def _features(context: Context, values: Mapping[str, AnyValue], name: str, steps: int) -> dict[str, Output]:
    out: dict[str, Output] = {}
    for t in range(steps + 1):
        context.algebra.builder.origin = f"the kernel of '{name}', step {t}"
        sets = {"x": values[f"activation/{name}/{t}"]}
        start = {"x": values[f"activation/{name}/0"]}
        if f"test_activation/{name}/{t}" in values:
            sets["z"] = values[f"test_activation/{name}/{t}"]
            start["z"] = values[f"test_activation/{name}/0"]
        for a in sets:
            for b in sets:
                if a <= b:
                    out[f"kernel/{name}/{t}/{a}{b}"] = _output(_moment(context, sets[a], sets[b]))
            moved = context.add(sets[a], context.negate(start[a]))
            assert isinstance(moved, Value)
            out[f"change/{name}/{t}/{a}"] = _output(_squares(context, moved))
    return out


def _moment(context: Context, a: AnyValue, b: AnyValue) -> Value:
    gram = context.times(_gram(context, a, b, keep=1), _PER_WIDTH)
    assert isinstance(gram, Value)
    return gram


def _gram(context: Context, a: AnyValue, b: AnyValue, keep: int) -> AnyValue:
    """Inner products of all pairs over all axes but the first ``keep``."""
    rank = len(a.axes)
    letters = "abcdefghijklmnopqrstuvwxyz"
    shared = letters[2 * keep : 2 * keep + rank - keep]
    first, second = letters[:keep], letters[keep : 2 * keep]
    return context.einsum(a, first + shared, b, second + shared, first + second)


def _squares(context: Context, x: Value) -> Value:
    """Squared norm of every row over n."""
    letters = "abcdefghijklmnopqrstuvwxyz"[: len(x.axes)]
    total = context.times(context.einsum(x, letters, x, letters, letters[0]), _PER_WIDTH)
    assert isinstance(total, Value)
    return total
