"""Powers of the width on top of a user's own setup, and the factory that has them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from tpcompile.capture import Capture, capture
from tpcompile.collector import swept
from tpcompile.errors import UsageError
from tpcompile.laws import Law
from tpcompile.parametrization.multipliers import multiply
from tpcompile.schedule import split

NONE = Fraction(0)


@dataclass(frozen=True)
class Change:
    """Exponents of what one parameter gets on top of its own: factors ``n**e``.

    Of its initial values, of its group's learning rate, epsilon and weight decay, and ``multipliers`` of a factor in
    front of it where it is used for the first time in a forward pass, the second, and so on (none: no factor).
    """

    init: Fraction = NONE
    rate: Fraction = NONE
    epsilon: Fraction = NONE
    decay: Fraction = NONE
    multipliers: tuple[Fraction, ...] = ()


@dataclass(frozen=True)
class Run:
    """The arguments of a training run, which can be captured again with changes."""

    make: Callable[[int], Any]
    inputs: Tensor | Sequence[Tensor]
    targets: Tensor | Sequence[Tensor] | None
    loss: Callable[..., Tensor] | None
    optimizer: Callable[..., Any] | None
    steps: int
    init: Mapping[str, Law] | None = None
    widths: Sequence[int] | None = None
    traced: dict[frozenset[tuple[str, Change]], Capture] = field(default_factory=dict, repr=False, compare=False)

    def capture(self) -> Capture:
        """The traced run with everything that exponents are asked of."""
        if self.loss is None:
            raise UsageError("verify needs a loss: it follows training", where="loss", advice="e.g. loss=F.mse_loss")
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise UsageError(f"steps must be a positive int, got {self.steps!r}", where="steps")
        with swept():
            return capture(
                self.make, self.inputs, self.targets, self.loss, self.optimizer, self.steps,
                init=self.init, widths=self.widths, exponents=True,
            )  # fmt: skip

    def captured(self, changes: Mapping[str, Change]) -> Capture:
        """The traced run with other powers of the width in it; once for equal changes."""
        key = frozenset((name, change) for name, change in changes.items() if change != Change())
        if key not in self.traced:
            self.traced[key] = self.changed(changes).capture()
        return self.traced[key]

    def changed(self, changes: Mapping[str, Change]) -> Run:
        """The same run with other powers of the width in it."""
        given = {name: _shifted(law, changes.get(name, Change()).init) for name, law in (self.init or {}).items()}

        def make(width: int) -> Any:
            model, optimizer, scheduler = split(self.make(width))
            if optimizer is None:
                assert self.optimizer is not None
                optimizer = self.optimizer(list(model.parameters()))
            scale_parameters(model, {name: change.init for name, change in changes.items()}, width)
            regroup(model, optimizer, changes, width, scheduler)
            multiply(model, {name: change.multipliers for name, change in changes.items()}, width)
            return (model, optimizer) if scheduler is None else (model, optimizer, scheduler)

        return replace(self, make=make, optimizer=None, init=given or None, traced={})


def scale_parameters(model: nn.Module, exponents: Mapping[str, Fraction], ratio: float) -> None:
    """Multiply every parameter by ``ratio**exponent`` in place."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            if exponents.get(name):
                p.mul_(ratio ** float(exponents[name]))


def regroup(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    changes: Mapping[str, Change],
    ratio: float,
    scheduler: LRScheduler | None = None,
) -> None:
    """One group for each parameter, with its own learning rate (in the schedule too), epsilon and weight decay."""
    names = {id(p): name for name, p in model.named_parameters()}
    count = len(optimizer.param_groups)
    groups, origins = [], []
    for index, group in enumerate(optimizer.param_groups):
        for p in group["params"]:
            change = changes.get(names.get(id(p), ""), Change())
            own = {**group, "params": [p]}
            powers = {"lr": change.rate, "initial_lr": change.rate, "eps": change.epsilon, "weight_decay": change.decay}
            own |= {key: _times(own[key], ratio ** float(e)) for key, e in powers.items() if key in own and e}
            groups.append(own)
            origins.append((index, ratio ** float(change.rate)))
    optimizer.param_groups[:] = groups
    if scheduler is None:
        return
    for key, value in vars(scheduler).items():
        if isinstance(value, list) and len(value) == count:  # one entry a group
            setattr(scheduler, key, [value[index] for index, _ in origins])
    if hasattr(scheduler, "base_lrs"):
        scheduler.base_lrs = [lr * by for lr, (_, by) in zip(scheduler.base_lrs, origins, strict=True)]


def _times(value: Any, factor: float) -> Any:
    return tuple(_times(v, factor) for v in value) if isinstance(value, tuple | list) else value * factor


def _shifted(law: Law, exponent: Fraction) -> Law:
    return replace(law, width_exponent=Fraction(law.width_exponent) + exponent)
