"""Recording the activations of a real model by forward hooks, named by module path as in the compiler."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def forward_with_activations(model: nn.Module, inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """The output ``(N, ...)`` and every activation ``(N, ...)`` of one forward pass, without gradients.

    An activation is the tensor that a submodule returns, batch axis first, under its module path; further
    calls of a module are ``path:1``, ``path:2``, ... A container that returns the very tensor of one of its
    children is left out in favour of the child. The model's buffers and the random state are the
    same afterwards.
    """
    count = inputs.shape[0]
    calls: dict[str, int] = {}
    returned: dict[str, Tensor] = {}  # kept alive, so that identity means the same tensor
    copies: dict[str, Tensor] = {}  # safe from operations in place

    def hook(path: str, output: object) -> None:
        if not isinstance(output, Tensor) or output.ndim < 2 or output.shape[0] != count:
            return
        inside = f"{path}."
        if any(output is value for name, value in returned.items() if name.startswith(inside)):
            return
        call = calls.get(path, 0)
        calls[path] = call + 1
        name = path if call == 0 else f"{path}:{call}"
        returned[name] = output
        copies[name] = output.detach().clone()

    def hook_for(path: str):
        return lambda module, args, output: hook(path, output)

    handles = [
        module.register_forward_hook(hook_for(path)) for path, module in model.named_modules() if path
    ]
    try:
        with torch.no_grad(), unchanged(model):
            output = model(inputs)
    finally:
        for handle in handles:
            handle.remove()
    return output, copies


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Restore the model's buffers and torch's random state at the end."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)
