"""All exponents of a captured training run, from one lowering or several of growing depth."""

from __future__ import annotations

import math
from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from tpcompile.capture.graph import Capture, GraphNode, Ref, Scaled
from tpcompile.errors import TpcompileError
from tpcompile.laws import Constant
from tpcompile.lowering.context import Context
from tpcompile.lowering.lower import Adjustment, Lowered, interpret, lower
from tpcompile.lowering.value import HALF, AnyValue, has_width
from tpcompile.parametrization.doubts import Doubts
from tpcompile.parametrization.effects import (
    adjoints,
    difference,
    factor_behind,
    first_result,
    parameter_node,
    products,
    share,
    uses,
    zero_like,
)
from tpcompile.parametrization.sizes import ZERO, Exponent, Size, better, scaled, size_of
from tpcompile.parametrization.takeover import Takeover, beside_epsilon, takeovers

DEEPEST = 5 * HALF
_ADDING = frozenset(f"aten.{name}" for name in ("add.Tensor", "sub.Tensor", "addcdiv.default", "addcmul.default"))
_STRIDE, _FURTHEST = 3 * HALF, 23 * HALF

Key = tuple[str, str, int]  # quantity, name, step
UseKey = tuple[str, str, int, int]  # quantity, name, step, which of the operations that use it


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
    the operation that uses it), "start" (what its initial values add to that output), "input" (what they are
    multiplied with), "product" of the i-th product of two activations, behind the multipliers that follow it, and
    "propagated" (what the changes of that input make of the output through the initial values).
    """

    found: Mapping[Key, Size]
    finite: frozenset[str] = frozenset()  # activations and parameters' outputs that do not grow with the width
    undecided: Mapping[str, TpcompileError] = field(default_factory=dict)
    takeovers: tuple[Takeover, ...] = ()  # numbers of updates that outgrow what they are added to
    beside_epsilon: Mapping[str, Fraction] = field(default_factory=dict)  # what epsilons are added to, by parameter
    by_use: Mapping[UseKey, Size] = field(default_factory=dict)  # of parameters, for each operation that uses them
    behind: Mapping[str, Fraction] = field(default_factory=dict)  # powers of n that what reads an activation adds
    products: tuple[str, ...] = ()  # where the products of two activations stand

    def __getitem__(self, key: Key) -> Size:
        return self.found.get(key, ZERO)

    def own(self, quantity: str, name: str, step: int) -> Size:
        """The size of an activation itself."""
        return self[quantity, name, step]

    def used(self, quantity: str, name: str, step: int) -> Size:
        """The size of an activation behind the multipliers that follow it: as the next operation has it."""
        return scaled(self[quantity, name, step], self.behind.get(name, Fraction(0)))


def parameter_names(capture: Capture) -> tuple[str, ...]:
    """Parameters in the order of the model."""
    return tuple(dict.fromkeys(str(node.target) for node in capture.nodes if node.kind == "parameter"))


def trained(capture: Capture, name: str) -> bool:
    """True if the optimizer updates it."""
    return f"parameter/{name}/1" in capture.outputs


def init_exponent(capture: Capture, name: str) -> Exponent:
    """Power of n of the standard deviation of a parameter's entries (of its value, where it is constant)."""
    node = next(node for node in capture.nodes if node.kind == "parameter" and str(node.target) == name)
    law = capture.laws[node.name] if node.name in capture.laws else capture.laws[name]
    return -math.inf if isinstance(law, Constant) and law.value == 0 else Fraction(law.width_exponent)


class Measurement:
    """Sizes in a capture made with ``exponents=True``, by lowerings of growing depth where shallow series cancel.

    What an earlier measurement has found out about nodes (which means vanish) holds whatever their powers of n.
    A ``generic`` one leaves out zeros of symmetric starts, as of experts that start alike: training breaks the
    symmetry, and rules must hold then.
    """

    def __init__(
        self,
        capture: Capture,
        shifts: Mapping[str, Shift] | None = None,
        earlier: Measurement | None = None,
        doubts: Doubts | None = None,
        factors: Mapping[int, Fraction] | None = None,
        generic: bool | None = None,
    ) -> None:
        self.capture = capture
        self.shifts = dict(shifts or {})
        self.factors = dict((earlier.factors if earlier else {}) if factors is None else factors)
        self.doubts = doubts or (Doubts() if earlier is None else earlier.doubts)
        self.generic = (earlier is not None and earlier.generic) if generic is None else generic
        self._lowered = None if earlier is None else earlier._lowered
        self._depth = Fraction(0)
        self._finite: frozenset[str] = frozenset()
        self._found: dict[Key, Size] = {}
        self._by_use: dict[UseKey, Size] = {}

    def sizes(self, deepest: Fraction = DEEPEST) -> Sizes:
        """Deeper, up to ``deepest``, until everything is decided."""
        while not self._depth or (self._depth < deepest and not self._decided()):
            self._deepen(HALF)
        capture, lowered = self.capture, self._lowered
        assert lowered is not None
        names = [name for name in capture.activations if f"activation/{name}/0" in capture.outputs]
        behind = {name: factor_behind(capture, capture.outputs[f"activation/{name}/0"].name) for name in names}
        places = tuple(node.origin.place for node in products(capture, 0))
        return Sizes(
            dict(self._found),
            self._finite,
            lowered.undecided,
            takeovers(capture, lowered),
            beside_epsilon(capture, lowered),
            dict(self._by_use),
            behind,
            places,
        )

    def settled(self) -> Sizes:
        """Deeper still as long as more gets decided: every layer of attention may hide half an order."""
        sizes, before = self.sizes(), -1
        while before < self._exact < len(self._found) and DEEPEST <= self._depth < _FURTHEST:
            before = self._exact
            self._deepen(_STRIDE)
            sizes = self.sizes()
        return sizes

    @property
    def _exact(self) -> int:
        return sum(size.exact for size in self._found.values())

    def _decided(self) -> bool:
        return all(s.exact or s.bound > DEEPEST for s in self._found.values())

    def _deepen(self, by: Fraction) -> None:
        self._depth += by
        adjust = _shifted(self.capture, self.shifts, self.factors)
        self._lowered = lower(
            self.capture, self._depth, tolerant=True, adjust=adjust, earlier=self._lowered, doubt=self.doubts,
            exchange=not self.generic,
        )  # fmt: skip
        sizes, self._finite, each = _collect(self.capture, self._lowered)
        self._found |= {k: better(size, self._found.get(k, size)) for k, size in sizes.items()}
        self._by_use |= {k: better(size, self._by_use.get(k, size)) for k, size in each.items()}


def _shifted(capture: Capture, shifts: Mapping[str, Shift], factors: Mapping[int, Fraction]) -> Adjustment | None:
    """Initial values and updates of parameters times powers of n, wherever they enter the graph, and products too.

    A factor of the i-th product of two activations is one of its gradients.

    What the operations of an update add to their first operand, the parameter (less a decoupled weight decay), is the
    update: found by running them with that operand at zero.
    """
    if not shifts and not factors:
        return None
    graph = {node.name: node for node in capture.nodes}
    scaled_nodes = {parameter_node(capture, name, 0): shift.init for name, shift in shifts.items()}
    updates = {
        added: shift.rate
        for name, shift in shifts.items()
        for t in range(1, capture.steps + 1)
        if shift.rate
        for added in _additions(graph, parameter_node(capture, name, t), parameter_node(capture, name, t - 1))
    }
    for step in range(capture.steps + 1) if factors else ():
        for i, node in enumerate(products(capture, step)):
            if i in factors:
                scaled_nodes |= dict.fromkeys((node.name, *adjoints(capture, node)), factors[i])

    def adjust(context: Context, name: str, value: Any, values: Mapping[str, Any]) -> Any:
        if name in scaled_nodes:
            return context.times(value, Scaled(1.0, scaled_nodes[name]))
        if name not in updates:
            return value
        node = graph[name]
        before = values[node.args[0].name]
        update = interpret(context, capture, node, ChainMap({node.args[0].name: zero_like(before)}, dict(values)))
        return context.add(before, context.times(update, Scaled(1.0, updates[name])))

    return adjust


def _additions(graph: Mapping[str, GraphNode], after: str, before: str) -> list[str]:
    """The operations that add to a parameter on the way from its old value to its new one; else the last one."""
    found, name = [], after
    while name != before:
        node = graph[name]
        if str(node.target) in _ADDING:
            found.append(name)
        if not node.args or not isinstance(node.args[0], Ref):
            return [after]
        name = node.args[0].name
    return found or [after]


def _collect(capture: Capture, lowered: Lowered) -> tuple[dict[Key, Size], frozenset[str], dict[UseKey, Size]]:
    found: dict[Key, Size] = {}
    by_use: dict[UseKey, Size] = {}
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
    for step in range(capture.steps + 1):
        for i, node in enumerate(products(capture, step)):
            value = first_result(lowered.nodes[node.name])
            if value is not None:
                found["product", str(i), step] = scaled(size_of(value), factor_behind(capture, node.name))
    for name in parameter_names(capture):
        for quantity, step, use, size, small in _effects(capture, lowered, name):
            key = quantity, name, step
            by_use[*key, use] = max(by_use.get((*key, use), size), size, key=_order)
            found[key] = max(found[key], size, key=_order) if key in found else size
            if small and quantity != "input":
                finite.add(name)
    return found, frozenset(finite), by_use


def _order(size: Size) -> tuple[float, bool]:
    return float(size.bound), size.exact


def _effects(capture: Capture, lowered: Lowered, name: str) -> list[tuple[str, int, int, Size, bool]]:
    """What a parameter does where it is used: quantity, step, which operation, size, whether its output is finite."""
    start = lowered.nodes[parameter_node(capture, name, 0)]
    out: list[tuple[str, int, int, Size, bool]] = []

    def note(quantity: str, step: int, use: int, value: AnyValue | None) -> None:
        if value is not None:
            out.append((quantity, step, use, size_of(value), not has_width(value.axes)))

    narrow = name not in capture.grown_parameters
    first = [share(capture, lowered, use, name, 0, start) for use in uses(capture, name, 0)]
    for i, (use, value) in enumerate(zip(uses(capture, name, 0), first, strict=True)):
        note("start", 0, i, value)
        for operand in use.beside:
            note("input", 0, i, first_result(lowered.nodes[operand]))
    for step in range(1, capture.steps + 1):
        moved = difference(lowered, lowered.nodes[parameter_node(capture, name, step)], start)
        for i, use in enumerate(uses(capture, name, step)):
            if trained(capture, name):
                own = scaled(size_of(moved), use.factor) if narrow and moved is not None else None
                if own is not None:  # what it multiplies may only be small at first
                    out.append(("effect", step, i, own, False))
                if own is None or own.exponent is None or own.exponent <= 0:  # else it grows, whatever it does
                    note("effect", step, i, share(capture, lowered, use, name, step, moved))
            through = share(capture, lowered, use, name, step, start)
            before = first[i] if i < len(first) else None
            if through is not None and before is not None:
                note("propagated", step, i, difference(lowered, through, before))
    return out


def _reasons(capture: Capture, lowered: Lowered) -> dict[str, str]:
    """Why nothing is known of a value: the first operation above it that could not be followed."""
    reasons: dict[str, str] = {}
    if not lowered.undecided:
        return reasons
    for node in capture.nodes:
        if node.name in lowered.undecided:
            reasons[node.name] = str(lowered.undecided[node.name])
            continue
        cause = next((reasons[x] for x in node.operands if x in reasons), None)
        if cause is not None:
            reasons[node.name] = cause
    return reasons
