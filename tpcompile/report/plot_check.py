"""Measured sizes against the width, beside the exact powers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tpcompile.report.plot import CURVES, figure_class

if TYPE_CHECKING:
    from tpcompile.parametrization.empirical import CoordinateCheck
    from tpcompile.parametrization.report import Report


def draw_check(check: CoordinateCheck, report: Report, path: str | Path) -> None:
    """Values at initialisation and changes after the last step: a point for each seed, dashed the exact power."""
    figure = figure_class()(figsize=(11, 4.6), layout="constrained", facecolor="white")
    axes = figure.subplots(1, 2)
    panels = (("value", 0, "at initialisation"), ("change", check.steps, f"change after {check.steps} steps"))
    for axis, (quantity, step, title) in zip(axes, panels, strict=True):
        names = [name for q, name, t, *_ in check.rows(report) if (q, t) == (quantity, step)]
        for i, name in enumerate(names):
            _draw(axis, check, report, (quantity, name, step), CURVES[i % len(CURVES)])
        axis.set(xscale="log", yscale="log", title=title, xlabel="width")
        axis.set_xticks(check.widths, [str(n) for n in check.widths], minor=False)
        axis.minorticks_off()
        axis.legend(frameon=False, fontsize="x-small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    axes[0].set_ylabel("root mean square")
    figure.savefig(path, dpi=120)


def _draw(axis: Any, check: CoordinateCheck, report: Report, key: tuple[str, str, int], colour: str) -> None:
    quantity, name, step = key
    size = (report.values if quantity == "value" else report.changes)[name, step]
    slope = check.slope(quantity, name, step)
    sizes = check.sizes[key]
    label = f"{name}: exact {size}, slope {slope}"
    if not bool((sizes > 0).all()):
        axis.plot([], [], color=colour, label=label)
        return
    for seed in range(check.seeds):
        axis.plot(check.widths, sizes[:, seed], color=colour, marker="o", markersize=3, linestyle="none")
    e = size.exponent
    if e is not None and e != -math.inf:
        middle = float(sizes.double().log().mean())
        centre = sum(math.log(n) for n in check.widths) / len(check.widths)
        line = [math.exp(middle + float(e) * (math.log(n) - centre)) for n in check.widths]
        axis.plot(check.widths, line, color=colour, linestyle="--", linewidth=1, label=label)
    else:
        axis.plot([], [], color=colour, label=label)
