"""What the verbs print and write."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console, RenderableType

from tpcompile.errors import TpcompileError, UsageError
from tpcompile.userfile import one_line


def check_writable(path: Path | None) -> None:
    """UsageError, before the work starts, for a file that cannot be written."""
    if path is not None and (path.is_dir() or not path.absolute().parent.is_dir()):
        raise UsageError(
            f"cannot write {path}: " + ("it is a folder" if path.is_dir() else "its folder does not exist")
        )


@contextmanager
def writing_figure(path: Path) -> Iterator[None]:
    """UsageError for a type of figure that matplotlib does not write."""
    try:
        yield
    except ValueError as error:  # matplotlib's word for it
        if isinstance(error, TpcompileError):
            raise
        raise UsageError(f"cannot write {path}: {one_line(error)}", where="--plot") from error


@contextmanager
def progress(what: str) -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr where that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def show(renderable: RenderableType) -> None:
    """Print tables, as wide as they are where that is no terminal."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(renderable, highlight=False, markup=False)
