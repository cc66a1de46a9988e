"""Positions in the user's model while it is traced, and errors of PyTorch told as errors of ours."""

from __future__ import annotations

import os
import sys
import traceback
from dataclasses import dataclass, field
from types import FrameType
from typing import NoReturn

import torch

from tpcompile.capture.graph import Origin
from tpcompile.errors import CaptureError, TpcompileError

_LIBRARY = os.path.dirname(os.path.abspath(torch.__file__)) + os.sep
_OWN = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


@dataclass
class Position:
    """Where the traced run is now; the tracer reads it, the unrolling and the module hooks move it."""

    phase: str = "forward"
    step: int = 0
    modules: list[str] = field(default_factory=list)
    parameter: str = ""

    @property
    def module(self) -> str:
        if self.phase == "update":
            return self.parameter
        return self.modules[-1] if self.modules else ""

    def origin(self, source: str | None = None) -> Origin:
        return Origin(self.module, self.phase, self.step, source)


def user_source() -> str | None:
    """``file.py:line`` of the innermost frame that is neither PyTorch's nor ours, up to our own call.

    Frames of this package's tracer lie between the operation and the user's line and are skipped.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        filename = frame.f_code.co_filename
        if _is_user(filename):
            return f"{os.path.basename(filename)}:{frame.f_lineno}"
        if filename.startswith(_OWN) and not filename.endswith(("tracer.py", "origin.py")):
            return None
        frame = frame.f_back
    return None


def _is_user(filename: str) -> bool:
    return not filename.startswith((_OWN, _LIBRARY)) and "importlib" not in filename


def failing_source(error: BaseException) -> str | None:
    """``file.py:line`` of the innermost user frame in an exception's traceback."""
    for entry in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_user(entry.filename) and not entry.filename.startswith("<"):
            return f"{os.path.basename(entry.filename)}:{entry.lineno}"
    return None


def first_line(error: BaseException) -> str:
    """The exception's type and the first line of its message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].strip()}" if lines else type(error).__name__


def reraise(error: Exception, position: Position, what: str, advice: str | None = None) -> NoReturn:
    """Raise ``error`` again as a :class:`CaptureError` with the place; our own errors pass unchanged."""
    if isinstance(error, TpcompileError):
        raise error
    where = str(position.origin(failing_source(error)))
    raise CaptureError(f"{what}: {first_line(error)}", where=where, advice=advice) from error
