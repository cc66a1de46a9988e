"""An empirical coordinate check: sizes of values in really trained models of several widths, and their slopes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tpcompile.errors import UsageError
from tpcompile.parametrization.report import Report
from tpcompile.recording import forward_with_activations
from tpcompile.simulate import training_run

WIDTHS = (64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Slope:
    """A fitted power of n and its standard error; "zero" is exactly zero at every width, nan could not be fitted."""

    slope: float
    stderr: float

    def __str__(self) -> str:
        if self.slope == -math.inf:
            return "zero"
        return "?" if math.isnan(self.slope) else f"{self.slope:+.2f} ± {self.stderr:.2f}"


@dataclass(frozen=True)
class CoordinateCheck:
    """Root-mean-square entries by quantity ("value", "change"), name and step: tensors (widths, seeds)."""

    widths: tuple[int, ...]
    seeds: int
    steps: int
    sizes: dict[tuple[str, str, int], Tensor]

    def slope(self, quantity: str, name: str, step: int) -> Slope:
        """Least squares in logarithms over all widths and seeds."""
        found = self.sizes.get((quantity, name, step))
        if found is None:
            raise UsageError(f"there is no {quantity} of '{name}' at step {step}", where="slope")
        if bool((found == 0).all()):
            return Slope(-math.inf, 0.0)
        if not bool(torch.isfinite(found).all()) or bool((found <= 0).any()):
            return Slope(math.nan, math.nan)
        x = torch.tensor(self.widths, dtype=torch.float64).log().unsqueeze(1).expand_as(found).flatten()
        y = found.double().log().flatten()
        x, y = x - x.mean(), y - y.mean()
        slope = float((x * y).sum() / (x * x).sum())
        rest = y - slope * x
        return Slope(slope, float((rest.square().sum() / max(len(x) - 2, 1) / (x * x).sum()).sqrt()))

    def rows(self, report: Report) -> list[tuple[str, str, int, str, Slope, bool | None]]:
        """(quantity, name, step, exact exponent, slope, whether they agree within 0.1 and two standard errors).

        The last is None where one of the two is not decided.
        """
        rows = []
        for quantity, name, step in self.sizes:
            sizes = report.values if quantity == "value" else report.changes
            if (name, step) not in sizes:
                continue
            size, slope = sizes[name, step], self.slope(quantity, name, step)
            agree = None
            if size.exponent is not None and not math.isnan(slope.slope):
                same = size.exponent == slope.slope  # both zero exactly
                agree = same or abs(float(size.exponent) - slope.slope) <= 0.1 + 2 * slope.stderr
            rows.append((quantity, name, step, str(size), slope, agree))
        return rows

    def to_list(self, report: Report) -> list[dict[str, Any]]:
        """The rows as plain values; None for slopes that could not be fitted, "-inf" for exactly zero."""
        return [
            {"quantity": quantity, "name": name, "step": step, "exact": exact, "agree": agree}
            | {"slope": "-inf" if slope.slope == -math.inf else None if math.isnan(slope.slope) else slope.slope}
            | {"stderr": None if math.isnan(slope.stderr) else slope.stderr}
            for quantity, name, step, exact, slope, agree in self.rows(report)
        ]

    def picture(self, report: Report, path: Any) -> None:
        """Draw the measured sizes and, dashed, the exact powers. Needs matplotlib."""
        from tpcompile.report.plot_check import draw_check

        draw_check(self, report, path)


def coordinate_check(
    make: Callable[[int], Any],
    inputs: Tensor | Sequence[Tensor],
    targets: Tensor | Sequence[Tensor] | None = None,
    loss: Callable[..., Tensor] | None = None,
    optimizer: Callable[..., Any] | None = None,
    steps: int = 3,
    *,
    widths: Sequence[int] = WIDTHS,
    seeds: int = 3,
) -> CoordinateCheck:
    """Train the user's model for ``steps`` steps at every width and seed, in double precision.

    Arguments as of :func:`tpcompile.verify`. Sizes are root mean squares over inputs and coordinates of activations, of
    "outputs" and of "loss", at initialisation and of their changes after each step.
    """
    if len(set(widths)) < 2 or seeds < 1:
        raise UsageError(f"needs two widths and one seed at least, got {tuple(widths)} and {seeds}", where="widths")
    found: dict[tuple[str, str, int], list[list[float]]] = {}
    for width in widths:
        for seed in range(seeds):
            for key, size in _sizes(make, inputs, targets, loss, optimizer, steps, width, seed).items():
                rows = found.setdefault(key, [])
                if len(rows) == 0 or len(rows[-1]) == seeds:
                    rows.append([])
                rows[-1].append(size)
    return CoordinateCheck(tuple(widths), seeds, steps, {key: torch.tensor(rows) for key, rows in found.items()})


def _sizes(
    make: Any, inputs: Any, targets: Any, loss: Any, optimizer: Any, steps: int, width: int, seed: int
) -> dict[tuple[str, str, int], float]:
    run = training_run(make, inputs, targets, loss, optimizer, steps, width=width, seed=seed)
    start: dict[str, Tensor] = {}
    sizes: dict[tuple[str, str, int], float] = {}

    def observe(step: int, model: nn.Module, rates: dict[str, float]) -> None:
        output, values = forward_with_activations(model, run.inputs)
        values = {**values, "outputs": output}
        if run.loss is not None:
            values["loss"] = run.loss(output, run.targets)
        for name, value in values.items():
            if step == 0:
                start[name] = value
                sizes["value", name, 0] = _rms(value)
            elif name in start:
                sizes["change", name, step] = _rms(value - start[name])

    run.train(observe)
    return sizes


def _rms(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt())
