"""Figures of training runs: the limit, finite widths beside it, and feature kernels before and after."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tpcompile.errors import MissingExtraError
from tpcompile.report.tables import chosen_steps, entry_name
from tpcompile.results import LimitResult, Result, SimulationResult

MAXCURVES, MAX_ACTIVATIONS = 8, 4
LIMIT_COLOUR, GRID = "#1a1a1a", "#e6e6e6"
CURVES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#6b6b6b")  # Okabe & Ito


def plot_training(result: Result, simulations: Sequence[SimulationResult] = (), path: str | Path | None = None) -> Any:
    """Loss and output curves of ``result`` with finite-width runs, and its feature kernels at start and end.

    At most 8 output curves (evenly from lowest to highest at the end) and 4 activations (evenly chosen) are
    drawn. Shaded are two standard errors, or two standard deviations of the Gaussian ensemble ``outputs_cov``.
    Returns the matplotlib figure, and writes it to ``path`` where given. Raises :class:`MissingExtraError`
    without matplotlib.
    """
    make_figure = figure_class()
    names = [result.activations[i] for i in chosen_steps(len(result.activations) - 1, MAX_ACTIVATIONS)]
    names = names if result.activations else []
    show_loss = result.loss is not None and result.steps > 0
    panels = [*(["loss"] if show_loss else []), "outputs"]
    width = 10.0
    heights = [3.3, *([3.9] if names else [])]
    figure = make_figure(figsize=(width, sum(heights)), layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.06, h_pad=0.06)
    rows = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    axes = rows[0].subplots(1, len(panels), squeeze=False)[0]
    if show_loss:
        _draw_loss(axes[0], result, simulations)
    _draw_outputs(axes[-1], result, simulations)
    if names:
        _draw_kernels(rows[1], result, names)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def chosen_outputs(result: Result, most: int = MAXCURVES) -> list[int]:
    """Indices of at most ``most`` flattened outputs that show the spread at the end, lowest to highest."""
    final = result.outputs[-1].flatten()
    order = torch.argsort(final).tolist()
    return [order[i] for i in chosen_steps(len(order) - 1, most)]


def figure_class() -> Any:
    """matplotlib's Figure. Raises MissingExtraError without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError(
            "plots need matplotlib, which is not installed", advice="pip install 'tpcompile[plot]'"
        ) from error
    return Figure


def _draw_loss(axis: Any, result: Result, simulations: Sequence[SimulationResult]) -> None:
    assert result.loss is not None
    steps = list(range(result.steps + 1))
    shades = _shades(simulations)
    named = set()
    for run in simulations:
        if run.loss is not None:
            label = None if run.width in named else f"width {run.width}"
            named.add(run.width)
            axis.plot(range(run.steps + 1), run.loss.numpy(), color=shades[run.width], lw=1.0, alpha=0.8, label=label)
    loss = result.loss.numpy()
    if result.loss_stderr is not None and bool((result.loss_stderr > 0).any()):
        band = 2 * result.loss_stderr.numpy()
        axis.fill_between(steps, loss - band, loss + band, color=LIMIT_COLOUR, alpha=0.2, lw=0)
    axis.plot(steps, loss, color=LIMIT_COLOUR, lw=2.2, marker="o", ms=3.5, label=_label(result), zorder=5)
    _style(axis, "Training loss", "step", "loss", result.steps)
    positive = bool((result.loss > 0).all()) and bool(torch.isfinite(result.loss).all())
    if positive and float(result.loss.max() / result.loss.min()) > 30:
        axis.set_yscale("log")
    if simulations:
        axis.legend(frameon=False, fontsize=9)


def _draw_outputs(axis: Any, result: Result, simulations: Sequence[SimulationResult]) -> None:
    chosen = chosen_outputs(result)
    flat, error = result.outputs.flatten(1).numpy(), result.outputs_stderr.flatten(1).numpy()
    steps = list(range(result.steps + 1))
    covariance = result.outputs_cov if isinstance(result, LimitResult) else None
    if covariance is not None:
        error = covariance.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt().numpy()
    shown = [run for run in _largest_width(simulations) if run.outputs.shape == result.outputs.shape]
    for place, entry in enumerate(chosen):
        colour = CURVES[place % len(CURVES)]
        for run in shown:
            curve = run.outputs.flatten(1)[:, entry].numpy()
            axis.plot(steps, curve, color=colour, lw=0.9, alpha=0.55, ls=(0, (4, 2)))
        mean, band = flat[:, entry], 2 * error[:, entry]
        if bool((band > 0).any()):
            axis.fill_between(steps, mean - band, mean + band, color=colour, alpha=0.2, lw=0)
        mark = "o" if result.steps == 0 else None
        axis.plot(steps, mean, color=colour, lw=2.0, marker=mark, label=entry_name(entry, result.outputs), zorder=5)
    total = flat.shape[1]
    title = "Outputs" if len(chosen) == total else f"Outputs ({len(chosen)} of {total})"
    if shown:
        title += f"; dashed: width {shown[0].width}"
    spread = "" if covariance is None else " (shaded: two standard deviations over initialisations)"
    _style(axis, title, f"step{spread}", "network output", result.steps)
    handles, labels = axis.get_legend_handles_labels()
    handles, labels = handles[::-1], labels[::-1]  # highest curve first
    axis.legend(handles, labels, frameon=False, fontsize=8.5, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw_kernels(figure: Any, result: Result, names: list[str]) -> None:
    moments = [(0, "start")] if result.steps == 0 else [(0, "start"), (result.steps, f"after {result.steps} steps")]
    axes = figure.subplots(len(moments), len(names), squeeze=False)
    count = result.inputs_count
    parts = [torch.stack([result.kernels[name][step] for step, _ in moments]) for name in names]
    sizes = [float(torch.nan_to_num(part).abs().max()) or 1.0 for part in parts]
    signed = any(float(part.min()) < -0.05 * size for part, size in zip(parts, sizes, strict=True))
    for column, name in enumerate(names):
        shown, size, image = parts[column], sizes[column], None
        scale = {"cmap": "RdBu_r" if signed else "viridis", "vmin": -size if signed else 0.0, "vmax": size}
        for row, (_, when) in enumerate(moments):
            axis = axes[row][column]
            image = axis.imshow(shown[row].numpy(), interpolation="nearest", **scale)
            if count < shown.shape[-1]:  # between inputs and test inputs
                for line in (axis.axhline, axis.axvline):
                    line(count - 0.5, color="white" if not signed else LIMIT_COLOUR, lw=0.9)
            axis.set_xticks([])
            axis.set_yticks([])
            for side in axis.spines.values():
                side.set_visible(False)
            if row == 0:
                axis.set_title(name, fontsize=10)
            if column == 0:
                axis.set_ylabel(when, fontsize=10)
        bar = figure.colorbar(image, ax=list(axes[:, column]), fraction=0.05, pad=0.03, aspect=28)
        bar.outline.set_visible(False)
        bar.ax.tick_params(labelsize=8, length=2)
        bar.ax.locator_params(nbins=5)
    kinds = "inputs" if result.test_inputs_count == 0 else "inputs, then test inputs"
    left = "" if len(names) == len(result.activations) else f" ({len(names)} of {len(result.activations)} activations)"
    figure.suptitle(f"Feature kernels over {kinds}{left}", fontsize=11, fontweight="bold")


def _style(axis: Any, title: str, xlabel: str, ylabel: str, steps: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_title(title, fontsize=11, fontweight="bold", loc="left")
    axis.set_xlabel(xlabel, fontsize=10)
    axis.set_ylabel(ylabel, fontsize=10)
    axis.tick_params(labelsize=9, length=3)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8))
    if steps:
        axis.set_xlim(0, steps)
    axis.grid(color=GRID, lw=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def _shades(simulations: Sequence[SimulationResult]) -> dict[int, Any]:
    """Colours of the widths, light to dark blue."""
    from matplotlib import colormaps

    widths = sorted({run.width for run in simulations})
    return {n: colormaps["Blues"](0.4 + 0.5 * i / max(len(widths) - 1, 1)) for i, n in enumerate(widths)}


def _largest_width(simulations: Sequence[SimulationResult]) -> list[SimulationResult]:
    largest = max((run.width for run in simulations), default=0)
    return [run for run in simulations if run.width == largest]


def _label(result: Result) -> str:
    if isinstance(result, LimitResult):
        return "infinite width"
    return f"width {result.width}" if isinstance(result, SimulationResult) else "result"
