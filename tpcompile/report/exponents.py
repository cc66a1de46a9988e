"""Tables of exponents: the report of ``tpcompile verify`` in a terminal, as plain text, and as a page."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tpcompile.parametrization.report import plain
from tpcompile.parametrization.sizes import ZERO
from tpcompile.parametrization.takeover import about

if TYPE_CHECKING:
    from tpcompile.parametrization.empirical import CoordinateCheck
    from tpcompile.parametrization.report import Report
    from tpcompile.parametrization.sizes import Size

_COLOURS = {
    "maximal update": "bold green",
    "feature learning": "green",
    "kernel regime": "yellow",
    "trivial": "yellow",
    "unstable": "bold red",
    "undecided": "magenta",
}


def report_text(report: Report, width: int = 120) -> str:
    """The report without colours."""
    console = Console(file=io.StringIO(), width=width, force_terminal=False, color_system=None)
    console.print(render(report))
    out = console.file
    assert isinstance(out, io.StringIO)
    return out.getvalue().rstrip()


def write_html(report: Report, path: str | Path) -> None:
    """The report as one HTML page."""
    console = Console(file=io.StringIO(), width=140, record=True, force_terminal=True)
    console.print(render(report))
    console.save_html(str(path))


def render(report: Report) -> RenderableType:
    """Verdict, tables and advice for rich."""
    parts: list[RenderableType] = [Text.assemble("verdict: ", (report.verdict, _COLOURS[report.verdict]))]
    if report.verdict_below is not None and report.takeover_width is not None:
        until = f"up to {about(report.takeover_width)}, where an epsilon takes over from the gradients: "
        parts.append(Text.assemble(until, (report.verdict_below, _COLOURS[report.verdict_below])))
    if report.first_problem:
        parts.append(Text(f"first problem: {report.first_problem}", style="red"))
    steps = range(1, report.steps + 1)
    table = Table(
        "value", "start", *(f"change {t}" for t in steps), title="activations: powers of n", title_justify="left"
    )
    for name in (*report.activations, "outputs", "loss"):
        changes = (_cell(report.changes, name, t, limit=0) for t in steps)
        table.add_row(name, _cell(report.values, name, 0, limit=0), *changes)
    parts.append(table)
    table = Table(
        "parameter", "init", "lr", "gradient", *(f"effect {t}" for t in steps), title="parameters: powers of n",
        title_justify="left",
    )  # fmt: skip
    for name, p in report.parameters.items():
        gradient = plain(next((s for s in p.gradient if s.exponent != -math.inf), ZERO))
        effects = [_size(s, limit=0) for s in p.effect] or [Text("-")] * report.steps
        rate = "not trained" if p.lr_exponent is None else str(p.lr_exponent)
        table.add_row(name, str(p.init_exponent), rate, gradient if p.gradient else "-", *effects)
    parts.append(table)
    if report.advice:
        parts.append(Text(f"for maximal updates (advice, applied: {report.advised}):"))
        parts += [Text(f"- {line}") for line in report.advice]
    parts += [Text(f"note: {line}", style="dim") for line in report.notes]
    parts += [Text(f"open: {line}", style="magenta") for line in report.open_values[:3]]
    if len(report.open_values) > 3:
        parts.append(Text(f"open: {len(report.open_values) - 3} values more", style="magenta"))
    parts += [Text(f"{words}: {found}", style="magenta") for words, found in report.cases.items()]
    if report.undecided:
        first = next(iter(report.undecided.values()))
        parts.append(Text(f"not followed: {len(report.undecided)} operations, the first: {first}", style="magenta"))
    return Group(*parts)


def render_check(check: CoordinateCheck, report: Report) -> RenderableType:
    """Slopes of an empirical check beside the exact exponents, for rich."""
    widths = f"{check.widths[0]} to {check.widths[-1]}, {check.seeds} seeds"
    table = Table(
        "value", "step", "exact", "slope", "", title=f"empirical coordinate check: widths {widths}",
        title_justify="left",
    )  # fmt: skip
    words = {
        True: Text("agrees", style="green"),
        False: Text("differs at these widths", style="bold red"),
        None: Text("not decided"),
    }
    for quantity, name, step, exact, slope, agree in check.rows(report):
        table.add_row(name, "start" if quantity == "value" else f"change {step}", exact, str(slope), words[agree])
    return table


def _cell(sizes: Mapping[tuple[str, int], Size], name: str, step: int, limit: int) -> Text:
    size = sizes.get((name, step))
    return Text("-") if size is None else _size(size, limit)


def _size(size: Size, limit: int) -> Text:
    if size.exponent is None:
        return Text(str(size), style="magenta")
    if size.exponent == -math.inf:
        return Text("zero", style="dim")
    return Text(
        str(size.exponent), style="bold red" if size.exponent > limit else "" if size.exponent == limit else "dim"
    )
