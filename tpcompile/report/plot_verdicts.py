"""A plane of parametrizations, each in the colour of its class."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

from tpcompile.report.plot import figure_class

COLOURS = {
    "maximal update": "#1a7f37",
    "feature learning": "#8fd19e",
    "kernel regime": "#f2c94c",
    "trivial": "#c8c8c8",
    "unstable": "#d9534f",
    "undecided": "#7a5195",
}


def verdict_map(cells: Sequence[tuple[Fraction, Fraction, str]], path: str | Path, title: str) -> None:
    """Draw cells ``(b, c, verdict)``. Raises MissingExtraError without matplotlib."""
    figure = figure_class()(figsize=(7.2, 4.6), layout="constrained", facecolor="white")
    axis = figure.subplots()
    for name, colour in COLOURS.items():
        points = [(float(b), float(c)) for b, c, verdict in cells if verdict == name]
        if points:
            axis.scatter(*zip(*points, strict=True), s=620, marker="s", color=colour, label=name)
    axis.set(xlabel="exponent b of the readout's initial values", ylabel="exponent c of the learning rate", title=title)
    axis.margins(0.1)
    figure.legend(loc="outside right center", markerscale=0.4, frameon=False)
    figure.savefig(path, dpi=120)
