"""Writes docs/nonlinearities.md from the registry: ``python tests/docs_nonlinearities.py``."""

from __future__ import annotations

import math
from pathlib import Path

from tpcompile.nonlin import Row, table

PAGE = Path(__file__).parents[1] / "docs" / "nonlinearities.md"
_HEADER = """\
# Nonlinearities

Made from the registry by `python tests/docs_nonlinearities.py`: do not edit by hand. Facts hold at the default
parameters. *Smoothness* is the highest derivative that is an ordinary function (relu 1, sign 0). *Homogeneity* is the d
of `f(c x) = c^d f(x)` for all c > 0: such a function keeps its form where its argument grows with the width. A function
that is not in this table is compiled too, if it is made of these by sums and products. A new one is one file in
`tpcompile/nonlin`.

| name | parameters | parity | smoothness | homogeneity | domain | growth | PyTorch operations | note |
|---|---|---|---|---|---|---|---|---|
"""


def page() -> str:
    """The text of the page."""
    return _HEADER + "".join(_line(row) + "\n" for row in table())


def _line(row: Row) -> str:
    smoothness = "∞" if math.isinf(row.smoothness) else f"{row.smoothness:g}"
    cells = (
        f"`{row.name}`",
        ", ".join(f"{name} = {value}" for name, value in row.parameters) or "-",
        row.parity,
        smoothness,
        "-" if row.homogeneity is None else f"{row.homogeneity:g}",
        row.domain,
        row.growth,
        ", ".join(f"`{target.removeprefix('aten.').removesuffix('.default')}`" for target in row.targets) or "-",
        row.note or "-",
    )
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
