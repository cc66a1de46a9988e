"""Rich tables of results for the terminal, and results as plain dicts for JSON."""

from __future__ import annotations

import math
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from torch import Tensor

from tpcompile.metrics import METRIC_NAMES, Metrics
from tpcompile.results import LimitResult, Result, SimulationResult

_HEADINGS = {
    "feature_change": "features'\nchange",
    "kernel_change": "kernel's\nchange",
    "target_alignment": "alignment\nwith targets",
    "start_alignment": "alignment\nwith start",
    "participation_ratio": "participation\nratio",
    "entropy_rank": "entropy\nrank",
    "output_change": "output change",
    "loss": "loss",
}


def summary(result: Result) -> str:
    """One line that says what the result is."""
    size = f"{result.inputs_count} inputs, {result.steps} steps"
    if isinstance(result, LimitResult):
        text = f"infinite width, {result.evaluator} evaluator"
        if result.evaluator == "particles":
            text += f" ({result.particles} particles, {result.replicas} replicas, seed {result.seed})"
        return f"{text}; {size}"
    if isinstance(result, SimulationResult):
        return f"width {result.width}, seed {result.seed}; {size}"
    return size


def loss_table(result: Result) -> Table | None:
    """Loss by step with its standard error; None without a loss."""
    if result.loss is None or result.loss_stderr is None:
        return None
    table = Table(title="Loss", title_justify="left")
    table.add_column("step", justify="right")
    table.add_column("loss", justify="right")
    for step, (value, error) in enumerate(zip(result.loss.tolist(), result.loss_stderr.tolist(), strict=True)):
        table.add_row(str(step), with_error(value, error))
    return table


def outputs_table(result: Result, max_inputs: int = 6, max_steps: int = 12, test: bool = False) -> Table | None:
    """Outputs by step with standard errors for the first ``max_inputs`` entries; None without test outputs."""
    values = result.test_outputs if test else result.outputs
    errors = result.test_outputs_stderr if test else result.outputs_stderr
    if values is None or errors is None:
        return None
    flat, flat_errors = values.flatten(1), errors.flatten(1)
    shown = min(max_inputs, flat.shape[1])
    title = "Test outputs" if test else "Outputs"
    if shown < flat.shape[1]:
        title += f" (the first {shown} of {flat.shape[1]})"
    table = Table(title=title, title_justify="left")
    table.add_column("step", justify="right")
    for entry in range(shown):
        table.add_column(entry_name(entry, values), justify="right")
    for step in chosen_steps(result.steps, max_steps):
        cells = [with_error(float(flat[step, i]), float(flat_errors[step, i])) for i in range(shown)]
        table.add_row(str(step), *cells)
    return table


def metrics_table(metrics: Metrics, max_steps: int = 6) -> RenderableType:
    """Metrics per activation, at most ``max_steps`` evenly chosen steps each, and those of the function."""
    table = Table(title="Feature learning", title_justify="left")
    table.add_column("activation")
    table.add_column("step", justify="right")
    for name in METRIC_NAMES:
        table.add_column(_HEADINGS[name], justify="right")
    steps = chosen_steps(len(metrics.function["output_change"]) - 1, max_steps)
    for name in metrics:
        for step in steps:
            values, errors = metrics[name], metrics.activations_stderr[name]
            cells = [_compact(float(values[m][step]), float(errors[m][step])) for m in METRIC_NAMES]
            table.add_row(name if step == steps[0] else "", str(step), *cells, end_section=step == steps[-1])
    function = Table(title="Function", title_justify="left")
    function.add_column("step", justify="right")
    names = [name for name in ("loss", "output_change") if name in metrics.function]
    for name in names:
        function.add_column(_HEADINGS[name], justify="right")
    for step in steps:
        values, errors = metrics.function, metrics.function_stderr
        function.add_row(str(step), *(_compact(float(values[m][step]), float(errors[m][step])) for m in names))
    return Group(table, function)


def result_tables(result: Result, metrics: bool = True) -> RenderableType:
    """Everything that the command line shows of a result."""
    parts: list[RenderableType | None] = [
        summary(result),
        loss_table(result),
        outputs_table(result),
        outputs_table(result, test=True),
        metrics_table(result.metrics()) if metrics else None,
    ]
    return Group(*(part for part in parts if part is not None))


def result_dict(result: Result, ntk: bool = False) -> dict[str, Any]:
    """The whole result as lists and plain numbers for ``json.dumps``; what is not finite becomes None."""
    content: dict[str, Any] = {
        "kind": "limit" if isinstance(result, LimitResult) else "simulation",
        "steps": result.steps,
        "output_shape": list(result.output_shape or ()),
        "activations": list(result.activations),
    }
    for name in ("evaluator", "why", "particles", "replicas", "seed", "width"):
        if hasattr(result, name):
            content[name] = getattr(result, name)
    for name in (
        "outputs",
        "outputs_stderr",
        "test_outputs",
        "test_outputs_stderr",
        "loss",
        "loss_stderr",
        "outputs_cov",
        "outputs_cov_stderr",
        "test_outputs_cov",
        "test_outputs_cov_stderr",
        "targets",
    ):
        value = getattr(result, name, None)
        content[name] = None if value is None else plain(value)
    for name in ("kernels", "kernels_stderr", "feature_changes", "feature_changes_stderr"):
        content[name] = {key: plain(value) for key, value in getattr(result, name).items()}
    content["metrics"] = result.metrics().to_dict()
    if ntk:
        content["ntk"] = plain(result.ntk())
        content["ntk_by_parameter"] = {k: plain(v) for k, v in result.ntk(by_parameter=True).items()}
    return content


def plain(value: Tensor) -> Any:
    """Nested lists of a tensor, with None for numbers that are not finite."""
    if not value.is_floating_point() or bool(torch.isfinite(value).all()):
        return value.tolist()
    return _finite(value.tolist())


def with_error(value: float, error: float) -> str:
    """``0.1234 ± 0.0005``: the value to two digits of its standard error; five digits where exact."""
    if not math.isfinite(value):
        return str(value)
    if error <= 0 or not math.isfinite(error):
        return _number(value)
    digits = 1 - math.floor(math.log10(error))
    if 0 <= digits <= 9:
        return f"{value:.{digits}f} ± {error:.{digits}f}"
    return f"{value:.4g} ± {error:.1g}"


def _compact(value: float, error: float) -> str:
    """``0.1234(5)``: the standard error of the last digit in brackets; five digits where exact."""
    if not (math.isfinite(value) and math.isfinite(error)) or error <= 0:
        return _number(value)
    digits = -math.floor(math.log10(error))
    if 0 <= digits <= 5:
        return f"{value:.{digits}f}({error * 10**digits:.0f})"
    return _number(value)


def chosen_steps(steps: int, most: int) -> list[int]:
    """At most ``most`` evenly spaced steps of ``0..steps``, first and last included."""
    if steps + 1 <= most:
        return list(range(steps + 1))
    return sorted({round(i * steps / (most - 1)) for i in range(most)})


def entry_name(entry: int, outputs: Tensor) -> str:
    """Name of one flattened entry of ``outputs`` (T+1, N, ...): its input, and its output if several."""
    shape = outputs.shape[2:]
    index = []
    for size in reversed(shape):
        entry, position = divmod(entry, size)
        index.append(position)
    if math.prod(shape) == 1:
        return f"input {entry}"
    return f"input {entry} [{', '.join(map(str, reversed(index)))}]"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.5g}"


def _finite(value: Any) -> Any:
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return value if math.isfinite(value) else None
