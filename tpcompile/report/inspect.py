"""A compiled program for the reader of the Tensor Programs papers: every value with its Z, Ẑ and Ż, and a summary."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcompile.analysis.products import Product, products
from tpcompile.capture.graph import Size
from tpcompile.errors import UsageError
from tpcompile.ir import Gaussian, Node, Output, Program, dims_text, reachable
from tpcompile.report.notation import formula, law_text, number, power, scaled, symbol

if TYPE_CHECKING:
    from tpcompile.compiled import Compiled

_MOST = 6  # names in one list

LEGEND = """\
Z%7 is the random variable that a coordinate of the vector %7 becomes; a value without Z is a number.
[3, n] are a value's axes: finite lengths, and n for the one that grows. E[...] runs over the width only, and is
conditional on the Gaussian scalars that enter it. Indices i, j, ... are finite axes.
A product with an initial matrix is Z = Ẑ + Ż: Ẑ is Gaussian, Ż the response to earlier products with the transpose."""


def program_text(compiled: Compiled, step: int | None = None, value: str | None = None) -> str:
    """The program in the papers' notation.

    ``step`` keeps the values made at that training step, ``value`` (``"%12"``) one value with everything it is made
    of. Raises UsageError for a step or value that the program does not have.
    """
    program = compiled.program
    names = program.names()
    chosen = set(program.nodes)
    if step is not None:
        if not 0 <= step <= compiled.steps:
            raise UsageError(f"there is no step {step}", where="--step", advice=f"steps are 0 to {compiled.steps}")
        chosen = {node for node in program.nodes if step_of(program, node) == step}
    if value is not None:
        chosen &= set(reachable([find_value(program, value)]))
    lines = [_headline(compiled), "", LEGEND, ""]
    lines += [_parameter_line(row) for row in parameters(compiled)] + [""]
    lines += value_lines(program, [node for node in program.nodes if node in chosen], names)
    if value is not None:
        lines += ["", _users(program, find_value(program, value), names)]
    outputs = {n: o for n, o in program.outputs.items() if _shown(n, o, chosen, step, value, program)}
    if outputs:
        lines += ["", "outputs", *(f"  {output_line(name, output, names)}" for name, output in outputs.items())]
    return "\n".join(lines) + "\n"


def value_lines(program: Program, nodes: Iterable[Node], names: Mapping[Node, str]) -> list[str]:
    """The lines of these values: name, axes, equation, and where in the user's model it comes from."""
    found = products(program)
    rows: list[tuple[str, str, str, str, list[str]]] = []
    for node in nodes:
        product = found.get(node)
        left = "Z" if node.kind == "vector" else "="
        right = formula(node, names)
        body = f"Z = Ẑ + Ż of {right}" if product else (f"Z = {right}" if left == "Z" else f"= {right}")
        more = _product_lines(product, names) if product else []
        if isinstance(node.op, Gaussian):
            more = [_gaussian_line(node, names)]
        rows.append((names[node], dims_text(node.dims), body, program.origins.get(node, ""), more))
    name_width = max((len(row[0]) for row in rows), default=0)
    dims_width = max((len(row[1]) for row in rows), default=0)
    body_width = min(max((len(row[2]) for row in rows), default=0), 46)
    lines = []
    for name, dims, body, origin, more in rows:
        line = f"{name:<{name_width}}  {dims:<{dims_width}}  {body:<{body_width}}"
        lines.append((f"{line}  @ {origin}" if origin else line).rstrip())
        lines += [f"{'':<{name_width + dims_width + 4}}{text}" for text in more]
    return lines


def output_line(name: str, output: Output, names: Mapping[Node, str]) -> str:
    """``loss/1 = %41 + O(n^(-1/2))``: the series of a requested quantity."""
    terms = [names[node] if e == 0 else f"{power(e)} {names[node]}" for e, node in output.terms] or ["0"]
    if output.remainder is not None:
        terms.append(f"O({power(output.remainder)})")
    return f"{name} = {' + '.join(terms)}"


def find_value(program: Program, name: str) -> Node:
    """The node of a name such as ``%12`` or ``12``, or of an output such as ``loss/1``."""
    if name in program.outputs:
        terms = program.outputs[name].terms
        if terms:
            return terms[0][1]
        raise UsageError(f"the output '{name}' is zero in the limit", where="--value")
    text = name.removeprefix("%")
    if text.isdigit() and int(text) < len(program):
        return program.nodes[int(text)]
    near = difflib.get_close_matches(name, program.outputs, n=1)
    raise UsageError(
        f"there is no value '{name}'",
        where="--value",
        advice=f"did you mean '{near[0]}'?" if near else f"values are %0 to %{len(program) - 1}, or an output's name",
    )


def step_of(program: Program, node: Node) -> int:
    """The training step at which a value was first made; 0 for what has no place of its own."""
    match = re.search(r", step (\d+)", program.origins.get(node, ""))
    return int(match[1]) if match else 0


@dataclass(frozen=True)
class ParameterRow:
    """A parameter: ``n**exponent`` times an entry of its law at initialisation, and its learning rate."""

    name: str
    shape: str
    law: str
    exponent: Fraction
    rate: str | None
    rate_coefficient: float | None
    rate_exponent: Fraction | None


def parameters(compiled: Compiled) -> list[ParameterRow]:
    """Every parameter and random buffer of the model, in the order of the traced graph."""
    capture = compiled.capture
    rows = []
    for node in capture.nodes:
        law = capture.laws.get(node.name)
        if node.kind not in ("parameter", "buffer") or law is None:
            continue
        rate = capture.learning_rates.get(str(node.target)) if compiled.steps else None
        rows.append(
            ParameterRow(
                name=str(node.target),
                shape="[" + ", ".join(_size(s) for s in node.shape or ()) + "]",
                law=law_text(law),
                exponent=Fraction(law.width_exponent),
                rate=None if rate is None else scaled(rate.coefficient, rate.exponent),
                rate_coefficient=None if rate is None else rate.coefficient,
                rate_exponent=None if rate is None else rate.exponent,
            )
        )
    return rows


def summary(compiled: Compiled) -> RenderableType:
    """Parameters with their powers of n, and counts of values by instruction and by step, as tables."""
    facts = summary_dict(compiled)
    table = Table(title="Parameters", title_justify="left")
    for heading in ("parameter", "axes", "entry at initialisation", "power of n", "learning rate", "power of n"):
        table.add_column(heading)
    for row in parameters(compiled):
        rate_power = "-" if row.rate_exponent is None else str(row.rate_exponent)
        coefficient = "-" if row.rate_coefficient is None else number(row.rate_coefficient)
        table.add_row(Text(row.name), Text(row.shape), Text(row.law), str(row.exponent), coefficient, rate_power)
    counts = Table(title="Values by instruction", title_justify="left")
    counts.add_column("instruction")
    counts.add_column("values", justify="right")
    for name, count in facts["instructions"].items():
        counts.add_row(name, str(count))
    steps = Table(title="Values by step", title_justify="left")
    for heading in ("step", "values", "products", "with Ż"):
        steps.add_column(heading, justify="right")
    for row in facts["by_step"]:
        steps.add_row(*(str(row[key]) for key in ("step", "values", "products", "with_response")))
    depth = f"series kept to n^(-{compiled.compilation.depth}) relative to their leading terms"
    lines = [f"activations: {', '.join(compiled.activations) or 'none'}", depth]
    lines += [f"{name} grows like {power(e)}: no limiting kernel" for name, e in compiled.compilation.growing.items()]
    return Group(*(Text(line) for line in (_headline(compiled), *lines)), table, counts, steps)


def summary_dict(compiled: Compiled) -> dict[str, Any]:
    """The facts of :func:`summary` as plain values."""
    program = compiled.program
    found = products(program)
    count = Counter(node.op.mnemonic for node in program.nodes)
    by_step = []
    for step in range(compiled.steps + 1):
        nodes = [node for node in program.nodes if step_of(program, node) == step]
        made = [found[node] for node in nodes if node in found]
        by_step.append(
            {
                "step": step,
                "values": len(nodes),
                "products": len(made),
                "with_response": sum(p.has_response for p in made),
            }
        )
    return {
        "values": len(program),
        "steps": compiled.steps,
        "depth": str(compiled.compilation.depth),
        "activations": list(compiled.activations),
        "growing": {name: str(e) for name, e in compiled.compilation.growing.items()},
        "parameters": [
            {
                "name": row.name,
                "axes": row.shape,
                "law": row.law,
                "exponent": str(row.exponent),
                "learning_rate": row.rate_coefficient,
                "learning_rate_exponent": None if row.rate_exponent is None else str(row.rate_exponent),
            }
            for row in parameters(compiled)
        ],
        "instructions": dict(sorted(count.items(), key=lambda item: (-item[1], item[0]))),
        "by_step": by_step,
    }


def _headline(compiled: Compiled) -> str:
    kinds = Counter(node.kind for node in compiled.program.nodes)
    found = products(compiled.program).values()
    gaussians = sum(isinstance(node.op, Gaussian) for node in compiled.program.nodes)
    text = (
        f"{len(compiled.program)} values: {kinds['vector']} vectors, {kinds['scalar']} scalars "
        f"({gaussians} Gaussian), initial matrices: {kinds['matrix']}; products with them: {len(found)}, "
        f"with a response Ż: {sum(p.has_response for p in found)}"
    )
    return f"Tensor program of {compiled.steps} training steps. {text}"


def _parameter_line(row: ParameterRow) -> str:
    entry = row.law if row.exponent == 0 else f"{power(row.exponent)} · {row.law}"
    rate = "" if row.rate is None else f", learning rate {row.rate}"
    return f"'{row.name}' {row.shape}: entries {entry}{rate}"


def _product_lines(product: Product, names: Mapping[Node, str]) -> list[str]:
    x, scale = symbol(product.x, names), "" if product.scale == 1 else f"{number(product.scale)} "
    gaussian = f"Ẑ ~ N(0, {scale}E[{x} {x}ᵀ])"
    if product.family:
        gaussian += f", jointly with {_listed([f'Ẑ{names[node]}' for node in product.family])}"
    live = [r for r in product.responses if not r.odd]
    terms = [f"{scale}{symbol(r.y, names)} E[∂{x}/∂Ẑ{names[r.product]}]" for r in live]
    transposed = names[product.matrix] + ("" if product.transpose else "ᵀ")
    lines = [gaussian]
    if not product.responses:
        lines.append(f"Ż = 0: {x} is no function of an earlier product with {transposed}")
    elif not live:
        lines += [f"Ż = 0: E[∂{x}/∂Ẑ{names[r.product]}] is odd in {_quoted(r.odd)}" for r in product.responses]
    else:
        lines.append(f"Ż = {terms[0]}")
        lines += [f"  + {term}" for term in terms[1:]]
    return lines


def _gaussian_line(node: Node, names: Mapping[Node, str]) -> str:
    psi = " ".join(symbol(x, names) for x in node.operands)
    return f"Gaussian scalar: E[{psi}] = 0 by parity; covariance E[ψ ψ'] with every ψ = {psi} of such a sum"


def _users(program: Program, node: Node, names: Mapping[Node, str]) -> str:
    users = [names[other] for other in program.nodes if node in other.operands]
    return f"{names[node]} is used by {_listed(users)}" if users else f"{names[node]} is used by no other value"


def _shown(name: str, output: Output, chosen: set[Node], step: int | None, value: str | None, program: Program) -> bool:
    if value is not None:
        return any(node is find_value(program, value) for _, node in output.terms)
    return step is None or _output_step(name) == str(step)


def _output_step(name: str) -> str:
    """The step in ``loss/<t>`` and in ``kernel/<activation>/<t>/<block>``."""
    parts = name.split("/")
    return parts[-2] if parts[0] in ("kernel", "change") else parts[-1]


def _listed(items: list[str]) -> str:
    more = f" and {len(items) - _MOST} more" if len(items) > _MOST else ""
    return ", ".join(items[:_MOST]) + more


def _quoted(items: Iterable[str]) -> str:
    return ", ".join(f"'{item}'" for item in sorted(items))


def _size(size: Size) -> str:
    if size.power == 0:
        return str(size.coefficient)
    return ("" if size.coefficient == 1 else f"{size.coefficient} ") + ("n" if size.power == 1 else f"n^{size.power}")
