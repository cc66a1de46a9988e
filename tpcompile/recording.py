"""Recording the activations of a real model by forward hooks, named by module path as in the compiler."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from tpcompile.capture.forward import Collector
from tpcompile.capture.tap import listening


def forward_with_activations(model: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output ``(N, ...)`` and every activation ``(N, ...)`` of one forward pass, detached.

    An activation is a tensor that a submodule returns (the first of several), under its module path, or that the
    user names with ``tp.tap``; further ones of the same name are ``path:1``, ``path:2``, ... A module that returns a
    tensor already recorded (a container its last child's) is left out. The names are those of the compiler, whose
    collector this uses. The model's buffers and the random state are the same afterwards.
    """
    collector = Collector()
    inside: list[str] = []

    def leave(path: str, output: object) -> None:
        inside.pop()
        collector.module_output(path, output)

    def enter_hook(path: str) -> Callable[..., None]:
        return lambda module, args: inside.append(path)

    def leave_hook(path: str) -> Callable[..., None]:
        return lambda module, args, output: leave(path, output)

    def tapped(value: Tensor, name: str) -> None:
        collector.tapped(f"{inside[-1]}.{name}" if inside else name, value)

    handles = []
    for path, module in model.named_modules():
        if path:
            handles.append(module.register_forward_pre_hook(enter_hook(path)))
            handles.append(module.register_forward_hook(leave_hook(path)))
    try:
        with torch.enable_grad(), unchanged(model), listening(tapped):  # a forward pass may take gradient steps itself
            output = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    count = inputs.shape[0]
    found = {name: x for name, x in collector.values.items() if x.shape[:1] == (count,)}
    return output.detach() if isinstance(output, Tensor) else output, found


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore the model's buffers and torch's random state at the end."""
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            with torch.no_grad():
                for module, name, buffer, value in buffers:
                    buffer.copy_(value)
                    module._buffers[name] = buffer  # which the forward pass may have set anew
