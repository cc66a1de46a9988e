"""How an optimizer brings weight decay in, read from the traced update."""

from __future__ import annotations

from typing import Literal

from tpcompile.capture.graph import Capture, GraphNode, references

Kind = Literal["none", "linear", "decoupled", "normalised"]

_LINEAR = frozenset(
    f"aten.{name}" for name in ("mul.Tensor", "mul.Scalar", "add.Tensor", "add.Scalar", "sub.Tensor", "neg.default")
)


def decay_kind(capture: Capture, name: str) -> Kind:
    """Whether the first update of a parameter has a term of the parameter itself, and where it comes in.

    "decoupled": beside the optimizer's function of the gradient; "linear": added to the gradient, of which the update
    is linear (as in SGD), which comes to the same; "normalised": added to the gradient, whose size the optimizer then
    divides out, and with it that of the decay.
    """
    if not capture.settings.get(name, {}).get("weight_decay") or f"gradient/{name}/0" not in capture.outputs:
        return "none"
    if capture.settings[name]["weight_decay"].coefficient == 0:
        return "none"
    gradients = {capture.outputs[f"gradient/{name}/0"].name}
    start, end = (capture.outputs[f"parameter/{name}/{t}"].name for t in (0, 1))
    graph = {node.name: node for node in capture.nodes}
    gradients |= _copied(capture, graph, gradients)
    of_gradient: set[str] = set(gradients)
    of_parameter: set[str] = {start}
    mixed, linear = False, True
    for node in _between(capture, end):
        operands = set(node.operands)
        if operands & of_parameter and operands & gradients:
            mixed = True
        if operands & of_gradient and str(node.target) not in _LINEAR:
            linear = False
        if operands & of_gradient:
            of_gradient.add(node.name)
        elif operands & of_parameter:
            of_parameter.add(node.name)
    if not mixed:
        return "decoupled"
    return "linear" if linear else "normalised"


def _copied(capture: Capture, graph: dict[str, GraphNode], names: set[str]) -> set[str]:
    """What the gradient output is a copy of, or has as copies."""
    found = set(names)
    for name in names:
        node = graph[name]
        if str(node.target) in ("aten.clone.default", "aten.detach.default"):
            found |= set(references(node.args))
    copies = {n.name for n in capture.nodes if str(n.target) in ("aten.clone.default", "aten.detach.default")}
    return found | {n for n in copies if set(references(graph[n].args)) & found}


def _between(capture: Capture, end: str) -> list[GraphNode]:
    """The operations of the first update that lead to a node, in order."""
    needed = {end}
    for node in reversed(capture.nodes):
        if node.name in needed and node.origin.phase == "update":
            needed |= set(node.operands)
    return [n for n in capture.nodes if n.name in needed and n.kind == "call" and n.origin.phase == "update"]
