"""``tap(x, name)``: an identity by which the user names an intermediate value of the forward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

from tpcompile.errors import UsageError

_listener: ContextVar[Callable[[torch.Tensor, str], None] | None] = ContextVar("tap_listener", default=None)


def tap(x: torch.Tensor, name: str) -> torch.Tensor:
    """Return ``x`` unchanged; while a model is captured, report it as the activation ``name``.

    The activation's full name is the path of the module whose forward calls ``tap``, a dot, and
    ``name`` (only ``name`` in the root's forward).
    """
    if not isinstance(x, torch.Tensor):
        raise UsageError(f"tap expects a tensor, got {type(x).__name__}", where=f"tap(..., {name!r})")
    if not isinstance(name, str) or not name:
        raise UsageError(f"tap expects a nonempty name, got {name!r}", where="tap")
    listener = _listener.get()
    if listener is not None:
        listener(x, name)
    return x


@contextmanager
def listening(listener: Callable[[torch.Tensor, str], None] | None) -> Iterator[None]:
    """Hand every tapped tensor to ``listener`` inside the block."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)
