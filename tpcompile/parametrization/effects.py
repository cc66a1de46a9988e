"""What the update of a parameter does to the output of the operation that uses it.

A parameter meets the data in some operation of the forward pass (a matrix product, a bias added, a lookup). Its
effect at step t is the change of that operation's output when the parameter alone goes back to its initial value.
The operation is found from the graph: what is made of parameters only (a transpose, a rescaling) is followed.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from tpcompile.capture.graph import Capture, GraphNode, Ref
from tpcompile.errors import TpcompileError
from tpcompile.lowering.lower import Lowered, interpret, unknown
from tpcompile.lowering.value import AnyValue, MatrixValue, Value


@dataclass(frozen=True)
class Use:
    """An operation in which a parameter meets the data."""

    node: GraphNode
    shadows: Mapping[str, Any]  # values of its operands with the parameter at another value


def uses(capture: Capture, lowered: Lowered, parameter: str, step: int, other: Any) -> list[Use]:
    """Where a parameter is used in the forward pass of a step, with its value replaced by ``other``."""
    start = capture.outputs[f"parameter/{parameter}/{step}"].name
    shadows: dict[str, Any] = {start: other}
    data = {node.name for node in capture.nodes if node.kind == "data"}
    found = []
    for node in capture.nodes:
        if node.kind != "call" or node.origin.phase != "forward" or node.origin.step != step:
            continue
        operands = set(references(node.args)) | set(references(tuple(v for _, v in node.kwargs)))
        if operands & data:
            data.add(node.name)
        if not operands & shadows.keys():
            continue
        if operands & data:
            found.append(Use(node, {name: shadows[name] for name in operands & shadows.keys()}))
        else:
            shadows[node.name] = replayed(capture, lowered, node, shadows)
    return found


def replayed(capture: Capture, lowered: Lowered, node: GraphNode, other: Mapping[str, Any]) -> Any:
    """The value of an operation with some operands replaced."""
    context = lowered.context
    context.current = node
    context.algebra.place = context.place
    context.algebra.builder.origin = str(node.origin)
    try:
        return interpret(context, capture, node, ChainMap(dict(other), dict(lowered.nodes)))
    except (TpcompileError, AssertionError, AttributeError, TypeError, ValueError, KeyError, IndexError):
        return unknown(node)


def difference(lowered: Lowered, a: Any, b: Any) -> AnyValue | None:
    """``a - b``; None where the operation has several results."""
    if not isinstance(a, Value | MatrixValue) or not isinstance(b, Value | MatrixValue):
        return None
    return lowered.context.add(a, lowered.context.negate(b))


def zero_like(value: AnyValue) -> AnyValue:
    """A parameter that is exactly zero."""
    return MatrixValue(value.axes) if isinstance(value, MatrixValue) else Value(value.axes, ())


def references(x: Any) -> Iterator[str]:
    """Names of the nodes that an argument list refers to."""
    if isinstance(x, Ref):
        yield x.name
    elif isinstance(x, list | tuple):
        for y in x:
            yield from references(y)
