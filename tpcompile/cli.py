"""The command line: ``tpcompile compile|inspect FILE.py:make``.

Exit code 0; 2 for bad usage or input, with one line on stderr that says what and where.
"""

from __future__ import annotations

import difflib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console, RenderableType

import tpcompile
from tpcompile.compiled import Compiled
from tpcompile.errors import TpcompileError, UsageError
from tpcompile.results import LimitResult, SimulationResult
from tpcompile.userfile import NAMES, Setup, one_line, place_in, read_data, user_file

PLOT_WIDTHS = (64, 512)

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A compiler for the infinite-width limit of neural networks and their training.",
)


class Dtype(StrEnum):
    """Precision of the particles."""

    float64 = "float64"
    float32 = "float32"


class OutputInit(StrEnum):
    """What a random output at initialisation is conditioned on."""

    zero = "zero"


Target = Annotated[
    str, typer.Argument(metavar="FILE.py:make", help="A file and its function of the width that returns a model.")
]
Steps = Annotated[int | None, typer.Option(help="Training steps. [default: the file's 'steps', else 0]")]
Loss = Annotated[str | None, typer.Option(help="A loss of torch.nn.functional, such as mse_loss.")]
Rate = Annotated[float | None, typer.Option("--lr", help="SGD with this rate, where make returns a bare module.")]
Inputs = Annotated[
    Path | None, typer.Option(help="An .npz, .npy or .pt file with inputs, and targets and test_inputs where needed.")
]
Widths = Annotated[str | None, typer.Option(help="Probe widths at which the model is traced, such as 16,32,64.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def _version(asked: bool) -> None:
    if asked:
        print(f"tpcompile {tpcompile.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """A compiler for the infinite-width limit of neural networks and their training."""


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
        _check_writable(path)
    run_widths = _finite_widths(simulate, plot is not None)
    with _compiled(target, steps, loss, lr, inputs, widths) as compiled:
        condition = None if output_init is None else output_init.value
        with _progress("limit") as tick:
            result = compiled.evaluate(
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
        runs = [compiled.simulate(width, seed=seed, output_init=condition) for width in run_widths]
        if save is not None:
            result.save(save, ntk=ntk)
        if plot is not None:
            _plot(result, runs, plot)
        if as_json:
            print(_json_text(target, result, runs, ntk))
        else:
            _print_result(result, runs, ntk, [path for path in (plot, save) if path is not None])


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
    _check_writable(graph)
    with _compiled(target, steps, loss, lr, inputs, widths) as compiled:
        if graph is not None:
            graph.write_text(graph_dot(compiled.program), encoding="utf-8")
        if as_json:
            facts = {"summary": summary_dict(compiled)} | ({} if summary else graph_dict(compiled.program))
            print(json.dumps(facts, allow_nan=False))
        elif summary:
            _show(summary_tables(compiled))
        elif text:
            print(compiled.program, end="")
        elif graph is None or at_step is not None or value is not None:
            print(program_text(compiled, at_step, value), end="")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        args = list(sys.argv[1:] if arguments is None else arguments)
        code = app(args=args, prog_name="tpcompile", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except TpcompileError as error:
        return _fail(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        return _fail("interrupted")
    except Exception as error:
        if hasattr(error, "format_message"):  # usage errors of the command line's own parser
            return _fail(error.format_message() or "missing command; see tpcompile --help")  # type: ignore[attr-defined]
        if os.environ.get("TPCOMPILE_TRACEBACK"):
            raise
        if isinstance(error, OSError):
            return _fail(one_line(error))
        where = place_in(error, Path(tpcompile.__file__).parent)
        return _fail(f"internal error, please report it: {one_line(error)} at {where}")


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


@contextmanager
def _compiled(
    target: str, steps: int | None, loss: str | None, lr: float | None, inputs: Path | None, widths: str | None
) -> Iterator[Compiled]:
    """The compiled model of a file; its folder stays on ``sys.path`` inside the context."""
    with user_file(target) as setup:
        arguments = _arguments(setup, target, steps, loss, lr, inputs)
        chosen = None if widths is None else _integers(widths, "--widths")
        yield tpcompile.compile(setup.make, **arguments, widths=chosen)


def _arguments(
    setup: Setup, target: str, steps: int | None, loss: str | None, lr: float | None, inputs: Path | None
) -> dict[str, Any]:
    arguments = dict(setup.arguments)
    if inputs is not None:
        arguments = {k: v for k, v in arguments.items() if k not in ("targets", "test_inputs")} | read_data(inputs)
    if arguments.get("inputs") is None:
        raise UsageError(
            f"{target.rpartition(':')[0] or target} defines no 'inputs'",
            advice="define inputs = <tensor> in it, or give --inputs FILE.npz",
        )
    if loss is not None:
        arguments["loss"] = _loss(loss)
    if lr is not None:
        arguments["optimizer"] = lambda params: torch.optim.SGD(params, lr=lr)
    if steps is not None:
        arguments["steps"] = steps
    return {name: arguments[name] for name in NAMES if name in arguments}


def _loss(name: str) -> Callable[..., Any]:
    functions = torch.nn.functional
    found = getattr(functions, name, None)
    if callable(found) and not name.startswith("_"):
        return found
    known = [n for n in dir(functions) if n.endswith("_loss") or n.endswith("entropy")]
    near = difflib.get_close_matches(name, known, n=1)
    raise UsageError(
        f"torch.nn.functional has no '{name}'", where="--loss", advice=f"did you mean '{near[0]}'?" if near else None
    )


def _integers(text: str, option: str) -> tuple[int, ...]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"expected widths such as 256,1024, found '{text}'", where=option)
    return tuple(int(part) for part in parts)


def _finite_widths(text: str | None, plotted: bool) -> tuple[int, ...]:
    if text is None:
        return PLOT_WIDTHS if plotted else ()
    return () if text == "none" else _integers(text, "--simulate")


def _check_writable(path: Path | None) -> None:
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise UsageError(
            f"cannot write {path}: " + ("it is a folder" if path.is_dir() else "its folder does not exist")
        )


def _plot(result: LimitResult, runs: list[SimulationResult], path: Path) -> None:
    from tpcompile.report.plot import plot_training

    try:
        plot_training(result, runs, path)
    except ValueError as error:  # matplotlib's word for an unknown file type
        if isinstance(error, TpcompileError):
            raise
        raise UsageError(f"cannot write {path}: {one_line(error)}", where="--plot") from error


@contextmanager
def _progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _json_text(target: str, result: LimitResult, runs: list[SimulationResult], ntk: bool) -> str:
    from tpcompile.report.tables import result_dict

    content = {"target": target} | result_dict(result, ntk=ntk)
    if runs:
        content["simulations"] = [result_dict(run) for run in runs]
    return json.dumps(content, allow_nan=False)


def _print_result(result: LimitResult, runs: list[SimulationResult], ntk: bool, written: list[Path]) -> None:
    from tpcompile.report.compare import ntk_table, widths_table
    from tpcompile.report.tables import result_tables

    _show(result_tables(result))
    if ntk:
        _show(ntk_table(result))
    if runs:
        _show(widths_table(result, runs))
    for path in written:
        print(f"wrote {path}")


def _show(renderable: RenderableType) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)  # tables as wide as they are
    console.print(renderable, highlight=False, markup=False)
