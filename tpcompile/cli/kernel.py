"""``tpcompile kernel``: covariance and tangent kernel of a model's data."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch import Tensor

import tpcompile
from tpcompile.cli.app import app
from tpcompile.cli.arguments import sgd, with_data
from tpcompile.cli.options import Dtype, Json, Rate, Target, Widths, integers
from tpcompile.cli.output import check_writable, progress, show, writing_figure
from tpcompile.errors import UsageError
from tpcompile.evaluate.memory import available
from tpcompile.report.kernel import KernelView, kernel_dict, kernel_tables
from tpcompile.userfile import user_file


class Which(StrEnum):
    """The kernels to compute."""

    nngp = "nngp"
    ntk = "ntk"
    both = "both"


class Evaluator(StrEnum):
    """How expectations are computed."""

    exact = "exact"
    particles = "particles"


@app.command("kernel")
def kernel_command(
    target: Target,
    which: Annotated[Which, typer.Option(help="Covariance, tangent kernel, or both.")] = Which.both,
    data: Annotated[
        Path | None, typer.Option("--inputs", "--data", help="An .npz, .npy or .pt file with inputs (and test_inputs).")
    ] = None,
    cross: Annotated[
        bool,
        typer.Option("--cross", help="Of test_inputs (rows) with inputs (columns), not of inputs alone."),
    ] = False,
    diagonal: Annotated[bool, typer.Option("--diagonal", help="Only of each input with itself.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(help="Write .npz; or .zarr, block by block, where the same command goes on if stopped."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write a figure (.png, .pdf, .svg).")] = None,
    lr: Rate = None,
    dtype: Annotated[Dtype, typer.Option(help="Precision.")] = Dtype.float64,
    block: Annotated[int | None, typer.Option(help="Side of the blocks that are computed at a time.")] = None,
    samples: Annotated[int, typer.Option(help="Draws, where expectations are sampled.")] = 16384,
    replicas: Annotated[int, typer.Option(help="Independent repetitions of them, for the standard errors.")] = 4,
    seed: Annotated[int, typer.Option(help="Seed of the draws.")] = 0,
    widths: Widths = None,
    evaluator: Annotated[
        Evaluator, typer.Option(help="Integrals over few variables, or estimates for models that have none.")
    ] = Evaluator.exact,
    as_json: Json = False,
) -> None:
    """Compute the infinite-width covariance (NNGP) and tangent kernel (NTK) of a model at initialisation.

    FILE.py may define inputs, test_inputs and optimizer; options override them. Learning rates of an optimizer scale
    the parameters' shares of the tangent kernel.
    """
    _check_files(out, plot, diagonal, cross)
    with user_file(target) as setup:
        found = with_data(setup, target, data)
        x1, x2 = _batches(found, cross)
        optimizer = found.get("optimizer") if lr is None else sgd(lr)
        chosen = None if widths is None else integers(widths, "--widths")
        kernel = tpcompile.kernel(setup.make, x1[0], optimizer=optimizer, widths=chosen, evaluator=evaluator.value)
        options: dict[str, Any] = {
            "dtype": getattr(torch, dtype.value),
            "diagonal": diagonal,
            "samples": samples,
            "replicas": replicas,
            "seed": seed,
        }
        if block is not None:
            options["block"] = block
        views = _computed(kernel, x1, x2, which, out, options)
        written = [path for path in (out, plot) if path is not None]
        if out is not None and out.suffix == ".npz":
            _write(out, views)
        if plot is not None:
            from tpcompile.report.plot_kernel import plot_kernels

            with writing_figure(plot):
                plot_kernels(views, plot)
        if as_json:
            content = {"target": target} | kernel_dict(views, kernel.forms, values=out is None)
            print(json.dumps(content | {"out": None if out is None else str(out)}, allow_nan=False))
            return
        show(kernel_tables(views, kernel.forms))
        for path in written:
            print(f"wrote {path}")


def _computed(
    kernel: tpcompile.Kernel, x1: Tensor, x2: Tensor | None, which: Which, out: Path | None, options: dict[str, Any]
) -> list[KernelView]:
    """The kernels in memory, or in ``out`` where that is a zarr group."""
    names = ("nngp", "ntk") if which is Which.both else (which.value,)
    exponents = {name: kernel.pairs(name).exponent for name in names}
    errors: Any = None
    if out is not None and out.suffix == ".zarr":
        values = kernel.to_zarr(x1, out, x2, which.value, **options)
    else:
        _check_memory(kernel, names, x1, x2, options)
        with progress("kernel") as tick:
            values = kernel(x1, x2, which.value, progress=tick, errors=kernel.sampled, **options)
        if kernel.sampled:
            values, errors = values
    several = which is Which.both
    return [
        KernelView(
            name,
            exponents[name],
            getattr(values, name) if several else values,
            getattr(errors, name, None) if several else errors,
            options["diagonal"],
        )
        for name in names
    ]


def _check_files(out: Path | None, plot: Path | None, diagonal: bool, cross: bool) -> None:
    """What can be said before anything is compiled."""
    check_writable(plot)
    if out is not None:
        if out.suffix not in (".npz", ".zarr"):
            raise UsageError(f"cannot write {out}: expected .npz or .zarr", where="--out")
        check_writable(out if out.suffix == ".npz" else out.absolute().parent / "file")
    if diagonal and cross:
        raise UsageError("--diagonal and --cross exclude each other")
    if diagonal and plot is not None:
        raise UsageError("a figure is of a matrix: --plot and --diagonal exclude each other")


def _batches(found: dict[str, Any], cross: bool) -> tuple[Tensor, Tensor | None]:
    """Inputs of rows, and of columns where they are others."""
    inputs = _batch(found["inputs"], "inputs")
    if not cross:
        return inputs, None
    if found.get("test_inputs") is None:
        raise UsageError("there are no test_inputs beside the inputs", where="--cross")
    return _batch(found["test_inputs"], "test_inputs"), inputs


def _batch(value: Any, name: str) -> Tensor:
    """A batch of inputs; minibatches of a training run are joined."""
    parts = value if isinstance(value, list | tuple) else [value]
    if not parts or not all(isinstance(x, Tensor) and x.dim() > 0 and x.shape[1:] == parts[0].shape[1:] for x in parts):
        raise UsageError(f"{name} must be a tensor (N, ...), or a list of such of one shape")
    whole = torch.cat(list(parts))
    if not len(whole):
        raise UsageError(f"{name} is empty")
    return whole


def _check_memory(
    kernel: tpcompile.Kernel, names: tuple[str, ...], x1: Tensor, x2: Tensor | None, options: dict[str, Any]
) -> None:
    """UsageError for matrices that do not fit, with what does."""
    pairs = len(x1) * (1 if options["diagonal"] else len(x1 if x2 is None else x2))
    entries = sum(int(np.prod(kernel.pairs(name).positions, dtype=float)) ** 2 for name in names)
    copies = 2 * options["replicas"] + 2 if kernel.sampled else 2  # values and errors
    need, have = pairs * entries * copies * torch.finfo(options["dtype"]).bits / 8, available()
    if need > have:
        raise UsageError(
            f"the matrix needs {need / 1e9:.1f} GB, {have / 1e9:.1f} GB are free",
            advice="--out FILE.zarr computes it on disk, block by block",
        )


def _write(path: Path, views: list[KernelView]) -> None:
    arrays: dict[str, Any] = {}
    for view in views:
        arrays[view.name] = np.asarray(view.values)
        arrays[f"{view.name}_exponent"] = np.array(str(view.exponent))
        if view.errors is not None:
            arrays[f"{view.name}_stderr"] = np.asarray(view.errors)
    with open(path, "wb") as file:
        np.savez(file, **arrays)
