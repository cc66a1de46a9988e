"""Figures of kernels: the matrices, and their spectra where they are symmetric."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tpcompile.report.kernel import KernelView
from tpcompile.report.plot import GRID, LIMIT_COLOUR, figure_class

MOST_SHOWN, MOST_EIGENVALUES = 1000, 2000


def plot_kernels(views: Sequence[KernelView], path: str | Path | None = None) -> Any:
    """A column for each kernel: its entries (of at most 1000 inputs a side), and its eigenvalues.

    Eigenvalues are drawn for symmetric matrices of at most 2000 rows. Returns the matplotlib figure, and writes it to
    ``path`` where given. Raises MissingExtraError without matplotlib.
    """
    whole = [view for view in views if max(view.values.shape[:2]) <= MOST_EIGENVALUES and view.symmetric]
    rows = 2 if whole else 1
    figure = figure_class()(figsize=(5.2 * len(views), 4.4 * rows), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, len(views), squeeze=False)
    for column, view in enumerate(views):
        _draw_entries(figure, axes[0][column], view)
        if view in whole:
            _draw_spectrum(axes[1][column], view)
        elif rows == 2:
            axes[1][column].set_axis_off()
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure


def _draw_entries(figure: Any, axis: Any, view: KernelView) -> None:
    step = -(-max(view.values.shape[:2]) // MOST_SHOWN)
    matrix = view.matrix(step)
    size = float(torch.nan_to_num(matrix).abs().max()) or 1.0
    signed = float(matrix.min()) < -0.02 * size
    image = axis.imshow(
        matrix.numpy(),
        interpolation="nearest",
        aspect="auto" if matrix.shape[0] != matrix.shape[1] else "equal",
        cmap="RdBu_r" if signed else "viridis",
        vmin=-size if signed else 0.0,
        vmax=size,
    )
    kept = "" if step == 1 else f" (1 input in {step})"
    axis.set_title(view.title + kept, fontsize=11, fontweight="bold", loc="left")
    axis.set_xticks([])
    axis.set_yticks([])
    for side in axis.spines.values():
        side.set_visible(False)
    bar = figure.colorbar(image, ax=axis, fraction=0.05, pad=0.03, aspect=28)
    bar.outline.set_visible(False)
    bar.ax.tick_params(labelsize=8, length=2)


def _draw_spectrum(axis: Any, view: KernelView) -> None:
    values = torch.linalg.eigvalsh(view.matrix().double()).flip(0)
    positive = values > 1e-16 * values.abs().max()
    count = torch.arange(1, len(values) + 1)
    axis.loglog(count[positive], values[positive], color=LIMIT_COLOUR, lw=1.8, marker="o", ms=2.5)
    axis.set_title("Eigenvalues", fontsize=11, fontweight="bold", loc="left")
    axis.set_xlabel("number", fontsize=10)
    axis.tick_params(labelsize=9, length=3)
    axis.grid(color=GRID, lw=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
