"""Update rules read from the user's real optimizer object, as tensor arithmetic that can be traced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler

from tpcompile.errors import CaptureError
from tpcompile.schedule import advance

State = dict[str, Tensor]
Group = Mapping[str, Any]
Rule = Callable[[Group, Tensor, Tensor, State, int], tuple[Tensor, State]]

_RULES: dict[type[torch.optim.Optimizer], Rule] = {}


def rule(kind: type[torch.optim.Optimizer]) -> Callable[[Rule], Rule]:
    """Register the update of one optimizer type: ``(group, p, grad, state, t) -> (new p, new state)``."""

    def register(function: Rule) -> Rule:
        _RULES[kind] = function
        return function

    return register


@rule(torch.optim.SGD)
def sgd(group: Group, p: Tensor, grad: Tensor, state: State, t: int) -> tuple[Tensor, State]:
    """Stochastic gradient descent with momentum, dampening, weight decay and Nesterov's variant."""
    g = -grad if group["maximize"] else grad
    if group["weight_decay"]:
        g = g + p * group["weight_decay"]
    if group["momentum"]:
        if "momentum" in state:
            fresh = g if group["dampening"] == 0 else g * (1 - group["dampening"])
            velocity = state["momentum"] * group["momentum"] + fresh
        else:
            velocity = g
        state = {"momentum": velocity}
        g = g + velocity * group["momentum"] if group["nesterov"] else velocity
    return p - g * group["lr"], state


@dataclass(frozen=True)
class Updates:
    """The update rule of every trained parameter, by name, with its group's hyperparameters."""

    groups: dict[str, dict[str, Any]] = field(default_factory=dict)
    kind: type[torch.optim.Optimizer] | None = None
    optimizer: torch.optim.Optimizer | None = None  # the user's own, whose step is traced where there is no rule here
    members: Mapping[str, int] = field(default_factory=dict)  # the parameter group of each
    scheduler: LRScheduler | None = None

    @property
    def learning_rates(self) -> dict[str, float]:
        return {name: float(group["lr"]) for name, group in self.groups.items() if "lr" in group}

    @property
    def has_rule(self) -> bool:
        """True if the update is written here, and not traced from the optimizer's own step and hooks."""
        return self.kind in _RULES and not has_hooks(self.optimizer)

    def apply(self, name: str, p: Tensor, grad: Tensor, state: State, t: int) -> tuple[Tensor, State]:
        """One parameter's new value and optimizer state after step ``t``."""
        assert self.kind is not None
        return _RULES[self.kind](self.groups[name], p, grad, state, t)

    def advanced(self) -> Updates:
        """The settings of the next step, after the user's schedule."""
        if self.scheduler is None or self.optimizer is None:
            return self
        advance(self.scheduler)
        settings = [_settings(group) for group in self.optimizer.param_groups]
        return replace(self, groups={name: settings[i] for name, i in self.members.items()})


def has_hooks(optimizer: torch.optim.Optimizer | None) -> bool:
    """True if the user has registered something to run before or after a step, such as the clipping of gradients."""
    return bool(getattr(optimizer, "_optimizer_step_pre_hooks", None)) or bool(
        getattr(optimizer, "_optimizer_step_post_hooks", None)
    )


def read_optimizer(
    optimizer: torch.optim.Optimizer | None, model: torch.nn.Module, scheduler: LRScheduler | None = None
) -> Updates:
    """Hyperparameters of each of the model's parameters that the optimizer updates."""
    if optimizer is None:
        return Updates()
    names = {id(p): name for name, p in model.named_parameters()}
    groups: dict[str, dict[str, Any]] = {}
    members: dict[str, int] = {}
    for index, group in enumerate(optimizer.param_groups):
        settings = _settings(group)
        for p in group["params"]:
            if id(p) not in names:
                raise CaptureError(
                    f"a parameter of shape {tuple(p.shape)} does not belong to the model",
                    where=f"the optimizer's parameter group {index}",
                    advice="build the optimizer from the parameters of the model that the factory returns",
                )
            groups[names[id(p)]] = settings
            members[names[id(p)]] = index
    return Updates(groups, type(optimizer), optimizer, members, scheduler)


def _settings(group: Group) -> dict[str, Any]:
    return {k: _number(v) for k, v in group.items() if k != "params"}


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else value


def shared_rates(optimizer: torch.optim.Optimizer | None) -> tuple[str, ...]:
    """A note for each tensor that is the learning rate of several groups: changed in place, it changes them all."""
    groups: dict[int, list[int]] = {}
    for index, group in enumerate(optimizer.param_groups if optimizer is not None else ()):
        if isinstance(group.get("lr"), Tensor):
            groups.setdefault(id(group["lr"]), []).append(index)
    return tuple(
        f"the parameter groups {', '.join(map(str, indices))} share one tensor as their learning rate: "
        "changed in place for one of them, it changes for all"
        for indices in groups.values()
        if len(indices) > 1
    )
