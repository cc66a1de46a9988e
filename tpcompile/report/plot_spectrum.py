"""A figure of a limiting spectrum over the eigenvalues of a finite matrix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tpcompile.report.plot import GRID, LIMIT_COLOUR, figure_class
from tpcompile.spectra.density import Spectrum

FINITE_COLOUR = "#9ecae1"
_BINS = 60


def plot_spectrum(spectrum: Spectrum, path: str | Path | None = None, width: int = 512, seed: int = 0) -> Any:
    """The density (black) over the histogram of the eigenvalues at that width (blue); atoms are marked with their mass.

    Returns the matplotlib figure, and writes it to ``path`` where given. Raises MissingExtraError without matplotlib.
    """
    values = spectrum.eigenvalues(width, seed).numpy()
    figure = figure_class()(figsize=(6.4, 4.0), layout="constrained", facecolor="white")
    axis = figure.subplots()
    near = [np.abs(values - x) < 1e-6 * max(1.0, float(np.abs(values).max())) for x, _ in spectrum.atoms]
    spread = values[~np.any(near, axis=0)] if near else values
    heights = [float("inf")]
    if len(spread):
        counts, edges = np.histogram(spread, _BINS)
        heights = counts / (len(values) * np.diff(edges))
        axis.stairs(heights, edges, fill=True, color=FINITE_COLOUR, label=f"eigenvalues at width {width}")
    if spectrum.edges is not None:
        for i, (low, high) in enumerate(spectrum.intervals):
            inside = (spectrum.grid > low) & (spectrum.grid < high)
            label = "limit" if i == 0 else None
            axis.plot(spectrum.grid[inside], spectrum.density[inside], color=LIMIT_COLOUR, lw=1.8, label=label)
        inner = spectrum.density[len(spectrum.grid) // 20 : -len(spectrum.grid) // 20]
        axis.set_ylim(0, min(1.6 * float(inner.max()), 1.5 * max(heights)))
    for x, mass in spectrum.atoms:
        axis.axvline(x, color=LIMIT_COLOUR, lw=1.8, ls=":")
        axis.annotate(f" mass {mass:.3g}", (x, 0.92), xycoords=("data", "axes fraction"), fontsize=9)
    axis.set_xlabel("eigenvalue", fontsize=10)
    axis.set_ylabel("density", fontsize=10)
    axis.grid(color=GRID, lw=0.8)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)
    axis.legend(frameon=False, fontsize=9)
    if path is not None:
        figure.savefig(path, dpi=150)
    return figure
