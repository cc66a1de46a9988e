"""``tpcompile compile``: the limit of a training run."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import torch
import typer

from tpcompile.cli.app import app
from tpcompile.cli.arguments import compiled
from tpcompile.cli.options import Dtype, Inputs, Json, Loss, Rate, Steps, Target, Widths, integers
from tpcompile.cli.output import check_writable, progress, show, writing_figure
from tpcompile.results import LimitResult, SimulationResult

PLOT_WIDTHS = (64, 512)


class OutputInit(StrEnum):
    """What a random output at initialisation is conditioned on."""

    zero = "zero"


@app.command("compile")
def compile_command(
    target: Target,
    steps: Steps = None,
    loss: Loss = None,
    lr: Rate = None,
    inputs: Inputs = None,
    widths: Widths = None,
    particles: Annotated[int, typer.Option(help="Particles that stand for the coordinates of a width.")] = 16384,
    replicas: Annotated[int, typer.Option(help="Independent repetitions, for the standard errors.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the particles and of the finite runs.")] = 0,
    dtype: Annotated[Dtype, typer.Option(help="Precision.")] = Dtype.float64,
    ensemble: Annotated[int | None, typer.Option(help="Draws of a random output at initialisation.")] = None,
    output_init: Annotated[
        OutputInit | None, typer.Option(help="Condition a random output at initialisation on zero.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a figure (.png, .pdf, .svg).")] = None,
    simulate: Annotated[
        str | None,
        typer.Option(metavar="WIDTHS", help="Train the model at these widths too, such as 256,1024; 'none' for none."),
    ] = None,
    save: Annotated[Path | None, typer.Option(help="Write the whole result (.npz) for tpcompile.load_result.")] = None,
    ntk: Annotated[bool, typer.Option("--ntk", help="Evaluate the tangent kernel too.")] = False,
    memory: Annotated[str | None, typer.Option(help="Most memory to use, such as 4GB. [default: what is free]")] = None,
    as_json: Json = False,
) -> None:
    """Compile a model and its training run, and evaluate its infinite-width limit.

    FILE.py may define inputs, targets, test_inputs, loss, optimizer and steps; options override them.
    """
    for path in (plot, save):
        check_writable(path)
    run_widths = _finite_widths(simulate, plot is not None)
    with compiled(target, steps, loss, lr, inputs, widths) as model:
        condition = None if output_init is None else output_init.value
        with progress("limit") as tick:
            result = model.evaluate(
                particles=particles,
                replicas=replicas,
                seed=seed,
                dtype=getattr(torch, dtype.value),
                ensemble=ensemble,
                output_init=condition,
                memory=memory,
                progress=tick,
            )
        if ntk:
            result.ntk()
        runs = [model.simulate(width, seed=seed, output_init=condition) for width in run_widths]
        if save is not None:
            result.save(save, ntk=ntk)
        if plot is not None:
            from tpcompile.report.plot import plot_training

            with writing_figure(plot):
                plot_training(result, runs, plot)
        if as_json:
            print(_json_text(target, result, runs, ntk))
        else:
            _print_result(result, runs, ntk, [path for path in (plot, save) if path is not None])


def _finite_widths(text: str | None, plotted: bool) -> tuple[int, ...]:
    if text is None:
        return PLOT_WIDTHS if plotted else ()
    return () if text == "none" else integers(text, "--simulate")


def _json_text(target: str, result: LimitResult, runs: list[SimulationResult], ntk: bool) -> str:
    from tpcompile.report.tables import result_dict

    content = {"target": target} | result_dict(result, ntk=ntk)
    if runs:
        content["simulations"] = [result_dict(run) for run in runs]
    return json.dumps(content, allow_nan=False)


def _print_result(result: LimitResult, runs: list[SimulationResult], ntk: bool, written: list[Path]) -> None:
    from tpcompile.report.compare import ntk_table, widths_table
    from tpcompile.report.tables import result_tables

    show(result_tables(result))
    if ntk:
        show(ntk_table(result))
    if runs:
        show(widths_table(result, runs))
    for path in written:
        print(f"wrote {path}")
