"""Which width axes share their coordinates.

Vectors that are added or multiplied coordinate by coordinate, or contracted with each other, live on the
same axis; the two sides of an initial matrix need not. Each such domain gets its own particles, which keeps
the frames of orthonormal Gaussians short.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

import networkx as nx

from tpcompile.ir import Init, MatMul, Node, Program, Width, width_of, width_positions


@dataclass(frozen=True)
class Domain:
    """A width axis that is one and the same for all its vectors; ``rows`` bounds the Gaussians drawn on it."""

    index: int
    ratio: float
    rows: int


@dataclass(frozen=True)
class Domains:
    """The domain of every vector, and of the two sides (output, input) of every initial matrix."""

    of: dict[Node, Domain]
    sides: dict[Node, tuple[Domain, Domain]]
    columns: dict[tuple[Node, bool], int] = field(default_factory=dict)  # products a side, transposed or not

    def all(self) -> tuple[Domain, ...]:
        """Every domain once."""
        found = {*self.of.values(), *(d for pair in self.sides.values() for d in pair)}
        return tuple(sorted(found, key=lambda d: d.index))


def find_domains(program: Program) -> Domains:
    """Connected components of the vectors of a program under coordinatewise operations."""
    graph = nx.Graph()
    for node in program.nodes:
        if node.kind == "matrix":
            graph.add_nodes_from([(node, 0), (node, 1)])
            continue
        if node.kind == "vector":
            graph.add_node(node)
        if isinstance(node.op, MatMul):
            matrix, x = node.operands
            out, into = (1, 0) if node.op.transpose else (0, 1)
            graph.add_edge(node, (matrix, out))
            graph.add_edge(x, (matrix, into))
            continue
        vectors = [x for x in (node, *node.operands) if x.kind == "vector"]
        for a, b in pairwise(vectors):
            graph.add_edge(a, b)
    order = {node: i for i, node in enumerate(program.nodes)}

    def first(component: set) -> int:
        return min(order[x[0] if isinstance(x, tuple) else x] for x in component)

    of: dict[Node, Domain] = {}
    sides: dict[tuple[Node, int], Domain] = {}
    for index, component in enumerate(sorted(nx.connected_components(graph), key=lambda c: (first(c), _tie(c)))):
        domain = Domain(index, _ratio(component), _rows(component))
        for member in component:
            if isinstance(member, tuple):
                sides[member] = domain
            else:
                of[member] = domain
    columns: dict[tuple[Node, bool], int] = {}
    for node in program.nodes:
        if isinstance(node.op, MatMul):
            key = (node.operands[0], node.op.transpose)
            columns[key] = columns.get(key, 0) + finite_size(node)
    matrices = [node for node in program.nodes if node.kind == "matrix"]
    return Domains(of, {m: (sides[(m, 0)], sides[(m, 1)]) for m in matrices}, columns)


def _tie(component: set) -> int:
    return min((x[1] for x in component if isinstance(x, tuple)), default=-1)


def _ratio(component: set) -> float:
    for member in component:
        if isinstance(member, tuple):
            d = member[0].dims[width_positions(member[0].dims)[member[1]]]
            assert isinstance(d, Width)
            return float(d.ratio)
        width = width_of(member.dims)
        assert width is not None
        return float(width.ratio)
    raise AssertionError


def _rows(component: set) -> int:
    return sum(finite_size(x) for x in component if not isinstance(x, tuple) and isinstance(x.op, Init | MatMul))


def finite_size(node: Node) -> int:
    """Number of coordinates-vectors in a vector with finite axes."""
    size = 1
    for d in node.dims:
        size *= d if isinstance(d, int) else 1
    return size
