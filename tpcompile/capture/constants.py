"""Values of the graph that depend on no input: data, or a law that scales with the width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx

from tpcompile.capture.align import Aligned, redirect
from tpcompile.capture.graph import GraphNode, Ref, Scaled
from tpcompile.capture.initialisation import Recording, parameter_laws
from tpcompile.capture.powers import power_of
from tpcompile.errors import FactoryError, InitialisationError
from tpcompile.laws import Constant, Law, ParameterLaw

_FLOAT32_ROUNDING = 1e-6


@dataclass(frozen=True)
class Folded:
    """The graph with constant nodes in place of constant calls, their data and their laws."""

    aligned: Aligned
    data: dict[str, Tensor]
    laws: dict[str, ParameterLaw]


def fold_constants(aligned: Aligned, recordings: Mapping[int, Recording]) -> Folded:
    """Every node whose value depends on no input becomes a constant where its law is known.

    A call whose value is neither the same at all widths nor uniform stays a call; a tensor that the
    model holds on to (neither parameter nor buffer) must have a recorded law then.
    """
    widths = tuple(recordings)
    nodes = dict(aligned.nodes)
    data: dict[str, Tensor] = {}
    laws: dict[str, ParameterLaw] = {}
    made: dict[Any, Ref] = {}
    through: dict[str, Ref] = {}
    for name, row in aligned.rows.items():
        node = nodes[name]
        if node.kind not in ("call", "constant") or not row[0].meta["constant"] or node.shape is None:
            continue
        values = [n.meta["value"] for n in row]
        found = _recorded(values, recordings) if node.kind == "constant" else None
        found = found if found is not None else value_or_law(values, widths)
        if found is None:
            if node.kind == "constant":
                raise FactoryError(
                    f"a constant tensor of shape {tuple(values[0].shape)} (at width {widths[0]}) is neither the same "
                    "at every width nor uniform with value c * n^e",
                    where=str(node.origin),
                    advice="draw or fill it in the factory with torch, and register it as a buffer",
                )
            continue
        key = _identity(node, found)
        if key in made:
            through[name] = made[key]
            continue
        made[key] = Ref(name)
        if isinstance(found, Tensor):
            data[name] = found
        else:
            laws[name] = found
        nodes[name] = replace(node, kind="constant", target=name, args=(), kwargs=())
    merged = {
        name: replace(n, args=redirect(n.args, through), kwargs=redirect(n.kwargs, through))
        for name, n in nodes.items()
        if name not in through
    }
    outputs = {key: redirect(ref, through) for key, ref in aligned.outputs.items()}
    return Folded(Aligned(merged, outputs, aligned.rows), data, laws)


def _identity(node: GraphNode, value: Tensor | ParameterLaw) -> Any:
    """Equal for constants that are the same value; a random law is a value of its own each time."""
    if isinstance(value, Tensor):
        return (
            node.shape,
            node.dtype,
            str(value.device),
            value.reshape(-1)
            .clone(memory_format=torch.contiguous_format)
            .view(torch.uint8)
            .numpy(force=True)
            .tobytes(),
        )
    return (node.shape, node.dtype, value) if isinstance(value, Constant) else node.name


def _recorded(values: Sequence[Tensor], recordings: Mapping[int, Recording]) -> ParameterLaw | None:
    """The recorded law if it is random; constants are read from the values."""
    named = {width: {"constant": value} for width, value in zip(recordings, values, strict=True)}
    try:
        law = parameter_laws(recordings, named)["constant"]
    except InitialisationError:
        return None
    return None if isinstance(law, Constant) else law


def value_or_law(values: Sequence[Tensor], widths: Sequence[int]) -> Tensor | Law | None:
    """The tensor itself if the same at every width, a :class:`Constant` law if uniform, else None."""
    first = values[0]
    if all(v.shape == first.shape and torch.equal(v, first) for v in values):
        return first.detach().clone()
    if first.dtype == torch.bool or any(v.numel() == 0 for v in values):
        return None
    levels = []
    for value in values:
        level = value.reshape(-1)[0]
        if not bool((value == level).all()):
            return None
        levels.append(float(level))
    scaled = power_of(levels, widths, _FLOAT32_ROUNDING if first.dtype != torch.float64 else 1e-9)
    return None if scaled is None else Constant(scaled.coefficient, scaled.exponent)


def graph_module(aligned: Aligned, constants: Mapping[str, Tensor]) -> fx.GraphModule:
    """The final graph at the first probe width as an executable module, called with its inputs in order.

    It returns a dict of the named outputs.
    """
    graph = fx.Graph()
    root = torch.nn.Module()
    made: dict[str, fx.Node] = {}

    def argument(old: Any, new: Any) -> Any:
        if isinstance(old, fx.Node):
            return made[new.name]
        if isinstance(old, (list, tuple)):
            return type(old)(argument(o, n) for o, n in zip(old, new, strict=True))
        return old

    for name, node in aligned.nodes.items():
        old = aligned.rows[name][0]
        if node.kind in ("parameter", "direction", "buffer", "data"):
            made[name] = graph.placeholder(name)
        elif node.kind == "constant":
            root.register_buffer(name, constants[name] if name in constants else old.meta["value"])
            made[name] = graph.create_node("get_attr", name, name=name)
        else:
            kwargs = {k: argument(old.kwargs[k], v) for k, v in node.kwargs}
            made[name] = graph.create_node("call_function", node.target, argument(old.args, node.args), kwargs, name)
        made[name].meta = {k: v for k, v in old.meta.items() if k in ("shape", "dtype", "origin")}
    graph.output({name: made[ref.name] for name, ref in aligned.outputs.items()})
    return fx.GraphModule(root, graph)


def numbers_in_place(nodes: Mapping[str, GraphNode], laws: Mapping[str, ParameterLaw]) -> tuple[GraphNode, ...]:
    """The nodes, with products and quotients by a constant of one number (a buffer, say) written as those by a number.

    A multiplier is one however the model holds it.
    """
    found: dict[str, Scaled] = {}
    for name, node in nodes.items():
        law = laws.get(name)
        if node.kind in ("buffer", "constant") and node.shape == () and isinstance(law, Constant):
            found[name] = Scaled(law.value, law.width_exponent)

    def written(node: GraphNode) -> GraphNode:
        target = str(node.target)
        if node.kind != "call" or target not in ("aten.mul.Tensor", "aten.div.Tensor") or len(node.args) != 2:
            return node
        first, second = (found.get(x.name, x) if isinstance(x, Ref) else x for x in node.args)
        if isinstance(first, Scaled) and target == "aten.mul.Tensor":
            first, second = second, first
        return node if isinstance(first, Scaled) else replace(node, args=(first, second))

    return tuple(map(written, nodes.values()))
