"""Evaluate a program: choice of the evaluator, replicas, extrapolation, ensemble averages, standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tpcompile.analysis.parity import Parity
from tpcompile.evaluate.buffers import Arena, borrowed
from tpcompile.evaluate.choice import choose
from tpcompile.evaluate.ensemble import DEFAULT_MOST, members, zeroed
from tpcompile.evaluate.exact.degrees import beyond_moments, degrees
from tpcompile.evaluate.exact.formal import as_tensor, evaluate_formally
from tpcompile.evaluate.exact.linear import LinearRun
from tpcompile.evaluate.memory import choose_storage
from tpcompile.evaluate.particles import Run
from tpcompile.evaluate.plan import Evaluation, Plan, Progress
from tpcompile.evaluate.threads import Tick, side_by_side
from tpcompile.ir import Node, Program


@dataclass(frozen=True)
class Settings:
    """How a program is evaluated; all but the evaluator's name, ``output_init`` and ``dot`` concern the particles.

    ``dot`` False drops the response terms: wrong on purpose, to show their part.
    """

    particles: int = 16384
    replicas: int = 4
    seed: int = 0
    dtype: torch.dtype = torch.float64
    ensemble: int | None = None
    output_init: str | None = None
    extrapolate: bool = False
    dot: bool = True
    memory: float | None = None  # bytes; None is what the machine has
    evaluator: str = "auto"


@dataclass(frozen=True)
class Estimate:
    """Every output (its mean over the ensemble) and its covariance over the ensemble where asked, with standard errors.

    ``covariance_stderr`` is the standard error of the covariance, ``samples`` are the outputs of each replica (none
    where exact). ``evaluator`` is what it was evaluated by, ``why`` the reason for that choice.
    """

    mean: Mapping[str, Tensor]
    stderr: Mapping[str, Tensor]
    covariance: Mapping[str, Tensor]
    covariance_stderr: Mapping[str, Tensor]
    evaluator: str
    why: str
    samples: tuple[Mapping[str, Tensor], ...] = ()


def estimate(
    program: Program, settings: Settings, covariances: tuple[str, ...] = (), tick: Tick | None = None
) -> Estimate:
    """Evaluate all outputs of a program by the most exact evaluator that applies, or the one that is asked for.

    ``covariances`` names outputs whose covariance over the ensemble of random scalars is wanted. Raises UsageError if
    the evaluator asked for does not apply.
    """
    zero = zero_scalars(program, settings)
    choice = choose(program, settings.evaluator, covariances, zero, sampled=settings.ensemble is not None)
    if choice.degrees is None:
        return _particles(program, settings, covariances, tick, zero, choice.why)
    if choice.formal:
        return _polynomial(program, settings, covariances, zero, choice.why)
    plan = Plan.of(program)
    total = len(program.nodes)
    progress = (lambda i: None) if tick is None else (lambda i: tick(i, total))
    run = LinearRun(plan, choice.degrees, settings.dot, once=zero.issuperset(plan.scalars))
    mean, second = _ensemble(run, Parity(), settings, covariances, zero, True, progress, most=math.inf)
    zeros, exact = ({name: torch.zeros_like(x) for name, x in found.items()} for found in (mean, second))
    return Estimate(mean, zeros, second, exact, "exact", choice.why)


def _polynomial(
    program: Program, settings: Settings, covariances: tuple[str, ...], zero: frozenset[Node], why: str
) -> Estimate:
    """Evaluate all outputs over polynomials; means and covariances over the random scalars are exact, too."""
    found = evaluate_formally(program, number=float, zero=zero, dot=settings.dot)
    mean = {name: as_tensor(found.mean(name)) for name in found.values}
    second = {name: as_tensor(found.covariance(name)) for name in covariances} if found.wick.scalars else {}
    zeros, exact = ({name: torch.zeros_like(x) for name, x in values.items()} for values in (mean, second))
    return Estimate(mean, zeros, second, exact, "exact", why)


def zero_scalars(program: Program, settings: Settings) -> frozenset[Node]:
    """The random scalars that are conditioned on being zero."""
    if settings.output_init != "zero":
        return frozenset()
    names = [name for name in ("outputs/0", "test_outputs/0") if name in program.outputs]
    return zeroed([node for name in names if (node := program.outputs[name].limit) is not None])


def _particles(
    program: Program,
    settings: Settings,
    covariances: tuple[str, ...],
    tick: Tick | None,
    zero: frozenset[Node],
    why: str,
) -> Estimate:
    """Evaluate all outputs of a program on particles; replicas side by side, each on one thread.

    Each replica is an independent scrambling. With ``extrapolate`` a replica of M particles is ``2 f(M) - (f(M/2)
    + f'(M/2)) / 2`` over the two halves of its points: the bias of order 1/M cancels, and the sampling noise
    grows by 1.6 to 2, so that it pays only where many replicas have made the bias visible.
    """
    plan = Plan.of(program)
    storage = choose_storage(plan, settings.particles, settings.dtype, settings.memory)
    parity = Parity()
    moments = beyond_moments(program, degrees(program, zero), covariances) is None
    parts = [(1, 0, 2.0), (2, 0, -0.5), (2, 1, -0.5)] if settings.extrapolate else [(1, 0, 1.0)]

    def run(index: int, count: int, part: int, arena: Arena, progress: Progress) -> tuple[dict[str, Tensor], ...]:
        evaluation = Run(
            plan,
            settings.particles // count,
            settings.dtype,
            settings.seed * 1000 + index,
            part=part,
            parts=count,
            dot=settings.dot,
            arena=arena,
            allocate=storage.allocate,
        )
        return _ensemble(evaluation, parity, settings, covariances, zero, moments, progress)

    def replica(index: int, progress: Progress) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        sums: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
        with borrowed(plan.arenas) as arena:
            for place, (count, part, weight) in enumerate(parts):
                offset = place * len(program.nodes)
                found = run(index, count, part, arena, lambda i, o=offset: progress(o + i))
                for total, values in zip(sums, found, strict=True):
                    for name, value in values.items():
                        total[name] = total.get(name, 0.0) + weight * value.double()
        return sums

    found = side_by_side(
        replica,
        settings.replicas,
        min(torch.get_num_threads(), settings.replicas, storage.runs),
        len(program.nodes) * len(parts),
        tick,
    )
    samples, seconds = zip(*found, strict=True)
    return Estimate(*_averages(samples), *_averages(seconds), "particles", f"{why}{storage.note}", samples)


def _ensemble(
    run: Evaluation,
    parity: Parity,
    settings: Settings,
    covariances: tuple[str, ...],
    zero: frozenset[Node],
    moments: bool,
    progress: Progress,
    most: float = DEFAULT_MOST,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    draws = list(members(run, parity, settings.ensemble, zero, moments, progress, most))
    mean = {name: torch.stack([d[name] for d in draws]).mean(0) for name in draws[0]}
    second = {}
    for name in covariances:
        if len(draws) > 1:
            centred = torch.stack([d[name].reshape(-1) for d in draws]) - mean[name].reshape(-1)
            second[name] = centred.T @ centred / len(draws) + _of_the_mean(centred)
    return mean, second


def _of_the_mean(centred: Tensor) -> Tensor:
    """Covariance of the mean of all members, which their scatter about it lacks; members are antithetic pairs."""
    pairs = centred[: len(centred) // 2 * 2].unflatten(0, (-1, 2)).mean(1)
    count = len(pairs)
    return pairs.T @ pairs / (count * (count - 1)) if count > 1 else centred.new_zeros(2 * (centred.shape[1],))


def _averages(replicas: Sequence[Mapping[str, Tensor]]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Means over replicas and their standard errors."""
    stacked = {name: torch.stack([r[name] for r in replicas]) for name in replicas[0]}
    return {name: x.mean(0) for name, x in stacked.items()}, {name: _stderr(x) for name, x in stacked.items()}


def _stderr(x: Tensor) -> Tensor:
    if x.shape[0] < 2:
        return torch.full_like(x[0], float("nan"))
    return x.std(0) / x.shape[0] ** 0.5
