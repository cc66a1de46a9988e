"""The user's file: its factory, and the setup of the training run that stands beside it as module-level names."""

from __future__ import annotations

import difflib
import importlib.util
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from tpcompile.errors import UsageError

NAMES = ("inputs", "targets", "test_inputs", "loss", "optimizer", "steps")
DATA_NAMES = ("inputs", "targets", "test_inputs")
_ADVICE = "write FILE.py:make, where make is a function of the width in FILE.py"


@dataclass(frozen=True)
class Setup:
    """A factory and the arguments of :func:`tpcompile.compile` that its file gives."""

    make: Callable[[int], Any]
    arguments: Mapping[str, Any]


@contextmanager
def user_file(target: str) -> Iterator[Setup]:
    """Load ``FILE.py:make``; the file's folder is on ``sys.path`` inside the context, and nothing of it after.

    Raises :class:`UsageError` in one line for a file that is missing or fails, and for a name that it does not define.
    """
    path, name = _split(target)
    folder = str(path.parent.resolve())
    modules, search = dict(sys.modules), list(sys.path)
    sys.path.insert(0, folder)
    try:
        module = _load(path)
        yield Setup(_factory(module, path, name), {n: getattr(module, n) for n in NAMES if hasattr(module, n)})
    finally:
        sys.path[:] = search
        for key, value in list(sys.modules.items()):
            if key not in modules and _inside(value, folder):
                del sys.modules[key]


def read_data(path: Path) -> dict[str, Any]:
    """The data of an ``.npz``, ``.npy`` or ``.pt`` file by the names in DATA_NAMES; a lone array is the inputs."""
    if not path.is_file():
        raise UsageError(f"there is no file {path}", where="--inputs")
    try:
        if path.suffix in (".pt", ".pth"):
            content = torch.load(path, map_location="cpu", weights_only=True)
        else:
            content = np.load(path, allow_pickle=False)
            if isinstance(content, np.lib.npyio.NpzFile):
                with content:
                    content = {name: content[name] for name in content.files}
    except Exception as error:  # torch.load and numpy raise errors of many kinds for a file that is not theirs
        raise unreadable(path, error) from error
    found = content if isinstance(content, dict) else {"inputs": content}
    unknown = [str(name) for name in found if name not in DATA_NAMES]
    if unknown or "inputs" not in found:
        listed = ", ".join(map(str, found)) or "nothing"
        raise UsageError(f"{path} holds {listed}, expected inputs, targets, test_inputs", where="--inputs")
    return {name: torch.as_tensor(value) for name, value in found.items()}


def unreadable(path: Path, error: Exception) -> UsageError:
    """The error of a data file that is not one."""
    return UsageError(
        f"cannot read {path} ({one_line(error)})", where="--inputs", advice="write it with numpy.savez or torch.save"
    )


def one_line(error: BaseException) -> str:
    """Type and message of an exception without line breaks."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def place_in(error: BaseException, folder: Path | None) -> str | None:
    """``file.py:12``: the innermost line of the traceback below ``folder``."""
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}:{error.lineno}"
    for entry in reversed(traceback.extract_tb(error.__traceback__)):
        if folder is not None and Path(entry.filename).is_relative_to(folder):
            return f"{Path(entry.filename).name}:{entry.lineno}"
    return None


def _split(target: str) -> tuple[Path, str]:
    file, colon, name = target.rpartition(":")
    if not colon or not file:
        file, name = target, "make"
    path = Path(file)
    if not name.isidentifier():
        raise UsageError(f"'{target}' names no factory", advice=_ADVICE)
    if path.suffix != ".py":
        raise UsageError(f"'{file}' is no Python file", advice=_ADVICE)
    if not path.is_file():
        raise UsageError(f"there is no file {file}")
    return path, name


def _load(path: Path) -> ModuleType:
    name = path.stem if path.stem not in sys.modules else f"_tpcompile_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise UsageError(f"cannot load {path}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        place = place_in(error, path.parent.resolve())
        raise UsageError(f"{path} fails when it is loaded: {one_line(error)}", where=place or str(path)) from error
    return module


def _factory(module: ModuleType, path: Path, name: str) -> Callable[[int], Any]:
    make = getattr(module, name, None)
    if make is None:
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        near = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            f"{path} defines no '{name}'",
            advice=f"did you mean '{near[0]}'?" if near else "name its function of the width",
        )
    if not callable(make):
        raise UsageError(f"'{name}' in {path} is {type(make).__name__}, expected a function of the width")
    return make


def _inside(module: ModuleType | None, folder: str) -> bool:
    file = getattr(module, "__file__", None)
    return isinstance(file, str) and Path(file).is_relative_to(folder)
