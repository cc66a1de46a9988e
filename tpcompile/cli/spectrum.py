"""``tpcompile spectrum``: limiting moments and spectral density of random matrices."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import tpcompile
from tpcompile.cli.app import app
from tpcompile.cli.options import Json
from tpcompile.cli.output import check_writable, show, writing_figure
from tpcompile.errors import UsageError
from tpcompile.spectra import Moments
from tpcompile.spectra.density import ORDERS
from tpcompile.userfile import user_file

Function = Annotated[
    str,
    typer.Argument(metavar="FILE.py:fn", help="A file and its function of random matrices and a vector, the last."),
]


@app.command("spectrum")
def spectrum_command(
    target: Function,
    order: Annotated[
        int | None, typer.Option(help="Number of moments; 24, or what the density needs.", show_default=False)
    ] = None,
    shape: Annotated[
        list[str] | None,
        typer.Option(help="Lengths of an argument over n: X=1/2,1 is n/2 by n, u=1 a vector. May be repeated."),
    ] = None,
    variance: Annotated[
        list[str] | None, typer.Option(help="n times the variance of a matrix's entries: X=1/3. May be repeated.")
    ] = None,
    only_moments: Annotated[bool, typer.Option("--moments", help="The moments alone, of any operator.")] = False,
    plot: Annotated[Path | None, typer.Option(help="Write a figure (.png, .pdf, .svg).")] = None,
    width: Annotated[int, typer.Option(help="Width of the finite matrix in the figure.")] = 512,
    seed: Annotated[int, typer.Option(help="Seed of that matrix.")] = 0,
    as_json: Json = False,
) -> None:
    """Compute limiting moments and the spectral density of an operator made of random matrices.

    Matrices are n by n with independent entries of variance 1/n, unless options say otherwise.
    """
    check_writable(plot)
    if only_moments and plot is not None:
        raise UsageError("--moments and --plot exclude each other")
    options: dict[str, Any] = {
        "shapes": {name: [_fraction(x, "--shape") for x in text.split(",")] for name, text in _named(shape, "--shape")},
        "variances": {name: _fraction(text, "--variance") for name, text in _named(variance, "--variance")},
    }
    with user_file(target) as setup:
        if only_moments:
            found = tpcompile.moments(setup.make, ORDERS[0] if order is None else order, **options)
            if as_json:
                values = [m if isinstance(m, float) else str(m) for m in found]
                print(json.dumps({"target": target, "moments": values}, allow_nan=False))
            else:
                show(_table(found))
            return
        spectrum = tpcompile.spectrum(setup.make, order, **options)
        if plot is not None:
            with writing_figure(plot):
                spectrum.plot(plot, width, seed)
    if as_json:
        print(json.dumps({"target": target} | spectrum.to_dict(), allow_nan=False))
        return
    show(_table(spectrum.moments))
    if spectrum.edges is not None:
        ends = ", and between ".join(f"{low:.10g} and {high:.10g}" for low, high in spectrum.intervals)
        print(f"density between {ends}, estimated error {spectrum.error:.1e}")
    for x, mass in spectrum.atoms:
        print(f"atom at {x:.10g} of mass {mass:.10g}")
    if plot is not None:
        print(f"wrote {plot}")


def _table(moments: Moments) -> Table:
    table = Table(title="Moments", title_justify="left")
    for head in ("k", "lim tr P^k / n", "of it response terms"):
        table.add_column(head, justify="right")
    for k, (m, dot) in enumerate(zip(moments, moments.dot, strict=True)):
        table.add_row(str(k), *(f"{x:.10g}" if isinstance(x, float) else str(x) for x in (m, dot)))
    return table


def _named(given: list[str] | None, option: str) -> list[tuple[str, str]]:
    found = []
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name or not value:
            raise UsageError(f"expected NAME=VALUE, found '{text}'", where=option)
        found.append((name.strip(), value))
    return found


def _fraction(text: str, option: str) -> Fraction:
    try:
        return Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise UsageError(f"expected a number such as 1/2, found '{text}'", where=option) from None
