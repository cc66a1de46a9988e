"""Compare the graphs of the probe widths node by node and learn the powers of the width."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import torch
from torch import fx

from tpcompile.capture.graph import Binomial, GraphNode, Origin, Ref, Scaled, Size
from tpcompile.capture.powers import binomial_of, power_of, size_of
from tpcompile.capture.unroll import ProbeTrace
from tpcompile.errors import FactoryError, ProportionError

_aten = torch.ops.aten
# In a graph without mutation these return their argument's entries (the last three if the shape stays).
_ALIAS = frozenset({_aten.detach.default, _aten.alias.default, _aten.lift_fresh.default})
_IDENTITY = _ALIAS | {_aten.clone.default, _aten.lift_fresh_copy.default}
_RESHAPES = frozenset({_aten.view.default, _aten._unsafe_view.default})
# They read the shape of their first argument only: for lowering it need not be computed.
_FILLS = frozenset(
    {
        *(_aten.new_empty.default, _aten.new_zeros.default, _aten.new_ones.default, _aten.new_full.default),
        *(_aten.empty_like.default, _aten.zeros_like.default, _aten.ones_like.default, _aten.full_like.default),
    }
)
_IDENTITY_IF_SAME_SHAPE = _RESHAPES | {_aten.expand.default}


@dataclass(frozen=True)
class Aligned:
    """One graph with powers of the width. ``rows`` gives, by node name, the fx node at each width."""

    nodes: dict[str, GraphNode]
    outputs: dict[str, Ref]
    rows: dict[str, tuple[fx.Node, ...]]


def align(traces: Sequence[ProbeTrace]) -> Aligned:
    """Match the graphs; a difference is a :class:`FactoryError` that names its place."""
    widths = [trace.width for trace in traces]
    lists = [live_nodes(trace) for trace in traces]
    _check_structure(lists, widths)
    names: list[dict[fx.Node, str]] = [{} for _ in traces]
    nodes: dict[str, GraphNode] = {}
    rows: dict[str, tuple[fx.Node, ...]] = {}
    placeholders = iter(traces[0].placeholders)
    for row in zip(*lists, strict=True):
        first = row[0]
        for table, node in zip(names, row, strict=True):
            table[node] = first.name
        kind, target = next(placeholders) if first.op == "placeholder" else _kind(first)
        compare = _Comparison(first, widths, names)
        nodes[first.name] = GraphNode(
            name=first.name,
            kind=kind,
            target=target,
            args=compare.value([n.args for n in row]) if kind == "call" else (),
            kwargs=tuple((k, compare.value([n.kwargs[k] for n in row])) for k in first.kwargs),
            shape=compare.shape([n.meta.get("shape") for n in row]),
            dtype=first.meta.get("dtype"),
            origin=first.meta["origin"],
        )
        rows[first.name] = row
    outputs = {name: Ref(node.name) for name, node in traces[0].outputs.items()}
    return Aligned(nodes, outputs, rows)


def live_nodes(trace: ProbeTrace) -> list[fx.Node]:
    """All placeholders, and the nodes that some output depends on, in order."""
    live = set(trace.outputs.values())
    kept = []
    for node in reversed(trace.graph.nodes):
        if node.op == "placeholder" or node in live:
            kept.append(node)
            live.update(node.all_input_nodes)
    return [node for node in reversed(kept) if node.op != "output"]


def simplify(aligned: Aligned, keep_layout: bool = False) -> Aligned:
    """Read through operations that return their argument unchanged.

    ``keep_layout`` keeps those that change the layout in memory, which kernels may rely on.
    """
    through: dict[str, Ref] = {}
    nodes: dict[str, GraphNode] = {}
    for name, node in aligned.nodes.items():
        node = replace(node, args=redirect(node.args, through), kwargs=redirect(node.kwargs, through))
        source = _source(node, nodes)
        if keep_layout:
            if source is not None and node.target in _ALIAS:
                through[name] = Ref(source.name)
            else:
                nodes[name] = node
            continue
        if node.target in _FILLS:
            nodes[name] = replace(node, args=(None, *node.args[1:]))
            continue
        if source is not None and node.target in _RESHAPES and source.target in _RESHAPES:
            node = replace(node, args=(source.args[0], *node.args[1:]))
            source = _source(node, nodes)
        unchanged = None if source is None else _unchanged(node, source, nodes)
        if unchanged is None:
            nodes[name] = node
        else:
            through[name] = unchanged
    return Aligned(nodes, {k: redirect(v, through) for k, v in aligned.outputs.items()}, aligned.rows)


def redirect(value: Any, through: dict[str, Ref]) -> Any:
    """An argument with some references replaced."""
    if isinstance(value, Ref):
        return through.get(value.name, value)
    return tuple(redirect(v, through) for v in value) if isinstance(value, tuple) else value


def _source(node: GraphNode, nodes: dict[str, GraphNode]) -> GraphNode | None:
    """The node of the first argument."""
    first = node.args[0] if node.args else None
    return nodes.get(first.name) if isinstance(first, Ref) else None


def _unchanged(node: GraphNode, source: GraphNode, nodes: dict[str, GraphNode]) -> Ref | None:
    """The earlier value that ``node``, an operation on ``source``, is equal to."""
    if node.target is _aten.copy.default:  # (destination, source)
        written = nodes[node.args[1].name]
        return node.args[1] if (written.shape, written.dtype) == (node.shape, node.dtype) else None
    itself, before = Ref(source.name), source.args[0] if source.args else None
    if node.target in _IDENTITY:
        return itself
    if node.target in _IDENTITY_IF_SAME_SHAPE and source.shape == node.shape and source.dtype == node.dtype:
        return itself
    if not isinstance(before, Ref):
        return None
    if node.target is source.target is _aten.t.default:
        return before
    if node.target is source.target is _aten.transpose.int and set(source.args[1:]) == set(node.args[1:]):
        return before
    if node.target is operator.getitem and source.target is _aten.split_with_sizes.default and len(source.args[1]) == 1:
        return before
    return None


def prune(aligned: Aligned) -> Aligned:
    """Drop the nodes that no output depends on; inputs of the graph stay, but for buffers."""
    live = {ref.name for ref in aligned.outputs.values()}
    kept = []
    for name, node in reversed(aligned.nodes.items()):
        if name in live or node.kind in ("parameter", "direction", "data"):
            kept.append((name, node))
            live.update(node.operands)
    return Aligned(dict(reversed(kept)), aligned.outputs, aligned.rows)


def _kind(node: fx.Node) -> tuple[str, Any]:
    return ("constant", node.target) if node.op == "get_attr" else ("call", node.target)


def describe(node: fx.Node) -> str:
    """A node in words: its operation, or its name for an input."""
    return str(node.target) if node.op == "call_function" and node.target is not operator.getitem else node.name


def _check_structure(lists: Sequence[list[fx.Node]], widths: Sequence[int]) -> None:
    for other, width in zip(lists[1:], widths[1:], strict=True):
        for a, b in zip(lists[0], other, strict=False):
            if a.op != b.op or (a.op != "get_attr" and a.target is not b.target and a.target != b.target):
                raise FactoryError(
                    f"the graph changes with the width: {describe(a)} at width {widths[0]} "
                    f"but {describe(b)} at width {width}",
                    where=_places(a.meta["origin"], b.meta["origin"]),
                    advice="the model must do the same at every width; widths=(...) chooses the probe widths",
                )
        if len(lists[0]) != len(other):
            longer = max(lists[0], other, key=len)
            extra = longer[min(len(lists[0]), len(other))]
            raise FactoryError(
                f"the graph changes with the width: {len(lists[0])} operations at width {widths[0]} "
                f"but {len(other)} at width {width}; the first extra one is {describe(extra)}",
                where=str(extra.meta["origin"]),
                advice="the model must do the same at every width; widths=(...) chooses the probe widths",
            )


def _places(a: Origin, b: Origin) -> str:
    return str(a) if str(a) == str(b) else f"{a} / {b}"


@dataclass(frozen=True)
class _Comparison:
    """Compares one node's arguments over the widths."""

    node: fx.Node
    widths: Sequence[int]
    names: Sequence[dict[fx.Node, str]]

    def value(self, values: Sequence[Any]) -> Any:
        first = values[0]
        if any(isinstance(v, fx.Node) for v in values):
            found = {t.get(v, "?") if isinstance(v, fx.Node) else "?" for t, v in zip(self.names, values, strict=True)}
            if len(found) > 1 or "?" in found:
                raise self._error("reads different values at different widths")
            return Ref(found.pop())
        if isinstance(first, (list, tuple)):
            if any(not isinstance(v, (list, tuple)) or len(v) != len(first) for v in values):
                raise self._error(f"has arguments of different lengths at different widths ({self._show(values)})")
            return tuple(self.value(items) for items in zip(*values, strict=True))
        if all(type(v) is type(first) and v == first for v in values):
            return first
        if any(isinstance(v, bool) or not isinstance(v, (int, float)) for v in values):
            raise self._error(f"has an argument that changes with the width ({self._show(values)})")
        scaled = power_of(values, self.widths)
        if scaled is None and self.node.meta["origin"].phase == "update":  # a decoupled weight decay
            less = power_of([1 - v for v in values], self.widths, tolerance=1e-6)
            if less is not None:
                return Binomial(Scaled(1.0, Fraction(0)), Scaled(-less.coefficient, less.exponent))
        if scaled is None:
            binomial = binomial_of(values, self.widths)
            if binomial is not None:
                return binomial
            raise self._error(
                f"has an argument that is not c * n^e, a constant times a power of the width ({self._show(values)})"
            )
        return scaled

    def shape(self, shapes: Sequence[tuple[int, ...] | None]) -> tuple[Size, ...] | None:
        first = shapes[0]
        if first is None:
            return None
        if any(s is None or len(s) != len(first) for s in shapes):
            raise self._error(f"has a different number of axes at different widths ({self._show(shapes)})")
        sizes = [size_of(lengths, self.widths) for lengths in zip(*(s for s in shapes if s is not None), strict=True)]
        if any(s is None for s in sizes):
            raise self._error(f"has an axis that is not proportional to the width ({self._show(shapes)})")
        return tuple(s for s in sizes if s is not None)

    def _show(self, values: Sequence[Any]) -> str:
        return ", ".join(f"width {n}: {v}" for n, v in zip(self.widths, values, strict=True))

    def _error(self, what: str) -> ProportionError:
        return ProportionError(
            f"{describe(self.node)} {what}",
            where=str(self.node.meta["origin"]),
            advice="sizes must be proportional to the width, and numbers c * width**e",
        )
