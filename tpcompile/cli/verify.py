"""``tpcompile verify``: the exponents and the verdict of a training setup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import tpcompile
from tpcompile.cli.app import app
from tpcompile.cli.arguments import training_run
from tpcompile.cli.options import Inputs, Json, Loss, Rate, Steps, Target, Widths, integers
from tpcompile.cli.output import check_writable, show, writing_figure
from tpcompile.report.exponents import render, render_check

GOOD = ("maximal update", "feature learning", "kernel regime")
STEPS = 3


def verified(found: dict[str, Any], steps: int | None, most: int = STEPS) -> dict[str, Any]:
    """The arguments of ``tpcompile.verify``: no test inputs, and ``most`` steps unless the file has fewer."""
    chosen = steps if steps is not None else min(found.get("steps") or most, most)
    return {name: value for name, value in found.items() if name != "test_inputs"} | {"steps": chosen}


@app.command("verify")
def verify_command(
    target: Target,
    html: Annotated[Path | None, typer.Option(help="Write the report as a page (.html).")] = None,
    require: Annotated[
        str | None, typer.Option(help="The verdict that is wanted, such as 'maximal update'; another one exits with 1.")
    ] = None,
    empirical: Annotated[
        bool, typer.Option("--empirical", help="Train at real widths too, and print the slopes beside the exponents.")
    ] = False,
    advice: Annotated[
        bool, typer.Option(help="Derive what maximal updates would need, and verify it (several traces more).")
    ] = True,
    plot: Annotated[Path | None, typer.Option(help="Draw the empirical check (.png, .svg, .pdf).")] = None,
    train_widths: Annotated[str, typer.Option(help="Widths of the empirical check.")] = "64,128,256,512,1024",
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of the empirical check at each width.")] = 3,
    as_json: Json = False,
    steps: Steps = None,
    loss: Loss = None,
    lr: Rate = None,
    inputs: Inputs = None,
    widths: Widths = None,
) -> None:
    """Verify a parametrization: powers of the width of every value and update, the verdict, and what to change.

    At most three steps of the file's are followed unless --steps says more. Exit code 1 if training is unstable,
    trivial or undecided, or not what --require asks for. Nothing is trained but for --empirical (or --plot).
    """
    check_writable(html)
    check_writable(plot)
    sizes = integers(train_widths, "--train-widths")
    with training_run(target, steps, loss, lr, inputs, widths) as (make, found):
        arguments = verified(found, steps)
        report = tpcompile.verify(make, **arguments, advice=advice)
        check = None
        if empirical or plot is not None:
            trained = {name: value for name, value in arguments.items() if name != "widths"}
            check = tpcompile.coordinate_check(make, **trained, widths=sizes, seeds=seeds)
        if plot is not None and check is not None:
            with writing_figure(plot):
                check.picture(report, plot)
        if html is not None:
            report.to_html(html)
        if as_json:
            measured = {} if check is None else {"empirical": check.to_list(report)}
            print(json.dumps({"target": target} | report.to_dict() | measured, allow_nan=False))
        else:
            show(render(report))
            if check is not None:
                show(render_check(check, report))
    wanted = (require,) if require is not None else GOOD
    if report.verdict not in wanted:
        raise typer.Exit(1)
