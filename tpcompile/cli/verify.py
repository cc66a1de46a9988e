"""``tpcompile verify``: the exponents and the verdict of a training setup."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

import tpcompile
from tpcompile.cli.app import app
from tpcompile.cli.arguments import training_run
from tpcompile.cli.options import Inputs, Json, Loss, Rate, Steps, Target, Widths
from tpcompile.cli.output import check_writable, show
from tpcompile.report.exponents import render

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
    as_json: Json = False,
    steps: Steps = None,
    loss: Loss = None,
    lr: Rate = None,
    inputs: Inputs = None,
    widths: Widths = None,
) -> None:
    """Verify a parametrization: powers of the width of every value and update, the verdict, and what to change.

    At most three steps of the file's are followed unless --steps says more. Exit code 1 if training is unstable,
    trivial or undecided, or not what --require asks for. Nothing is trained.
    """
    check_writable(html)
    with training_run(target, steps, loss, lr, inputs, widths) as (make, found):
        report = tpcompile.verify(make, **verified(found, steps))
        if html is not None:
            report.to_html(html)
        if as_json:
            print(json.dumps({"target": target} | report.to_dict(), allow_nan=False))
        else:
            show(render(report))
    wanted = (require,) if require is not None else GOOD
    if report.verdict not in wanted:
        raise typer.Exit(1)
