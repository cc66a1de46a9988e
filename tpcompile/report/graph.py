"""The program as a graph for other tools: Graphviz text and plain JSON values."""

from __future__ import annotations

from typing import Any

from tpcompile.ir import Program, format_node
from tpcompile.report.notation import formula

_COLOURS = {"vector": "#d6e8f7", "scalar": "#f2f2f2", "matrix": "#f7e3c8", "output": "#d9f0d3"}


def graph_dot(program: Program) -> str:
    """``program.graph()`` in the DOT language of Graphviz."""
    graph = program.graph()
    formulas = _formulas(program)
    lines = ["digraph program {", "  rankdir=TB;", '  node [shape=box, style=filled, fontname="monospace"];']
    for name, facts in graph.nodes(data=True):
        kind = "output" if facts["op"] == "output" else facts["kind"]
        label = f"{name} {facts['dims']}" + (f"\n{formulas[name]}" if name in formulas else "")
        tip = f", tooltip={_quote(facts['origin'])}" if facts["origin"] else ""
        lines.append(f"  {_quote(name)} [label={_quote(label)}, fillcolor={_quote(_COLOURS[kind])}{tip}];")
    for a, b in graph.edges():
        lines.append(f"  {_quote(a)} -> {_quote(b)};")
    return "\n".join([*lines, "}"]) + "\n"


def graph_dict(program: Program) -> dict[str, Any]:
    """Values, edges and outputs of ``program.graph()`` as lists for JSON."""
    graph = program.graph()
    formulas = _formulas(program)
    names = program.names()
    texts = {name: format_node(program, node, names) for node, name in names.items()}
    keys = ("op", "dims", "kind", "origin")
    return {
        "values": [
            {"name": name, **{key: facts[key] for key in keys}, "formula": formulas[name], "text": texts[name]}
            for name, facts in graph.nodes(data=True)
            if facts["op"] != "output"
        ],
        "edges": [
            {"from": a, "to": b, "operand": facts["operand"]}
            for a, b, facts in graph.edges(data=True)
            if graph.nodes[b]["op"] != "output"
        ],
        "outputs": [
            {
                "name": name,
                "dims": graph.nodes[name]["dims"],
                "terms": [{"exponent": str(e), "value": names[node]} for e, node in output.terms],
                "remainder": None if output.remainder is None else str(output.remainder),
            }
            for name, output in program.outputs.items()
        ],
    }


def _formulas(program: Program) -> dict[str, str]:
    names = program.names()
    return {name: formula(node, names) for node, name in names.items()}


def _quote(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
