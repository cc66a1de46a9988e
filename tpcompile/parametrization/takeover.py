"""Numbers of an update that outgrow what they are added to: epsilons, from some width on."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from tpcompile.capture.graph import Capture, GraphNode, Ref, Scaled
from tpcompile.laws import Constant
from tpcompile.lowering.lower import Lowered
from tpcompile.lowering.value import MatrixValue, Value
from tpcompile.parametrization.sizes import size_of

_SUMS = frozenset(("aten.add.Tensor", "aten.add.Scalar", "aten.maximum.default"))
_BOUNDS = frozenset(("aten.clamp.default", "aten.clamp_min.default"))


@dataclass(frozen=True)
class Takeover:
    """A number that is the larger one in the limit, in words, and the width from which on it is."""

    text: str
    width: float


def takeovers(capture: Capture, lowered: Lowered) -> tuple[Takeover, ...]:
    """Every number that is the larger one in the limit.

    The width is where the two cross, from their sizes at the largest probe width and their exponents: an order of
    magnitude for the traced initial values and inputs.
    """
    found: dict[tuple[Scaled, Fraction], dict[str, float]] = defaultdict(dict)
    for node in capture.nodes:
        if node.kind != "call" or node.origin.phase != "update" or node.name not in capture.magnitudes:
            continue
        number = _number(capture, node)
        value = lowered.nodes.get(node.args[0].name) if node.args and isinstance(node.args[0], Ref) else None
        if number is None or number.coefficient <= 0 or not isinstance(value, Value | MatrixValue):
            continue
        exponent, measured = size_of(value).exponent, capture.magnitudes[node.name]
        if not isinstance(exponent, Fraction) or exponent >= number.exponent or not measured > 0:
            continue
        n = capture.widths[-1]
        crossing = math.log(measured / (number.coefficient * n ** float(number.exponent))) / float(
            number.exponent - exponent
        )
        where = found[number, exponent]
        where[node.origin.module] = min(where.get(node.origin.module, math.inf), crossing + math.log(n))
    return tuple(_note(number, exponent, where) for (number, exponent), where in found.items())


def beside_epsilon(capture: Capture, lowered: Lowered) -> dict[str, Fraction]:
    """The size of what every parameter's epsilon is added to, the first that is not exactly zero.

    Adam adds it to the root of squared gradients, Adadelta to the squares.
    """
    found: dict[str, Fraction] = {}
    for node in capture.nodes:
        name = node.origin.module
        epsilon = capture.settings.get(name, {}).get("eps")
        if epsilon is None or name in found or node.kind != "call" or node.origin.phase != "update":
            continue
        value = lowered.nodes.get(node.args[0].name) if node.args and isinstance(node.args[0], Ref) else None
        number = _number(capture, node)
        if isinstance(value, Value | MatrixValue) and number is not None and _alike(number, epsilon):
            exponent = size_of(value).exponent
            if isinstance(exponent, Fraction):
                found[name] = exponent
    return found


def _alike(a: Scaled, b: Scaled) -> bool:
    return a.exponent == b.exponent and math.isclose(a.coefficient, b.coefficient, rel_tol=1e-5)


def _number(capture: Capture, node: GraphNode) -> Scaled | None:
    """The number that is added to the first operand, or bounds it from below."""
    target = str(node.target)
    if (target not in _SUMS and target not in _BOUNDS) or len(node.args) < 2:
        return None
    return _constant(capture, node.args[1])


def _constant(capture: Capture, x: Any) -> Scaled | None:
    if isinstance(x, Scaled):
        return x
    if isinstance(x, int | float):
        return Scaled(float(x), Fraction(0))
    law = capture.laws.get(x.name) if isinstance(x, Ref) else None
    if isinstance(law, Constant):
        return Scaled(law.value, Fraction(law.width_exponent))
    data = capture.data.get(x.name) if isinstance(x, Ref) else None
    return Scaled(float(data), Fraction(0)) if data is not None and data.dim() == 0 else None


def _note(number: Scaled, exponent: Fraction, where: dict[str, float]) -> Takeover:
    names = ", ".join(f"`{name}`" for name in where if name) or "the parameters"
    size = f"{number.coefficient:.3g}" + (f" n^{number.exponent}" if number.exponent else "")
    crossing = min(where.values()) / math.log(10)
    width = about(10**crossing) if crossing < 30 else "a width that no computer reaches"
    text = (
        f"the number {size} in the update of {names} stands beside values of size n^{exponent}: it takes over from "
        f"{width} on, and the exponents here are those beyond it"
    )
    return Takeover(text, 10 ** min(crossing, 300.0))


def about(width: float) -> str:
    """An order of magnitude of a width."""
    return f"a width of about {width:.0e}"
