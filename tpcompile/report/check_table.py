"""The table of a check: distances by width, slopes and z-scores."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from tpcompile.check import CheckReport


def check_table(report: CheckReport) -> RenderableType:
    """Two tables (single draws, extrapolated means), notes and the verdict with its criterion."""
    draws = Table(title=f"RMS distance of one network from the limit ({report.seeds} seeds)", title_justify="left")
    draws.add_column("quantity")
    for width in report.widths:
        draws.add_column(f"n = {width}", justify="right")
    draws.add_column("slope", justify="right")
    means = Table(title=f"Mean, extrapolated in n^-p, p = {_listed(report.powers)}", title_justify="left")
    means.add_column("quantity")
    for width in report.widths:
        means.add_column(f"n = {width}", justify="right")
    for heading in ("n → ∞", "± s.e.", "size", "max |z|", "rms z"):
        means.add_column(heading, justify="right")
    for quantity in report.quantities:
        slope = quantity.slope
        text = "-" if slope is None else f"{slope.slope:.2f} ± {slope.stderr:.2f}"
        draws.add_row(
            quantity.name,
            *(f"{row.distance:.2e}" for row in quantity.rows),
            _judged(text, report.slope_passed(quantity)),
        )
        means.add_row(
            quantity.name,
            *(f"{row.mean_distance:.1e} ({row.mean_stderr:.0e})" for row in quantity.rows),
            f"{quantity.discrepancy:.1e}",
            f"{quantity.resolution:.1e}",
            f"{quantity.scale:.2g}",
            _judged(f"{abs(quantity.worst_z):.1f}", abs(quantity.worst_z) <= report.threshold),
            f"{quantity.rms_z:.2f}",
        )
    verdict = Text("passed" if report.passed else "FAILED", style="bold green" if report.passed else "bold red")
    lines = [f"note: {note}" for note in report.notes] + [f"- {failure}" for failure in report.failures]
    means.caption = "RMS difference between mean and limit; in brackets: error of the mean; size: of the limit"
    means.caption_justify = "left"
    return Group(draws, means, *(Text(line) for line in lines), Text.assemble(verdict, ": ", report.criterion))


def _judged(text: str, passed: bool) -> Text:
    return Text(text) if passed else Text(f"{text} !", style="bold red")


def _listed(powers: tuple[float, ...]) -> str:
    return ", ".join(f"{power:g}" for power in powers)
