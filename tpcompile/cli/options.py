"""Options and arguments that several verbs share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tpcompile.errors import UsageError


class Dtype(StrEnum):
    """Precision of the particles."""

    float64 = "float64"
    float32 = "float32"


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


def integers(text: str, option: str) -> tuple[int, ...]:
    """Widths such as ``256,1024``. Raises UsageError that names the option."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise UsageError(f"expected widths such as 256,1024, found '{text}'", where=option)
    return tuple(int(part) for part in parts)
