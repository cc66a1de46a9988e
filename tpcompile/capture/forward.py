"""The user's model as a function of its parameters and buffers, with its activations collected."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tpcompile.capture.origin import Position, reraise
from tpcompile.capture.tap import listening
from tpcompile.errors import CaptureError


@dataclass
class Collector:
    """Activations of one forward pass, by name, in the order in which they are computed."""

    values: dict[str, Tensor] = field(default_factory=dict)
    taps: set[str] = field(default_factory=set)
    _seen: set[tuple[int, int]] = field(default_factory=set)
    _counts: dict[str, int] = field(default_factory=dict)
    alive: dict[str, Tensor] = field(default_factory=dict)

    def module_output(self, name: str, value: Any) -> None:
        """Keep a module's output (the first of several), unless it is a tensor already kept or no tensor."""
        while isinstance(value, tuple | list) and value:
            value = value[0]
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dim() == 0:
            return
        version = (id(value), value._version)
        if version in self._seen:
            return
        self._seen.add(version)
        self._keep(name, value)

    def tapped(self, name: str, value: Tensor) -> None:
        """Keep a value that the user named."""
        self.taps.add(self._keep(name, value))

    def _keep(self, name: str, value: Tensor) -> str:
        count = self._counts.get(name, 0)
        self._counts[name] = count + 1
        unique = name if count == 0 else f"{name}:{count}"
        self.alive[unique] = value  # keeps id() unique
        self.values[unique] = snapshot(value)
        return unique


def snapshot(value: Tensor) -> Tensor:
    """The tensor's entries now, whatever is done to it in place later (a clone that is dropped again)."""
    with torch.no_grad():
        return value.detach().clone()


def call_with(module: nn.Module, state: dict[str, Tensor], inputs: Tensor) -> Any:
    """The module on inputs with other parameters and buffers, by the names of ``named_parameters()``.

    Buffers that the module sets anew are so in ``state``. Ties are written out here: ``functional_call`` restores a
    module that stands under two names to the values it was called with.
    """
    first: dict[int, str] = {}
    names: dict[str, str] = {}
    for path, child in module.named_modules():
        for own, value in (*child._parameters.items(), *child._buffers.items()):
            name = f"{path}.{own}" if path else own
            if value is not None:
                names[name] = first.setdefault(id(value), name)
    full = {name: state[known] for name, known in names.items() if known in state}
    for name, p in module.named_parameters(remove_duplicate=False):
        if name in full:
            full[name]._is_param = True  # what isinstance(x, nn.Parameter) looks for: get_parameter and user's checks
            vars(full[name]).update(vars(p))  # what the user has written on it, such as shapes to scale by
    output = torch.func.functional_call(module, full, (inputs,), tie_weights=False)
    state.update({name: value for name, value in full.items() if name in state})
    return output


class Model:
    """The user's module with hooks that move the tracer's position and collect activations."""

    def __init__(self, module: nn.Module, position: Position) -> None:
        self.module = module
        self.position = position
        self._collector: Collector | None = None
        self._plain: dict[torch.Size, dict[str, Any]] = {}  # plain attributes after a call, by the inputs' shape

    @contextmanager
    def hooked(self) -> Iterator[None]:
        """Install the hooks for the block."""
        handles = []
        for path, child in self.module.named_modules():
            if path:
                handles.append(child.register_forward_pre_hook(self._enter(path)))
                handles.append(child.register_forward_hook(self._leave(path)))
        try:
            with listening(self._tap):
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __call__(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor
    ) -> tuple[Tensor, dict[str, Tensor], Collector]:
        """Output, buffers after the call (``buffers`` may be changed in place), activations."""
        self._collector = collector = Collector()
        self.position.modules.clear()
        state = {**parameters, **buffers}
        try:
            output = call_with(self.module, state, inputs)
        except Exception as error:
            reraise(error, self.position, "the model fails on its inputs")
        finally:
            self._collector = None
        self._check_output(output, inputs)
        self._check_attributes(inputs)
        return output, {name: state[name] for name in buffers}, collector

    def _check_attributes(self, inputs: Tensor) -> None:
        """Numbers that a forward pass counts up would depend on how often the compiler calls it."""
        found = {
            f"{path}.{name}" if path else name: value
            for path, child in self.module.named_modules()
            for name, value in vars(child).items()
            if isinstance(value, bool | int | float | str)
        }
        before = self._plain.setdefault(inputs.shape, found)
        for name, value in found.items():
            if name in before and before[name] != value:
                raise CaptureError(
                    f"the attribute '{name}' changes from {before[name]!r} to {value!r} from one call to the next",
                    where="the model's own forward",
                    advice="keep what changes from step to step in a registered buffer",
                )

    def bare(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], inputs: Tensor) -> Tensor:
        """Output alone, for use inside functional transforms."""
        self.position.modules.clear()
        return call_with(self.module, {**parameters, **buffers}, inputs)

    def _enter(self, path: str):
        return lambda module, args: self.position.modules.append(path)

    def _leave(self, path: str):
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            if self._collector is not None:
                self._collector.module_output(path, output)
            self.position.modules.pop()

        return hook

    def _tap(self, value: Tensor, name: str) -> None:
        if self._collector is not None:
            module = self.position.modules[-1] if self.position.modules else ""
            self._collector.tapped(f"{module}.{name}" if module else name, value)

    def _check_output(self, output: Any, inputs: Tensor) -> None:
        where = str(self.position.origin())
        if not isinstance(output, Tensor):
            raise CaptureError(
                f"the model returns {type(output).__name__}, not a tensor",
                where=where,
                advice="wrap it in a module that returns the one output tensor",
            )
        if output.is_complex():
            raise CaptureError(f"the model returns complex numbers, {output.dtype}", where=where)
        if output.dim() == 0 or output.shape[0] != inputs.shape[0]:
            raise CaptureError(
                f"the model returns shape {tuple(output.shape)} for a batch of {inputs.shape[0]}",
                where=where,
                advice="the first axis of the output must be the batch",
            )
