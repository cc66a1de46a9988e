"""What the user's file and the options say together: the arguments of the Python functions behind the verbs."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import tpcompile
from tpcompile.cli.options import integers
from tpcompile.compiled import Compiled
from tpcompile.errors import UsageError
from tpcompile.userfile import DATA_NAMES, Setup, read_data, user_file


@contextmanager
def compiled(
    target: str, steps: int | None, loss: str | None, lr: float | None, inputs: Path | None, widths: str | None
) -> Iterator[Compiled]:
    """The compiled model of a file; its folder stays on ``sys.path`` inside the context."""
    with training_run(target, steps, loss, lr, inputs, widths) as (make, found):
        yield tpcompile.compile(make, **found)


@contextmanager
def training_run(
    target: str, steps: int | None, loss: str | None, lr: float | None, inputs: Path | None, widths: str | None
) -> Iterator[tuple[Callable[[int], Any], dict[str, Any]]]:
    """The factory of a file and the arguments of its training run, options before the file's own."""
    with user_file(target) as setup:
        found = with_data(setup, target, inputs)
        if loss is not None:
            found["loss"] = _loss(loss)
        if lr is not None:
            found["optimizer"] = sgd(lr)
        if steps is not None:
            found["steps"] = steps
        yield setup.make, found | {"widths": None if widths is None else integers(widths, "--widths")}


def with_data(setup: Setup, target: str, inputs: Path | None) -> dict[str, Any]:
    """The arguments of the file, its data replaced by that of ``--inputs`` where given. UsageError without inputs."""
    found = dict(setup.arguments)
    if inputs is not None:
        found = {name: value for name, value in found.items() if name not in DATA_NAMES} | read_data(inputs)
    if found.get("inputs") is None:
        raise UsageError(
            f"{target.rpartition(':')[0] or target} defines no 'inputs'",
            advice="define inputs = <tensor> in it, or give --inputs FILE.npz",
        )
    return found


def sgd(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    """The optimizer of ``--lr``."""
    return lambda parameters: torch.optim.SGD(parameters, lr=lr)


def _loss(name: str) -> Callable[..., Any]:
    functions = torch.nn.functional
    found = getattr(functions, name, None)
    if callable(found) and not name.startswith("_"):
        return found
    known = [n for n in dir(functions) if n.endswith("_loss") or n.endswith("entropy")]
    near = [n for n in known if name and n.startswith(name)] or difflib.get_close_matches(name, known, n=1)
    advice = f"did you mean '{near[0]}'?" if near else "name one of its losses, such as mse_loss or cross_entropy"
    raise UsageError(f"torch.nn.functional has no '{name}'", where="--loss", advice=advice)
