"""``tpcompile mup``: the maximal update parametrization of a model and its optimizer."""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path
from typing import Annotated

import typer

import tpcompile
from tpcompile.cli.app import app
from tpcompile.cli.arguments import training_run
from tpcompile.cli.options import Inputs, Json, Loss, Rate, Steps, Target, Widths
from tpcompile.cli.output import check_writable
from tpcompile.cli.verify import verified
from tpcompile.errors import UsageError
from tpcompile.parametrization.advice import factor_lines
from tpcompile.report.rules import FORMATS


@app.command("mup")
def mup_command(
    target: Target,
    out: Annotated[Path | None, typer.Option(help="Write the rules as JSON.")] = None,
    form: Annotated[str, typer.Option("--format", help="text, markdown, or latex for a paper.")] = "text",
    as_json: Json = False,
    steps: Steps = None,
    loss: Loss = None,
    lr: Rate = None,
    inputs: Inputs = None,
    widths: Widths = None,
) -> None:
    """Derive how initial values and learning rates must scale with the width for every update to be maximal."""
    check_writable(out)
    with training_run(target, steps, loss, lr, inputs, widths) as (make, found):
        if form not in FORMATS:
            raise UsageError(f"there is no format '{form}'", where="--format", advice=", ".join(FORMATS))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # missing factors are printed with the rules
            rules = tpcompile.mup(make, **verified(found, steps, most=2))
    if out is not None:
        rules.to_json(out)
    factors = [{"where": f.where, "exponent": str(f.exponent)} for f in rules.factors]
    if as_json:
        print(json.dumps({"target": target, "rules": rules.to_dict(), "factors": factors}))
        return
    if form != "text":
        for line in factor_lines(rules.factors):
            print(line, file=sys.stderr)
    print(rules.table(form))
