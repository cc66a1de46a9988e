"""Evaluate a program: replicas, extrapolation in the number of particles, ensemble averages, standard errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tpcompile.analysis.parity import Parity
from tpcompile.evaluate.ensemble import members, zeroed
from tpcompile.evaluate.memory import check_memory
from tpcompile.evaluate.particles import Plan, Run
from tpcompile.ir import Program

Tick = Callable[[int, int], None]


@dataclass(frozen=True)
class Settings:
    """How the particle evaluator runs. ``dot`` False drops the response terms: wrong on purpose, to show their part."""

    particles: int = 16384
    replicas: int = 4
    seed: int = 0
    dtype: torch.dtype = torch.float64
    ensemble: int | None = None
    output_init: str | None = None
    extrapolate: bool = False
    dot: bool = True
    memory: float | None = None  # bytes; None is what the machine has


@dataclass(frozen=True)
class Estimate:
    """Mean over replicas of every output, its standard error, and the covariance over the ensemble where asked."""

    mean: Mapping[str, Tensor]
    stderr: Mapping[str, Tensor]
    covariance: Mapping[str, Tensor]


def estimate(
    program: Program, settings: Settings, covariances: tuple[str, ...] = (), tick: Tick | None = None
) -> Estimate:
    """Evaluate all outputs of a program on particles.

    Each replica is an independent scrambling. With ``extrapolate`` a replica of M particles is ``2 f(M) - (f(M/2)
    + f'(M/2)) / 2`` over the two halves of its points: the bias of order 1/M cancels, and the sampling noise
    grows by 1.6 to 2, so that it pays only where many replicas have made the bias visible. ``covariances``
    names outputs whose covariance over the ensemble of random scalars is wanted.
    """
    plan = Plan.of(program)
    check_memory(plan, settings.particles, settings.dtype, settings.memory)
    parity = Parity()
    parts = [(1, 0, 2.0), (2, 0, -0.5), (2, 1, -0.5)] if settings.extrapolate else [(1, 0, 1.0)]
    length = len(program.nodes)
    total = settings.replicas * length * len(parts)
    done = 0

    def progress(i: int) -> None:
        if tick is not None:
            tick(min(done + i, total), total)

    samples: list[dict[str, Tensor]] = []
    seconds: list[dict[str, Tensor]] = []
    for replica in range(settings.replicas):
        mean: dict[str, Tensor] = {}
        second: dict[str, Tensor] = {}
        for count, part, weight in parts:
            run = Run(
                plan,
                settings.particles // count,
                settings.dtype,
                settings.seed * 1000 + replica,
                part=part,
                parts=count,
                dot=settings.dot,
            )
            m, s = _ensemble(run, parity, settings, covariances, progress)
            for name, value in m.items():
                mean[name] = mean.get(name, 0.0) + weight * value.double()
            for name, value in s.items():
                second[name] = second.get(name, 0.0) + weight * value.double()
            done += length
        samples.append(mean)
        seconds.append(second)
    stacked = {name: torch.stack([s[name] for s in samples]) for name in samples[0]}
    return Estimate(
        {name: x.mean(0) for name, x in stacked.items()},
        {name: _stderr(x) for name, x in stacked.items()},
        {name: torch.stack([s[name] for s in seconds]).mean(0) for name in seconds[0]},
    )


def _ensemble(
    run: Run, parity: Parity, settings: Settings, covariances: tuple[str, ...], progress: Callable[[int], None]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    zero = frozenset()
    if settings.output_init == "zero":
        outputs = run.plan.program.outputs
        start = [outputs[name].limit for name in ("outputs/0", "test_outputs/0") if name in outputs]
        zero = zeroed([node for node in start if node is not None])
    draws = list(members(run, parity, settings.ensemble, zero, progress))
    mean = {name: torch.stack([d[name] for d in draws]).mean(0) for name in draws[0]}
    second = {}
    for name in covariances:
        if len(draws) > 1:
            centred = torch.stack([d[name].reshape(-1) for d in draws]) - mean[name].reshape(-1)
            second[name] = centred.T @ centred / len(draws)
    return mean, second


def _stderr(x: Tensor) -> Tensor:
    if x.shape[0] < 2:
        return torch.full_like(x[0], float("nan"))
    return x.std(0) / x.shape[0] ** 0.5
