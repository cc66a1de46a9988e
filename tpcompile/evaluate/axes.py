"""In which order the entries of a Gaussian parameter are drawn: along the principal axes of the data that it meets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tpcompile.analysis.semantics import constant_value, execute
from tpcompile.evaluate.domains import finite_size
from tpcompile.ir import Contract, Init, Node, Permute, Program, View, Width
from tpcompile.laws import Normal

LARGEST = 4096  # entries a coordinate: the work grows like the cube


def principal_axes(program: Program) -> dict[Node, Tensor]:
    """For initial vectors of d > 1 Gaussian entries a coordinate: an orthogonal matrix (d, d), float64.

    Its columns are the eigenvectors of the Gram matrix of all constants (inputs of a first layer) that the parameter is
    multiplied by as it was initialised, largest eigenvalue first. If z are d independent standard normals, so
    are the rows of ``axes @ z``; but now z_1 has the largest part in what the network sees, z_2 the next, and so on,
    which is the order in which quasi-random points are of best quality.
    """
    users: dict[Node, list[Node]] = {}
    for node in program.nodes:
        for x in dict.fromkeys(node.operands):
            users.setdefault(x, []).append(node)
    known: dict[Node, Tensor | None] = {}

    def constant(node: Node) -> Tensor | None:
        if node not in known:
            known[node] = constant_value(node, program.data)
        return known[node]

    out: dict[Node, Tensor] = {}
    for node in program.nodes:
        centred = isinstance(node.op, Init) and isinstance(node.op.law, Normal) and node.op.law.mean == 0
        if centred and node.kind == "vector" and 1 < finite_size(node) <= LARGEST:
            met = _met(node, users, constant)
            if met is not None:
                out[node] = torch.linalg.eigh(met.T @ met)[1].flip(1)
    return out


def _met(init: Node, users: dict[Node, list[Node]], constant: Callable[[Node], Tensor | None]) -> Tensor | None:
    """The coefficients of everything that is linear in the parameter with constant coefficients, a row each.

    The instructions themselves tell, on the unit vectors in place of the coordinates.
    """
    size = finite_size(init)
    axis = next(i for i, d in enumerate(init.dims) if isinstance(d, Width))
    finite = [d for d in init.dims if isinstance(d, int)]
    unit = torch.eye(size, dtype=torch.float64).reshape(*finite, size).movedim(-1, axis)
    values = {init: unit}
    rows: list[Tensor] = []
    queue = [init]
    for node in queue:
        for user in users.get(node, ()):
            others = [None if x is node else constant(x) for x in user.operands]
            linear = isinstance(user.op, View | Permute | Contract) and user.kind == "vector" and user not in values
            if not linear or sum(x is None for x in others) != 1:
                continue
            operands = [values[node] if x is None else x for x in others]
            values[user] = execute(user.op, operands, user.dims, lambda width: size, torch.float64)
            queue.append(user)
            if isinstance(user.op, Contract):
                place = next(i for i, d in enumerate(user.dims) if isinstance(d, Width))
                rows.append(values[user].movedim(place, -1).reshape(-1, size))
    return torch.cat(rows) if rows else None
