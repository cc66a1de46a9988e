"""Learning-rate schedules: a torch scheduler that a factory returns beside its model and optimizer, really stepped."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from tpcompile.errors import FactoryError


def split(made: Any) -> tuple[Any, Any, LRScheduler | None]:
    """What a factory returns as (model, optimizer, scheduler); None in the places of what it does not return.

    Raises FactoryError for a scheduler whose rates depend on the data, or that is another optimizer's.
    """
    if not isinstance(made, tuple) or len(made) not in (2, 3):
        return made, None, None
    model, optimizer, scheduler = made if len(made) == 3 else (*made, None)
    if scheduler is None:
        return (model, optimizer, None) if isinstance(optimizer, torch.optim.Optimizer) else (made, None, None)
    kind = type(scheduler).__name__
    if isinstance(scheduler, ReduceLROnPlateau):
        raise FactoryError(
            f"the rates of {kind} depend on the measured loss",
            where="make",
            advice="give the rates as a function of the step (LambdaLR, CosineAnnealingLR, ...)",
        )
    if not isinstance(scheduler, LRScheduler):
        raise FactoryError(
            f"the third thing that the factory returns is {kind}, not a torch.optim.lr_scheduler.LRScheduler",
            where="make",
            advice="return a module, (module, optimizer) or (module, optimizer, scheduler)",
        )
    if getattr(scheduler, "optimizer", optimizer) is not optimizer:
        raise FactoryError(f"the {kind} schedules another optimizer than the one returned", where="make")
    return model, optimizer, scheduler


def advance(scheduler: LRScheduler | None) -> None:
    """One step of the schedule, after one of the optimizer."""
    if scheduler is None:
        return
    with warnings.catch_warnings():  # torch counts the optimizer's own steps, which a trace may take otherwise
        warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step\\(\\)` before")
        scheduler.step()
