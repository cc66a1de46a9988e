"""Runs of torch calls as one call: TorchScript computes them without the interpreter lock.

Calls on blocks that fit a core's cache last microseconds. Between any two of them Python gives the lock to the other
threads, and waking one takes longer than the call: two threads would be slower than one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from tpcompile.evaluate.tapes.steps import SNAP

_TENSORS = ("add", "sub", "mul", "div")  # numbers in these have to be tensors where the result is written to memory
_Function = Callable[..., Any]


class Script:
    """Calls to be run one after the other."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.tensors: dict[int, tuple[int, Tensor]] = {}  # by identity, with their numbers

    def add(self, name: str, args: Sequence[Any], options: dict[str, Any], out: Tensor) -> None:
        """``torch.name(*args, **options, out=out)``."""
        target = self._word(out)
        if name == "zero":
            self.lines.append(f"{target}.zero_()")
            return
        if name in ("clone", "copy"):
            self.lines.append(f"{target}.copy_({self._word(args[0])})")
            return
        if name == SNAP:
            x, near = self._word(args[0]), args[1]
            if args[0] is not out:
                self.lines.append(f"{target}.copy_({x})")
            # mostly there is nothing to do; torch.where takes three times as long as threshold and neg
            low = f"torch.threshold({target}, {-near!r}, -1.0, out={target})"
            turn = f"torch.neg({target}, out={target})"
            self.lines += [f"if not float(torch.amin({target})) > {-near!r}:", f"    {low}"]
            self.lines += [f"if not float(torch.amax({target})) < {near!r}:", *(f"    {x}" for x in (turn, low, turn))]
            return
        if name in _TENSORS:
            args = [x if isinstance(x, Tensor) else torch.tensor(x, dtype=out.dtype) for x in args]
        if name == "amax":
            args = [args[0], list(range(args[0].dim()))]
        words = [self._word(x) for x in args] + [f"{key}={self._word(x)}" for key, x in options.items()]
        self.lines.append(f"torch.{name}({', '.join(words)}, out={target})")

    def _word(self, x: Any) -> str:
        if isinstance(x, Tensor):
            number, _ = self.tensors.setdefault(id(x), (len(self.tensors), x))
            return f"x{number}"
        if isinstance(x, float) and not math.isfinite(x):
            return f"float('{x}')"
        return repr(list(x) if isinstance(x, tuple) else x)

    def call(self) -> Callable[[], Any] | None:
        """All of them as one call; None where they are none in TorchScript."""
        function = _compiled(tuple(self.lines), len(self.tensors))
        return None if function is None else partial(function, *(x for _, x in self.tensors.values()))


@lru_cache(maxsize=256)
def _compiled(lines: Sequence[str], count: int, first: str = "") -> _Function | None:
    head = ", ".join([first] * bool(first) + [f"x{i}: Tensor" for i in range(count)])
    text = "\n    ".join([f"def run({head}):", *lines, "return 0"])
    try:
        return torch.jit.CompilationUnit(text + "\n").run
    except RuntimeError:
        return None


def loading(axes: Sequence[int | None]) -> _Function:
    """``f(start, length, *into, *values)``: entries from ``start`` on along each value's axis, None for all, copied."""
    count = len(axes)
    words = [f"x{count + i}" if d is None else f"x{count + i}.narrow({d}, start, length)" for i, d in enumerate(axes)]
    lines = tuple(f"x{i}.copy_({word})" for i, word in enumerate(words))
    found = _compiled(lines, 2 * count, "start: int, length: int")
    assert found is not None
    return found


def unoptimized() -> Any:
    """A context in which TorchScript runs what is written, without first watching and rewriting it."""
    return torch.jit.optimized_execution(False)  # pyright: ignore[reportPrivateImportUsage]
