"""Optimizers as users write and configure them, on small models of every kind of parameter."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from zoo import ABC, Case, Recurrent, Residual, Tied, data
from zoo_attention import attention_cases

Make = Callable[[Any, int], torch.optim.Optimizer]


class Lion(torch.optim.Optimizer):
    """As a user would write it (2302.06675)."""

    def __init__(
        self, params: Any, lr: float, betas: tuple[float, float] = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                p.mul_(1 - group["lr"] * group["weight_decay"])
                mixed = state["m"] * group["betas"][0] + p.grad * (1 - group["betas"][0])
                p.add_(mixed.sign(), alpha=-group["lr"])
                state["m"].mul_(group["betas"][1]).add_(p.grad, alpha=1 - group["betas"][1])


class SignSGD(torch.optim.Optimizer):
    """The sign of the gradient."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad.sign(), alpha=-group["lr"])


class Muon(torch.optim.Optimizer):
    """The published algorithm (kellerjordan.github.io/posts/muon) as users write it, in the model's precision."""

    def __init__(
        self, params: Any, lr: float, momentum: float = 0.95, steps: int = 5, decay: float = 0.0, eps: float = 1e-7
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "steps": steps, "decay": decay, "eps": eps})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                state["m"].lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(state["m"], group["momentum"])
                p.mul_(1 - group["lr"] * group["decay"])
                if p.dim() == 2:
                    scale = max(1.0, p.shape[0] / p.shape[1]) ** 0.5
                    p.add_(newton_schulz(update, group["steps"], group["eps"]), alpha=-group["lr"] * scale)
                else:
                    p.add_(update.sign(), alpha=-group["lr"])


def newton_schulz(x: Tensor, steps: int, eps: float) -> Tensor:
    """Singular values brought near one."""
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.T if tall else x


OPTIMIZERS: dict[str, Make] = {
    "Adam": lambda p, n: torch.optim.Adam(p, lr=0.1 / n),
    "Adam, L2": lambda p, n: torch.optim.Adam(p, lr=0.1 / n, weight_decay=0.1),
    "AdamW": lambda p, n: torch.optim.AdamW(p, lr=0.1 / n, weight_decay=0.3, eps=1e-4),
    "AMSGrad": lambda p, n: torch.optim.AdamW(p, lr=0.1 / n, amsgrad=True),
    "NAdam": lambda p, n: torch.optim.NAdam(p, lr=0.1 / n),
    "RAdam": lambda p, n: torch.optim.RAdam(p, lr=0.5 / n, betas=(0.9, 0.7)),
    "Adamax": lambda p, n: torch.optim.Adamax(p, lr=0.1 / n),
    "RMSprop": lambda p, n: torch.optim.RMSprop(p, lr=0.02 / n, momentum=0.9),
    "RMSprop, centred": lambda p, n: torch.optim.RMSprop(p, lr=0.02 / n, centered=True, eps=1e-3),
    "Adagrad": lambda p, n: torch.optim.Adagrad(p, lr=0.1 / n, lr_decay=0.1),
    "Adadelta": lambda p, n: torch.optim.Adadelta(p, lr=1.0),
    "ASGD": lambda p, n: torch.optim.ASGD(p, lr=0.1),
    "Lion": lambda p, n: Lion(p, lr=0.1 / n, weight_decay=0.1),
    "Adafactor": lambda p, n: torch.optim.Adafactor(p, lr=0.1, weight_decay=0.1),
    "Adafactor, small epsilon": lambda p, n: torch.optim.Adafactor(p, lr=0.5, eps=(1e-12, 1e-6)),
    "Muon": lambda p, n: Muon(p, lr=0.1, decay=0.1),
    "SignSGD": lambda p, n: SignSGD(p, lr=0.1 / n),
}


class Plain(nn.Module):
    """A hidden matrix, biases, widths n and 2n, a gain, and a map to a finite axis in between."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed, self.up = nn.Linear(4, n), nn.Linear(n, 2 * n)
        self.norm, self.narrow = nn.LayerNorm(2 * n), nn.Linear(2 * n, 3)
        self.readout = nn.Linear(2 * n, 1)
        self.back = nn.Linear(3, 2 * n)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.norm(self.up(torch.tanh(self.embed(x)))))
        return self.readout(torch.tanh(h + self.back(torch.tanh(self.narrow(h)))))


def _mlp(n: int) -> nn.Module:
    layers = [ABC(n, 4, n, 0.0, 0.0), nn.Tanh(), ABC(n, n, n, 0.0, 0.5), nn.Tanh(), ABC(n, n, 1, 0.0, 0.5)]
    return nn.Sequential(*layers)


def with_optimizer(model: Callable[[int], nn.Module], optimizer: Make) -> Callable[[int], Any]:
    """A factory of the two."""

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        module = model(n)
        return module, optimizer(module.parameters(), n)

    return make


def scheduled(
    optimizer: Make, schedule: Callable[[torch.optim.Optimizer], torch.optim.lr_scheduler.LRScheduler]
) -> Callable[[int], Any]:
    """A factory of a model, its optimizer and its schedule."""

    def make(n: int) -> Any:
        module, update = with_optimizer(_mlp, optimizer)(n)
        return module, update, schedule(update)

    return make


def clipped(
    optimizer: Make, limit: float, model: Callable[[int], nn.Module] = _mlp, own: bool = True
) -> Callable[[int], Any]:
    """Gradients clipped by their global norm before every step; ``own``: reached by the model's own parameters."""

    def make(n: int) -> Any:
        module, update = with_optimizer(model, optimizer)(n)

        def clip(before: torch.optim.Optimizer, *_: Any) -> None:
            parameters = list(module.parameters()) if own else [p for g in before.param_groups for p in g["params"]]
            nn.utils.clip_grad_norm_(parameters, limit)

        update.register_step_pre_hook(clip)
        return module, update

    return make


def _shared_rate(p: Any, n: int) -> torch.optim.Optimizer:
    """Two groups that share one tensor as their learning rate, changed in place for one of them: for both, that is."""
    first, *rest = p
    rate = torch.tensor(1.0 / n)
    optimizer = torch.optim.SGD([{"params": [first]}, {"params": rest}], lr=rate)
    optimizer.param_groups[0]["lr"].mul_(0.1)
    return optimizer


def _sgd(**options: Any) -> Make:
    return lambda p, n: torch.optim.SGD(p, lr=0.1 / n, **options)


def _variants() -> dict[str, Callable[[int], Any]]:
    schedules = torch.optim.lr_scheduler
    adam = OPTIMIZERS["Adam"]
    makes = {
        "SGD, dampening": _sgd(momentum=0.9, dampening=0.5),
        "SGD, Nesterov": _sgd(momentum=0.9, nesterov=True, weight_decay=0.3),
        "SGD, shared tensor rate": _shared_rate,
        "Adam, tensor rate": lambda p, n: torch.optim.Adam(p, lr=torch.tensor(0.1 / n)),
    }
    return {name: with_optimizer(_mlp, make) for name, make in makes.items()} | {
        "SGD, warm-up": scheduled(_sgd(momentum=0.9), lambda o: schedules.LambdaLR(o, lambda t: t / 2)),
        "AdamW, cosine": scheduled(OPTIMIZERS["AdamW"], lambda o: schedules.CosineAnnealingLR(o, T_max=3)),
        "Adam, one cycle": scheduled(adam, lambda o: schedules.OneCycleLR(o, max_lr=0.01, total_steps=4)),
        "SGD, clipped": clipped(_sgd(momentum=0.9), 0.1),
        "SGD, not clipped": clipped(_sgd(), 1e3, own=False),
        "SGD, biases clipped": clipped(_sgd(), 0.1, Plain),
        "Adam, clipped": clipped(adam, 0.1, own=False),
    }


def optimizer_cases() -> dict[str, Case]:
    """Training setups by name."""
    x, y = data()
    out = {name: Case(with_optimizer(_mlp, make), x, y) for name, make in OPTIMIZERS.items()}
    out |= {name: Case(make, x, y) for name, make in _variants().items()}
    models: dict[str, tuple[Callable[[int], nn.Module], Tensor, Tensor]] = {
        "plain": (Plain, x, y),
        "residual": (Residual, x, y),
        "recurrent": (Recurrent, data(3, 6)[0].reshape(3, 3, 2), y),
        "tied": (Tied, x, x),
    }
    for name, (model, inputs, targets) in models.items():
        for optimizer in ("Adam", "Lion", "Muon", "Adafactor"):
            out[f"{name}, {optimizer}"] = Case(with_optimizer(model, OPTIMIZERS[optimizer]), inputs, targets, steps=2)
    for name, case in attention_cases().items():
        if case.steps:
            out[f"{name}, Adam"] = replace(case, make=_retrained(case.make, OPTIMIZERS["Adam"]), steps=2)
    return out


def _retrained(make: Callable[[int], Any], optimizer: Make) -> Callable[[int], Any]:
    """The model of a factory with another optimizer."""

    def model(n: int) -> nn.Module:
        made = make(n)
        return made[0] if isinstance(made, tuple) else made

    return with_optimizer(model, optimizer)
