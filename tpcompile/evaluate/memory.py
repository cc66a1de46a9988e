"""How much memory an evaluation takes, known before it starts, and where it keeps its rows."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path

import torch

from tpcompile.errors import EvaluationError, UsageError
from tpcompile.evaluate.buffers import Allocate, folder, free_on_disk, on_disk
from tpcompile.evaluate.domains import finite_size
from tpcompile.evaluate.frames import AHEAD
from tpcompile.evaluate.plan import Plan
from tpcompile.ir import Concat, Expand, Node, Permute, Slice, SplitWidth, View

_UNITS = {"B": 1, "KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
_BASE = 5e7  # the small things: scalars, temporaries of torch


def parse_bytes(memory: int | float | str) -> float:
    """Bytes of ``4e9``, ``"4GB"`` or ``"500 MiB"``; UsageError for anything else."""
    if isinstance(memory, int | float) and not isinstance(memory, bool) and memory > 0:
        return float(memory)
    if isinstance(memory, str):
        text = memory.replace(" ", "").upper()
        number = text.rstrip("KMGTIB")
        unit = text[len(number) :] or "B"
        try:
            value = float(number) * _UNITS[unit]
        except (ValueError, KeyError):
            value = -1.0
        if value > 0:
            return value
    raise UsageError(f"memory must be a number of bytes or a text such as '4GB', found {memory!r}")


def available() -> float:
    """Memory that this machine can give without swapping, bytes."""
    info = Path("/proc/meminfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) * 1024
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        return float(os.sysconf("SC_PHYS_PAGES")) * os.sysconf("SC_PAGE_SIZE")
    return math.inf


@dataclass(frozen=True)
class Need:
    """Peak memory of one run divided by its number of particles, bytes.

    ``values`` is what the program's values and the drawing of points take; ``rows`` the bases and fresh normals of the
    initial matrices and the histories of updates, which are written once and read in order.
    """

    values: float
    rows: float

    @property
    def total(self) -> float:
        """With everything in memory."""
        return self.values + self.rows


@dataclass(frozen=True)
class Storage:
    """Where a run keeps its rows (None: in memory), how many runs fit side by side, and a note if that is unusual."""

    allocate: Allocate | None
    runs: int
    note: str = ""


def need_per_particle(plan: Plan, dtype: torch.dtype) -> Need:
    """Walks the program with the lifetimes of its values, once for each plan."""
    known: dict[torch.dtype, Need] = vars(plan).setdefault("_need", {})
    if dtype not in known:
        known[dtype] = _need_per_particle(plan, dtype)
    return known[dtype]


def _need_per_particle(plan: Plan, dtype: torch.dtype) -> Need:
    item = torch.empty((), dtype=dtype).element_size()
    alive: dict[Node, int] = {}
    peak = 0

    def size(node: Node) -> int:
        return finite_size(node) * plan.domains.of[node].blocks

    for i, node in enumerate(plan.program.nodes):
        if node.kind == "vector" and not isinstance(node.op, View | Permute | Expand | Slice | SplitWidth):
            alive[node] = 0 if isinstance(node.op, Concat) and node in plan.histories else size(node)
        # an operation holds its result and about two temporaries of its size
        peak = max(peak, sum(alive.values()) + 2 * (size(node) if node.kind == "vector" else 0))
        if not plan.scalars:
            for x in node.operands:
                if plan.last_use.get(x, 0) <= i:
                    alive.pop(x, None)
    last = {first: node for node, (first, _) in plan.histories.items()}
    histories = sum(size(node) for node in last.values() if node.kind == "vector")
    columns = 0  # each product is a basis row on the side that it contracts and a fresh row on the other
    for (matrix, _), count in plan.domains.columns.items():
        columns += count * sum(d.blocks for d in plan.domains.sides[matrix])
    ahead = sum(min(AHEAD, d.rows * d.blocks) for d in plan.domains.all())
    points = max((min(AHEAD, d.rows * d.blocks) for d in plan.domains.all()), default=0)
    return Need((peak + ahead + points) * item, (histories + columns) * item)


def choose_storage(plan: Plan, particles: int, dtype: torch.dtype, bound: float | None) -> Storage:
    """Rows in memory where they fit, else on disk; ``bound`` None is what the machine has to give.

    EvaluationError, with the number of particles that fits, if a run would need more than the bound even so.
    """
    limit = available() if bound is None else bound
    need = need_per_particle(plan, dtype)
    spare = limit - _BASE
    runs = int(min(spare / (need.total * particles), 1e6))
    if runs >= 1:
        return Storage(None, runs)
    disk = free_on_disk()
    runs = min(int(spare / (need.values * particles)), int(disk / (need.rows * particles)) if need.rows else 1)
    if runs >= 1:
        size, where = need.rows * particles / 1e9, folder()
        return Storage(on_disk, runs, f"; to stay within {limit / 1e9:.3g} GB, {size:.3g} GB a run are kept in {where}")
    fit = max(0.0, min(spare / need.values, disk / max(need.rows, 1.0)))
    power = 2 ** int(math.log2(fit)) if fit >= 1 else 0
    least = (_BASE + need.values * particles) / 1e9
    what = (
        f"{particles} particles need about {least:.2f} GB of memory and {need.rows * particles / 1e9:.2f} GB on disk, "
        f"{limit / 1e9:.2f} GB and {disk / 1e9:.2f} GB are there"
    )
    advice = f"set particles={power} or dtype=torch.float32, or raise memory=" if power >= 16 else "raise memory="
    raise EvaluationError(what, advice=advice)
