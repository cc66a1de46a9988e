"""Tables of the limit beside finite runs, and of the tangent kernel's shares."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from torch import Tensor

from tpcompile.report.tables import chosen_steps
from tpcompile.results import LimitResult, Result, SimulationResult


def widths_table(limit: LimitResult, runs: Sequence[SimulationResult], max_steps: int = 12) -> Table:
    """Loss and RMS difference of the outputs from the limit, by step, of every finite run."""
    table = Table(title="One network of finite width", title_justify="left")
    table.add_column("step", justify="right")
    if limit.loss is not None:
        table.add_column("loss\nlimit", justify="right")
        for run in runs:
            table.add_column(f"loss\nn = {run.width}", justify="right")
    for run in runs:
        table.add_column(f"outputs' RMS distance\nn = {run.width}", justify="right")
    for step in chosen_steps(limit.steps, max_steps):
        cells = [str(step)]
        if limit.loss is not None:
            losses = [limit.loss, *(run.loss for run in runs)]
            cells += ["-" if loss is None else f"{float(loss[step]):.5g}" for loss in losses]
        for run in runs:
            distance = (run.outputs[step] - limit.outputs[step]).square().mean().sqrt()
            cells.append(f"{float(distance):.3g}")
        table.add_row(*cells)
    return table


def ntk_table(result: Result, max_steps: int = 12) -> Table:
    """Mean of the tangent kernel's diagonal by step, by parameter and in total."""
    shares = {name: _diagonal(share) for name, share in result.ntk(by_parameter=True).items()}
    table = Table(title="Tangent kernel: mean of its diagonal", title_justify="left")
    table.add_column("step", justify="right")
    for name in shares:
        table.add_column(name, justify="right")
    table.add_column("total", justify="right")
    for step in chosen_steps(result.steps, max_steps):
        values = [float(share[step]) for share in shares.values()]
        table.add_row(str(step), *(f"{value:.5g}" for value in [*values, sum(values)]))
    return table


def _diagonal(share: Tensor) -> Tensor:
    diagonal = share.diagonal(dim1=1, dim2=2)
    if share.ndim == 5:  # (T+1, N, N, k, k): the trace over outputs
        diagonal = diagonal.diagonal(dim1=1, dim2=2).sum(-1)
    return diagonal.mean(-1)
