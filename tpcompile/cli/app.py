"""The application: verbs are registered on it, and :func:`main` turns every error into one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

import tpcompile
from tpcompile.errors import TpcompileError
from tpcompile.userfile import one_line, place_in

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    help="A compiler for the infinite-width limit of neural networks and their training.",
)


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
