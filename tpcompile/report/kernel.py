"""Kernels for the terminal and for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor

from tpcompile.kernels.arrays import as_matrix
from tpcompile.report.tables import plain, with_error

TITLES = {"nngp": "Covariance (NNGP)", "ntk": "Tangent kernel (NTK)"}
MOST = 6


@dataclass(frozen=True)
class KernelView:
    """One kernel ``(N1, N2, *P, *P)``, or its diagonal ``(N, *P, *P)``, in memory or on disk.

    ``errors`` are standard errors where expectations were sampled.
    """

    name: str
    exponent: Fraction
    values: Any
    errors: Any
    diagonal: bool

    @property
    def title(self) -> str:
        """Its name with the power of n that its entries are to be multiplied by."""
        factor = "" if self.exponent == 0 else f", in units of n^{self.exponent}"
        return TITLES[self.name] + factor

    @property
    def symmetric(self) -> bool:
        """True for a matrix of inputs with themselves."""
        if self.diagonal or self.values.shape[0] != self.values.shape[1]:
            return False
        whole = self.matrix()
        return bool(torch.allclose(whole, whole.T, rtol=1e-5, atol=0.0))

    def matrix(self, step: int = 1) -> Tensor:
        """Every ``step``-th input as a matrix over (input, position) pairs."""
        return as_matrix(_tensor(self.values[::step, ::step]))


def _tensor(values: Any) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(values[...])


def kernel_tables(views: Sequence[KernelView], forms: Sequence[tuple[str, float | None]]) -> RenderableType:
    """The first entries of every kernel, and how its expectations were computed."""
    parts: list[RenderableType] = []
    for view in views:  # titles as lines of their own: that of a narrow table is broken
        parts += [Text(f"{view.title}, shape {tuple(view.values.shape)}", style="italic"), _corner(view)]
    if forms:
        parts.append(_forms(forms))
    return Group(*parts)


def _corner(view: KernelView) -> Table:
    table = Table()
    cut = (slice(MOST),) if view.diagonal else (slice(MOST), slice(MOST))
    values = _tensor(view.values[cut])
    errors = torch.zeros_like(values) if view.errors is None else _tensor(view.errors[cut])
    if view.diagonal:  # positions are columns
        values, errors = (x.reshape(len(x), -1) for x in (values, errors))
        columns = [""] if values.shape[1] == 1 else [f"{i}" for i in range(min(MOST, values.shape[1]))]
        rows = [f"{i}" for i in range(len(values))]
    else:
        half = (values.dim() - 2) // 2
        positions = values.shape[2 : 2 + half].numel()
        values, errors = as_matrix(values), as_matrix(errors)
        rows, columns = (
            [f"{i // positions}" if positions == 1 else f"{i // positions} [{i % positions}]" for i in range(count)]
            for count in values.shape
        )
    table.add_column("input", justify="right")
    for name in columns[:MOST]:
        table.add_column(name, justify="right")
    for i, name in enumerate(rows[:MOST]):
        cells = [with_error(float(values[i, j]), float(errors[i, j])) for j in range(len(columns[:MOST]))]
        table.add_row(name, *cells)
    return table


def _forms(forms: Sequence[tuple[str, float | None]]) -> Table:
    table = Table(title="Expectations", title_justify="left")
    table.add_column("computed by")
    table.add_column("number", justify="right")
    table.add_column("stated error", justify="right")
    for form in dict.fromkeys(name for name, _ in forms):
        errors = [error for name, error in forms if name == form]
        known = [error for error in errors if error is not None]
        table.add_row(form, str(len(errors)), f"{max(known):.0e}" if known else "")
    return table


def kernel_dict(
    views: Sequence[KernelView], forms: Sequence[tuple[str, float | None]], values: bool = True
) -> dict[str, Any]:
    """Kernels as lists and plain numbers for ``json.dumps``; ``values=False`` leaves the entries out."""
    content: dict[str, Any] = {"forms": [{"computed_by": name, "error": error} for name, error in forms]}
    for view in views:
        content[f"{view.name}_shape"] = list(view.values.shape)
        content[f"{view.name}_exponent"] = str(view.exponent)
        if values:
            content[view.name] = plain(_tensor(view.values))
            content[f"{view.name}_stderr"] = None if view.errors is None else plain(_tensor(view.errors))
    return content
