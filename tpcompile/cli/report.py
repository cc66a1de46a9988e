"""``tpcompile report``: a page about a training setup."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

import tpcompile
from tpcompile.cli.app import app
from tpcompile.cli.arguments import training_run
from tpcompile.cli.compile import PLOT_WIDTHS
from tpcompile.cli.options import Inputs, Json, Loss, Rate, Steps, Target, Widths, integers
from tpcompile.cli.output import check_writable, progress
from tpcompile.cli.verify import verified
from tpcompile.errors import TpcompileError
from tpcompile.report.compare import widths_table
from tpcompile.report.exponents import render
from tpcompile.report.inspect import summary
from tpcompile.report.page import Section, check_extra, picture, write_page
from tpcompile.report.plot import figure_class
from tpcompile.report.tables import result_tables


@app.command("report")
def report_command(
    target: Target,
    out: Annotated[Path, typer.Option(help="The page to write.")] = Path("report.html"),
    particles: Annotated[int, typer.Option(help="Particles that stand for the coordinates of a width.")] = 16384,
    replicas: Annotated[int, typer.Option(help="Independent repetitions, for the standard errors.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the particles and of the finite runs.")] = 0,
    simulate: Annotated[
        str, typer.Option(metavar="WIDTHS", help="Train the model at these widths too; 'none' for none.")
    ] = ",".join(map(str, PLOT_WIDTHS)),
    memory: Annotated[str | None, typer.Option(help="Most memory to use, such as 4GB. [default: what is free]")] = None,
    as_json: Json = False,
    steps: Steps = None,
    loss: Loss = None,
    lr: Rate = None,
    inputs: Inputs = None,
    widths: Widths = None,
) -> None:
    """Write a page (.html) about a model and its training run: verdict, limit, picture, program.

    What has no limit is said on the page, beside the parts that can be computed.
    """
    check_writable(out)
    check_extra()
    figure_class()
    finite = () if simulate == "none" else integers(simulate, "--simulate")
    facts = {"model": target}
    sections: list[Section] = []

    def part(title: str, make: Callable[[], Any]) -> Any:
        """A part's value; where it fails, a section that says why."""
        try:
            return make()
        except TpcompileError as error:
            sections.append(Section(title, problem=f"{type(error).__name__}: {error}"))
            return None

    with training_run(target, steps, loss, lr, inputs, widths) as (make, found):
        if found.get("loss") is not None:
            report = part("Exponents", lambda: tpcompile.verify(make, **verified(found, steps)))
            if report is not None:
                facts |= {"verdict": report.verdict}
                sections.append(Section.of(f"Exponents over {report.steps} steps", render(report)))
        compiled = part("Limit", lambda: tpcompile.compile(make, **found))
        if compiled is not None:
            with progress("limit") as tick:
                arguments: Mapping[str, Any] = {"particles": particles, "replicas": replicas, "seed": seed}
                result = part("Limit", lambda: compiled.evaluate(**arguments, memory=memory, progress=tick))
            if result is not None:
                facts |= {"evaluator": f"{result.evaluator}: {result.why}"}
                runs = [compiled.simulate(width, seed=seed) for width in finite]
                sections.append(picture("Limit and finite widths" if runs else "Limit", result, runs))
                sections.append(Section.of("Numbers", result_tables(result)))
                if runs:
                    sections.append(Section.of("Finite widths", widths_table(result, runs)))
            sections.append(Section.of("Program", summary(compiled)))
    write_page(out, f"Infinite-width limit of {Path(target).name}", facts, sections)
    if as_json:
        print(json.dumps(facts | {"page": str(out), "problems": [s.problem for s in sections if s.problem]}))
    else:
        print("\n".join([*(s.problem for s in sections if s.problem), f"wrote {out}"]))
