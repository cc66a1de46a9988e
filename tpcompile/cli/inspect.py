"""``tpcompile inspect``: the tensor program of a training run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tpcompile.cli.app import app
from tpcompile.cli.arguments import compiled
from tpcompile.cli.options import Inputs, Json, Loss, Rate, Steps, Target, Widths
from tpcompile.cli.output import check_writable, show
from tpcompile.errors import UsageError


@app.command("inspect")
def inspect_command(
    target: Target,
    at_step: Annotated[int | None, typer.Option("--step", help="Only the values made at this step.")] = None,
    value: Annotated[
        str | None, typer.Option(help="One value, such as %12 or loss/1, and everything that it is made of.")
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="Counts, parameters with their powers of n, activations.")
    ] = False,
    text: Annotated[bool, typer.Option("--text", help="The raw text, which tpcompile.ir.parse reads back.")] = False,
    graph: Annotated[Path | None, typer.Option(help="Write the program's graph for Graphviz (.dot).")] = None,
    as_json: Json = False,
    steps: Steps = None,
    loss: Loss = None,
    lr: Rate = None,
    inputs: Inputs = None,
    widths: Widths = None,
) -> None:
    """Print the tensor program of a model and its training run, in the notation of the Tensor Programs papers."""
    from tpcompile.report.graph import graph_dict, graph_dot
    from tpcompile.report.inspect import program_text, summary_dict
    from tpcompile.report.inspect import summary as summary_tables

    if sum([summary, text, as_json and not summary, at_step is not None or value is not None]) > 1:
        raise UsageError("--summary, --text, --json and --step or --value exclude each other")
    check_writable(graph)
    with compiled(target, steps, loss, lr, inputs, widths) as model:
        if graph is not None:
            graph.write_text(graph_dot(model.program), encoding="utf-8")
        if as_json:
            facts = {"summary": summary_dict(model)} | ({} if summary else graph_dict(model.program))
            print(json.dumps(facts, allow_nan=False))
        elif summary:
            show(summary_tables(model))
        elif text:
            print(model.program, end="")
        elif graph is None or at_step is not None or value is not None:
            print(program_text(model, at_step, value), end="")
