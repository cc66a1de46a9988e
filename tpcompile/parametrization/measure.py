"""All exponents of a captured training run, from one lowering or several of growing depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tpcompile.capture.graph import Capture, Scaled
from tpcompile.errors import TpcompileError
from tpcompile.lowering.context import Context
from tpcompile.lowering.lower import Adjustment, Lowered, lower
from tpcompile.lowering.value import HALF, MatrixValue, Value, has_width
from tpcompile.parametrization.effects import difference, references, replayed, uses, zero_like
from tpcompile.parametrization.sizes import ZERO, Size, better, size_of

DEEPEST = 5 * HALF

Key = tuple[str, str, int]  # quantity, name, step


@dataclass(frozen=True)
class Shift:
    """Powers of n on top of the user's own: of a parameter's initial values and of its learning rate."""

    init: Fraction = Fraction(0)
    rate: Fraction = Fraction(0)


@dataclass(frozen=True)
class Sizes:
    """Exponents by quantity, name and step.

    Quantities: "value" and "change" (since initialisation) of activations, "outputs" and "loss"; "gradient" of
    activations and parameters; of parameters "update" (of one step), "effect" (of all updates so far on the output of
    the operation that uses it), "start" (what its initial values add to that output) and "propagated" (what the
    changes of the operation's input make of that through the initial values).
    """

    found: Mapping[Key, Size]
    finite: frozenset[str] = frozenset()  # activations and parameters' outputs that do not grow with the width
    undecided: Mapping[str, TpcompileError] = field(default_factory=dict)

    def __getitem__(self, key: Key) -> Size:
        return self.found.get(key, ZERO)


def measure(capture: Capture, shifts: Mapping[str, Shift] | None = None, deepest: Fraction = DEEPEST) -> Sizes:
    """Sizes of everything in a capture made with ``exponents=True``; deeper series where shallow ones cancel."""
    depth = HALF
    found: dict[Key, Size] = {}
    while True:
        lowered = lower(capture, depth, tolerant=True, adjust=_shifted(capture, shifts or {}))
        sizes, finite = _collect(capture, lowered)
        found = {key: better(sizes[key], found[key]) if key in found else sizes[key] for key in sizes}
        if depth >= deepest or all(s.exact or s.bound > DEEPEST for s in found.values()):
            return Sizes(found, finite, lowered.undecided)
        depth += HALF


def _shifted(capture: Capture, shifts: Mapping[str, Shift]) -> Adjustment | None:
    """Initial values and updates of parameters times powers of n, wherever they enter the graph."""
    if not shifts:
        return None
    nodes: dict[str, tuple[Shift, str | None]] = {}
    for name, shift in shifts.items():
        for t in range(capture.steps, -1, -1):
            before = capture.outputs[f"parameter/{name}/{t - 1}"].name if t else None
            nodes[capture.outputs[f"parameter/{name}/{t}"].name] = (shift, before)

    def adjust(context: Context, node: str, value: Any, values: Mapping[str, Any]) -> Any:
        if node not in nodes:
            return value
        shift, before = nodes[node]
        if before is None:
            return context.times(value, Scaled(1.0, shift.init))
        step = context.add(value, context.negate(values[before]))
        return context.add(values[before], context.times(step, Scaled(1.0, shift.rate)))

    return adjust


def _collect(capture: Capture, lowered: Lowered) -> tuple[dict[Key, Size], frozenset[str]]:
    found: dict[Key, Size] = {}
    finite: set[str] = set()
    reasons = _reasons(capture, lowered)

    def note(quantity: str, name: str, step: int, value: Any, source: str = "") -> None:
        if value is not None:
            found[quantity, name, step] = size_of(value, reasons.get(source, ""))

    for key, value in lowered.values.items():
        quantity, _, rest = key.partition("/")
        name, _, step = rest.rpartition("/")
        ref = capture.outputs[key].name
        if quantity in ("outputs", "loss"):
            name = quantity
        if quantity in ("outputs", "loss", "activation"):
            if not has_width(value.axes):
                finite.add(name)
            note("value", name, int(step), value, ref)
            start = lowered.values[f"{key.rpartition('/')[0]}/0"]
            if int(step):
                note("change", name, int(step), difference(lowered, value, start), ref)
        elif quantity == "gradient":
            note("gradient", name.removeprefix("activation/"), int(step), value, ref)
        elif quantity == "parameter" and int(step):
            before = lowered.values[f"parameter/{name}/{int(step) - 1}"]
            note("update", name, int(step), difference(lowered, value, before), ref)
    names = dict.fromkeys(k.split("/", 1)[1].rpartition("/")[0] for k in capture.outputs if k.startswith("parameter/"))
    for name in names:
        for key, size, small in _effects(capture, lowered, name):
            found[key] = max(found[key], size, key=_order) if key in found else size
            if small:
                finite.add(name)
    return found, frozenset(finite)


def _order(size: Size) -> tuple[float, bool]:
    return float(size.bound), size.exact


def _effects(capture: Capture, lowered: Lowered, name: str) -> list[tuple[Key, Size, bool]]:
    """Sizes of what a parameter does to the operations that use it, and whether their output is finite."""
    start = lowered.values[f"parameter/{name}/0"]
    out: list[tuple[Key, Size, bool]] = []
    first = uses(capture, lowered, name, 0, zero_like(start))
    for use in first:
        value = lowered.nodes[use.node.name]
        apart = difference(lowered, value, replayed(capture, lowered, use.node, use.shadows))
        if apart is not None:
            out.append((("start", name, 0), size_of(apart), not has_width(apart.axes)))
    for step in range(1, capture.steps + 1):
        for i, use in enumerate(uses(capture, lowered, name, step, start)):
            frozen = replayed(capture, lowered, use.node, use.shadows)
            effect = difference(lowered, lowered.nodes[use.node.name], frozen)
            if effect is None:
                continue
            out.append((("effect", name, step), size_of(effect), not has_width(effect.axes)))
            if i < len(first):
                bare = _without(capture, lowered, use.node, use.shadows, first[i].node.name, start, name, step)
                if bare is not None:
                    out.append((("propagated", name, step), size_of(bare), not has_width(bare.axes)))
    return out


def _without(
    capture: Capture, lowered: Lowered, node: Any, shadows: Mapping[str, Any], first: str, start: Any, name: str, t: int
) -> Value | MatrixValue | None:
    """``op(p_0, x_t) - op(p_0, x_0)``, less what other parameters of the operation add: its share through p_0."""
    frozen = replayed(capture, lowered, node, shadows)
    other = next(
        (u for u in uses(capture, lowered, name, t, zero_like(start)) if u.node.name == node.name), None
    )
    initial = next((u for u in uses(capture, lowered, name, 0, zero_like(start)) if u.node.name == first), None)
    if other is None or initial is None:
        return None
    now = difference(lowered, frozen, replayed(capture, lowered, node, other.shadows))
    then = difference(lowered, lowered.nodes[first], replayed(capture, lowered, initial.node, initial.shadows))
    return None if now is None or then is None else difference(lowered, now, then)


def _reasons(capture: Capture, lowered: Lowered) -> dict[str, str]:
    """Why nothing is known of a value: the first operation above it that could not be followed."""
    reasons: dict[str, str] = {}
    if not lowered.undecided:
        return reasons
    for node in capture.nodes:
        if node.name in lowered.undecided:
            reasons[node.name] = str(lowered.undecided[node.name])
            continue
        operands = [*references(node.args), *references(tuple(v for _, v in node.kwargs))]
        cause = next((reasons[x] for x in operands if x in reasons), None)
        if cause is not None:
            reasons[node.name] = cause
    return reasons
