"""How much memory an evaluation takes, known before it starts."""

from __future__ import annotations

import math
import os
from pathlib import Path

import torch

from tpcompile.errors import EvaluationError, UsageError
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


def bytes_per_particle(plan: Plan, dtype: torch.dtype) -> float:
    """Peak memory of one run divided by its number of particles.

    Walks the program with the lifetimes of its values; adds the bases and fresh Gaussians of every initial
    matrix, the histories of updates, and the points that are being drawn.
    """
    known: dict[torch.dtype, float] = vars(plan).setdefault("_bytes", {})  # a plan is walked once
    if dtype not in known:
        known[dtype] = _bytes_per_particle(plan, dtype)
    return known[dtype]


def _bytes_per_particle(plan: Plan, dtype: torch.dtype) -> float:
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
    return (peak + histories + columns + ahead + points) * item


def check_memory(plan: Plan, particles: int, dtype: torch.dtype, bound: float | None) -> None:
    """EvaluationError, with the number of particles that fits, if a run would need more than the bound.

    ``bound`` None is what the machine has to give.
    """
    limit = available() if bound is None else bound
    each = bytes_per_particle(plan, dtype)
    need = _BASE + each * particles
    if need <= limit:
        return
    fit = max(0.0, (limit - _BASE) / each)
    power = 2 ** int(math.log2(fit)) if fit >= 1 else 0
    what = f"{particles} particles need about {need / 1e9:.2f} GB, {limit / 1e9:.2f} GB are allowed"
    advice = f"set particles={power} or dtype=torch.float32, or raise memory=" if power >= 16 else "raise memory="
    raise EvaluationError(what, advice=advice)


def fitting_runs(plan: Plan, particles: int, dtype: torch.dtype, bound: float | None) -> int:
    """How many runs of so many particles fit side by side; at least one."""
    limit = available() if bound is None else bound
    return max(1, int((limit - _BASE) / (bytes_per_particle(plan, dtype) * particles)))
