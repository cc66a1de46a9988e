"""Is the limit right? Its distance from the user's own model at finite widths, with the fitted rate.

A single draw of width n differs from the limit by Theta(n^-1/2), its mean by Theta(1/n) (or
n^-1/2 where relu units flip during training in the kernel regime: pass ``powers=(0.5,)``).
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.results import LimitResult, Result, SimulationResult
from tpcompile.statistics import (
    Slope,
    bonferroni_threshold,
    combined_dof,
    extrapolate,
    fit_slope,
    normal_score,
)

EXPECTED_SLOPE = -0.5
SLOPE_TOLERANCE = 0.1
ROUNDING = 1e-9  # relative to a quantity's largest entry: differences below are no differences


class Checkable(Protocol):
    """What :func:`check` needs of a compiled training run."""

    @property
    def evaluate(self) -> Callable[..., LimitResult]:
        """The limit; ``output_init="zero"`` conditions on a zero output at initialisation."""
        ...

    def simulate(self, width: int, seed: int = 0, **options: Any) -> SimulationResult:
        """One training run at a finite width."""
        ...


@dataclass(frozen=True)
class WidthRow:
    """One width: root mean squares over a quantity's entries, of single draws and of the mean of all seeds.

    ``distance`` is that of a single draw from the limit, ``mean_distance`` that of the mean, which
    noise alone makes ``mean_stderr``.
    """

    width: int
    distance: float
    distance_stderr: float
    mean_distance: float
    mean_stderr: float


@dataclass(frozen=True)
class QuantityCheck:
    """One quantity (``outputs``, ``loss``, ``kernel hidden.0``, ...) at all steps.

    ``discrepancy`` is the RMS difference between the extrapolated mean and the limit, ``resolution`` the RMS of
    its combined standard error (what could have been seen), ``scale`` the RMS of the limit itself.
    ``slope`` is None where it is not judged (the loss is quadratic near its minimum; a random limit) or the distance
    is zero.
    """

    name: str
    rows: tuple[WidthRow, ...]
    slope: Slope | None
    slope_dof: int
    comparisons: int
    worst_z: float
    rms_z: float
    discrepancy: float
    resolution: float
    scale: float
    misfit: float | None


@dataclass(frozen=True)
class CheckReport:
    """Limit against finite width. ``passed`` judges by the criterion that :attr:`criterion` states."""

    quantities: tuple[QuantityCheck, ...]
    widths: tuple[int, ...]
    seeds: int
    powers: tuple[float, ...]
    level: float
    evaluator: str
    notes: tuple[str, ...] = ()

    @property
    def comparisons(self) -> int:
        """How many entries are compared with the limit."""
        return sum(quantity.comparisons for quantity in self.quantities)

    @property
    def threshold(self) -> float:
        """The largest ``|z|`` that passes: Bonferroni's over all comparisons at ``level``."""
        return bonferroni_threshold(self.comparisons, self.level)

    def slope_allowance(self, quantity: QuantityCheck) -> float:
        """How far the slope may be from -1/2: 0.1, or its error (Student's t, Bonferroni over the slopes)."""
        from scipy import stats

        slopes = sum(other.slope is not None for other in self.quantities)
        if quantity.slope is None or math.isnan(quantity.slope.stderr):
            return SLOPE_TOLERANCE
        quantile = float(stats.t.isf(self.level / slopes / 2, quantity.slope_dof))
        return max(SLOPE_TOLERANCE, quantile * quantity.slope.stderr)

    def slope_passed(self, quantity: QuantityCheck) -> bool:
        """Whether the slope of one of the report's quantities passes, or is not judged."""
        if quantity.slope is None:
            return True
        return abs(quantity.slope.slope - EXPECTED_SLOPE) <= self.slope_allowance(quantity)

    @property
    def failures(self) -> tuple[str, ...]:
        """What does not pass, in words."""
        found = []
        for quantity in self.quantities:
            if not self.slope_passed(quantity) and quantity.slope is not None:
                found.append(
                    f"{quantity.name}: the distance falls as n^{quantity.slope.slope:.2f} "
                    f"(± {quantity.slope.stderr:.2f}), expected n^-0.5"
                )
            if not abs(quantity.worst_z) <= self.threshold:
                found.append(
                    f"{quantity.name}: the extrapolated mean is {abs(quantity.worst_z):.1f} standard errors "
                    f"from the limit, at most {self.threshold:.1f} pass"
                )
        return tuple(found)

    @property
    def passed(self) -> bool:
        """True if nothing fails."""
        return not self.failures

    @property
    def criterion(self) -> str:
        """The rule by which ``passed`` is decided."""
        return (
            f"passes if every slope is -1/2 within {SLOPE_TOLERANCE}, or within its error (Student's t, Bonferroni at "
            f"level {self.level:g} over the slopes), and every |z| of the extrapolated means is at most "
            f"{self.threshold:.2f} (level {self.level:g} over {self.comparisons} comparisons)"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and strings for JSON."""
        return {
            "passed": self.passed,
            "criterion": self.criterion,
            "failures": list(self.failures),
            "notes": list(self.notes),
            "widths": list(self.widths),
            "seeds": self.seeds,
            "powers": list(self.powers),
            "level": self.level,
            "threshold": self.threshold,
            "comparisons": self.comparisons,
            "evaluator": self.evaluator,
            "quantities": [
                _quantity_dict(quantity) | {"slope_passed": self.slope_passed(quantity)} for quantity in self.quantities
            ],
        }

    def __str__(self) -> str:
        from rich.console import Console

        from tpcompile.report.check_table import check_table

        console = Console(file=io.StringIO(), width=120, color_system=None)
        with console.capture() as capture:
            console.print(check_table(self))
        return capture.get().rstrip()


def check(
    compiled: Checkable,
    widths: Sequence[int] = (256, 512, 1024),
    seeds: int = 8,
    *,
    limit: LimitResult | None = None,
    powers: Sequence[float] = (1,),
    output_init: str | None = None,
    seed: int = 0,
    level: float = 0.01,
    progress: Callable[[int, int], None] | None = None,
    **evaluate_options: Any,
) -> CheckReport:
    """Train the user's model at every width with ``seeds`` seeds each and compare with the limit.

    ``limit`` is an evaluated limit (else it is evaluated with ``evaluate_options``); ``powers`` are those
    of 1/n in the mean's approach to the limit. A limit whose output at initialisation is random is compared
    conditioned on a zero output, as ``output_init="zero"`` asks for: single networks do not approach its mean. Where
    it is random even then (a bottleneck of finite width), means over seeds are compared with the ensemble's.
    (Pass ``output_init="zero"`` with a ``limit`` that was evaluated with it.)
    ``seed`` is the first of the consecutive seeds, ``progress(done, total)`` is called after every run.

    Raises :class:`UsageError` for too few widths or seeds.
    """
    widths = tuple(sorted(set(widths)))
    if len(widths) < max(2, len(powers) + 1):
        raise UsageError(f"{len(widths)} widths are too few", advice=f"give {max(2, len(powers) + 1)} or more")
    if seeds < 2:
        raise UsageError("a standard error needs two seeds or more")
    notes = []
    options: dict[str, Any] = {} if output_init is None else {"output_init": output_init}
    if limit is None:
        limit = compiled.evaluate(**options, **evaluate_options)
    if _random(limit) and output_init is None:
        conditioned = compiled.evaluate(output_init="zero", **evaluate_options)
        if _random(conditioned):
            notes.append(
                "the limit is random, with its output at initialisation held at zero too: means over seeds are "
                "compared with means over the ensemble, and single networks do not approach them"
            )
        else:
            options, limit = {"output_init": "zero"}, conditioned
            notes.append("the output at initialisation is random: both sides are conditioned on a zero output")
    elif _random(limit):
        raise UsageError(
            "the limit is random with its output at initialisation held at zero too; a finite network that is "
            "trained as f - f_0 is not that network conditioned on f_0 = 0",
            where="output_init",
            advice="leave output_init out: means over seeds are compared with means over the ensemble then",
        )
    samples: dict[int, list[dict[str, Tensor]]] = {n: [] for n in widths}
    for index, (width, _) in enumerate((n, s) for n in widths for s in range(seeds)):
        run = compiled.simulate(width, seed=seed + index, **options)
        samples[width].append(_quantities(run))
        if progress is not None:
            progress(index + 1, len(widths) * seeds)
    wanted, errors = _quantities(limit), _quantities(limit, errors=True)
    dof = limit.replicas - 1 if limit.evaluator == "particles" and limit.replicas > 1 else math.inf
    checks = []
    for name, value in wanted.items():
        draws = {n: torch.stack([run[name] for run in runs]) for n, runs in samples.items() if name in runs[0]}
        if len(draws) < len(widths):
            notes.append(f"{name}: not recorded by the simulation")
            continue
        checks.append(_check_quantity(name, draws, value, errors[name], dof, powers, judged=not _random(limit)))
    return CheckReport(tuple(checks), widths, seeds, tuple(powers), level, limit.evaluator, tuple(notes))


def _check_quantity(
    name: str,
    draws: dict[int, Tensor],
    limit: Tensor,
    error: Tensor,
    dof: float,
    powers: Sequence[float],
    judged: bool,
) -> QuantityCheck:
    """``draws[n]`` is ``(seeds, entries)``; ``limit`` and its standard ``error`` are ``(entries,)``."""
    squares = {n: (values - limit).square().mean(1) for n, values in draws.items()}  # of each draw
    spread = _relative_spread(squares)
    rows = tuple(_row(n, values, limit, squares[n], spread) for n, values in draws.items())
    extrapolated = extrapolate(draws, powers)
    variance = extrapolated.stderr.square() + error.square()
    difference = extrapolated.mean - limit
    none = difference.abs() <= ROUNDING * max(float(limit.abs().max()), 1e-300)
    t = torch.where(none, torch.zeros_like(difference), difference / variance.sqrt())
    freedom = combined_dof([extrapolated.stderr.square(), error.square()], [extrapolated.dof, dof])
    z = torch.where(t.isfinite(), normal_score(torch.nan_to_num(t), freedom), t)
    slope = None
    if judged and name != "loss" and all(row.distance > ROUNDING * max(_rms(limit), 1e-300) for row in rows):
        slope = fit_slope(
            [row.width for row in rows], [row.distance for row in rows], [row.distance_stderr for row in rows]
        )
    return QuantityCheck(
        name=name,
        rows=rows,
        slope=slope,
        slope_dof=sum(len(values) - 1 for values in draws.values()),
        comparisons=limit.numel(),
        worst_z=float(z[torch.nan_to_num(z.abs(), nan=math.inf).argmax()]),
        rms_z=_rms(z),
        discrepancy=_rms(difference),
        resolution=_rms(variance.sqrt()),
        scale=_rms(limit),
        misfit=extrapolated.misfit,
    )


def _row(width: int, values: Tensor, limit: Tensor, squares: Tensor, spread: float) -> WidthRow:
    distance = float(squares.mean().sqrt())
    return WidthRow(
        width=width,
        distance=distance,
        distance_stderr=distance * spread / 2 / math.sqrt(len(squares)),
        mean_distance=_rms(values.mean(0) - limit),
        mean_stderr=_rms(values.std(0) / math.sqrt(len(values))),
    )


def _relative_spread(squares: dict[int, Tensor]) -> float:
    """Standard deviation of one draw's squared distance over its mean, pooled over the widths.

    It hardly depends on the width, and few seeds at one width estimate it badly.
    """
    terms = [(len(v) - 1, float(v.var() / v.mean().square())) for v in squares.values() if bool(v.any())]
    return math.sqrt(sum(k * v for k, v in terms) / sum(k for k, _ in terms)) if terms else 0.0


def _quantities(result: Result, errors: bool = False) -> dict[str, Tensor]:
    """Every compared quantity, or its standard error, as a flat float64 vector."""
    suffix = "_stderr" if errors else ""
    values: dict[str, Tensor | None] = {
        name: getattr(result, name + suffix) for name in ("outputs", "test_outputs", "loss")
    }
    kernels = result.kernels_stderr if errors else result.kernels
    for name, kernel in kernels.items():
        upper = torch.triu_indices(kernel.shape[1], kernel.shape[2])
        values[f"kernel {name}"] = kernel[:, upper[0], upper[1]]
    return {name: value.double().flatten() for name, value in values.items() if value is not None}


def _random(limit: LimitResult) -> bool:
    return limit.outputs_cov is not None and bool((limit.outputs_cov != 0).any())


def _rms(values: Tensor) -> float:
    return float(values.square().mean().sqrt())


def _quantity_dict(quantity: QuantityCheck) -> dict[str, Any]:
    slope = quantity.slope
    return {
        "name": quantity.name,
        "rows": [vars(row) for row in quantity.rows],
        "slope": None if slope is None else slope.slope,
        "slope_stderr": None if slope is None or math.isnan(slope.stderr) else slope.stderr,
        "comparisons": quantity.comparisons,
        "worst_z": quantity.worst_z if math.isfinite(quantity.worst_z) else None,
        "rms_z": quantity.rms_z if math.isfinite(quantity.rms_z) else None,
        "discrepancy": quantity.discrepancy,
        "resolution": quantity.resolution,
        "scale": quantity.scale,
        "misfit": quantity.misfit,
    }
