"""The user's real optimizer, run on traced parameters and gradients: any ``step`` made of tensor operations."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from tpcompile.capture.numbers import traced_numbers
from tpcompile.capture.optimizers import has_hooks
from tpcompile.capture.origin import reraise
from tpcompile.capture.tracer import Tracer
from tpcompile.errors import CaptureError

_PLAIN = {"foreach": False, "fused": False, "capturable": False, "differentiable": False}  # torch's simplest code
_REFUSED = ("LBFGS", "SparseAdam")


class Stepper:
    """One optimizer of one probe, with its own groups and state; its parameters are exchanged at every step."""

    def __init__(self, optimizer: torch.optim.Optimizer, names: Mapping[int, str], tracer: Tracer) -> None:
        self._optimizer = optimizer
        self._tracer = tracer
        self._position = tracer.position
        self._groups = [[names[id(p)] for p in group["params"]] for group in optimizer.param_groups]
        self._originals = {names[id(p)]: p for group in optimizer.param_groups for p in group["params"]}
        self._alone = type(optimizer).__module__.startswith("torch.optim") and not has_hooks(optimizer)
        self._started = False
        self._state: dict[str, Any] = {names[id(p)]: s for p, s in optimizer.state.items() if id(p) in names}
        if type(optimizer).__name__ in _REFUSED:
            raise CaptureError(
                f"the optimizer {type(optimizer).__name__} cannot be traced", where="the optimizer",
                advice="use one whose step is one update from one gradient",
            )  # fmt: skip
        for group in optimizer.param_groups:
            group.update({key: value for key, value in _PLAIN.items() if key in group})
        scheduled = "step" in vars(optimizer)  # by a wrapper that counts the calls
        self._call = _bare_step(optimizer) if self._alone and not scheduled else optimizer.step

    def step(self, parameters: Mapping[str, Tensor], grads: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The parameters after one step; those without a gradient stay as they are."""
        optimizer = self._optimizer
        moved = {name: parameters[name].detach().clone() for names in self._groups for name in names}
        for group, names in zip(optimizer.param_groups, self._groups, strict=True):
            group["params"] = [moved[name] for name in names]
        if not self._started:  # what the constructor has made is changed in place from now on
            self._state = {name: _started(state, moved[name]) for name, state in self._state.items()}
            self._started = True
        optimizer.state.clear()
        optimizer.state.update({moved[name]: state for name, state in self._state.items()})
        # torch's own optimizers one parameter at a time, so that the trace knows whose turn it is; hooks see all
        rounds = [[name] for name in parameters if name in grads and name in moved] if self._alone else [list(grads)]
        for names in rounds:
            self._position.parameter = names[0] if len(names) == 1 else ""
            for name in names:  # a hook may reach the gradients by the model's own parameters: the same tensors
                moved[name].grad = self._originals[name].grad = grads[name]
            try:
                with traced_numbers(self._tracer):
                    self._call()
            except Exception as error:
                reraise(error, self._position, f"the step of {type(optimizer).__name__} cannot be traced")
            for name in names:
                moved[name].grad = self._originals[name].grad = None
        self._state = {name: optimizer.state[p] for name, p in moved.items() if p in optimizer.state}
        return {name: moved[name] for name in grads}


def _bare_step(optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    """A step of torch's own without its wrappers: they import torch.compile to keep it out, most of a second."""
    step = inspect.unwrap(type(optimizer).step)

    def call() -> None:
        with torch.no_grad():
            step(optimizer)

    return call


def _started(state: Mapping[str, Any], p: Tensor) -> dict[str, Any]:
    """The state of one parameter with values of the trace in place of whole tensors."""

    def traced(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        first = value.flatten()[0]
        return torch.full_like(p, first.item()) if bool((value == first).all()) else p * 0 + value

    return {key: traced(value) for key, value in state.items()}
