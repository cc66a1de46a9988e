"""The variances of a model's parameters as hyperparameters of its kernels."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

from tpcompile.errors import UsageError
from tpcompile.ir import Init, Program
from tpcompile.laws import Constant, Orthogonal, mean_and_std

DIRECTION = "direction/"  # tangent directions: their variances are the learning rates


def variances_of(program: Program) -> dict[str, float]:
    """Variance of the entries of each random parameter that the output depends on, by name and without powers of n."""
    laws = {node.op.name: node.op.law for node in program.nodes if isinstance(node.op, Init)}
    return {
        name: mean_and_std(law)[1] ** 2
        for name, law in laws.items()
        if not name.startswith(DIRECTION) and not isinstance(law, Constant | Orthogonal)
    }


def check_names(names: Iterable[str], known: Iterable[str]) -> None:
    """UsageError for a name that is no parameter with a variance."""
    known = list(known)
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            advice = f"did you mean '{near[0]}'?" if near else f"it has those of {', '.join(known) or 'no parameter'}"
            raise UsageError(f"the kernel has no variance of '{name}'", advice=advice)
