"""Which width axes share their coordinates.

Vectors that are added or multiplied coordinate by coordinate, or contracted with each other, live on the
same axis; the two sides of an initial matrix need not. Each such domain gets its own particles, which keeps
the frames of orthonormal Gaussians short. Domains that are blocks of one another (SplitWidth, MergeWidth) form a
group: their particles are views of each other, so that a domain has as many times more as its axis is longer.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import groupby, pairwise
from typing import Any

from tpcompile.evaluate.components import components
from tpcompile.ir import Init, MatMul, MergeWidth, Node, Program, SplitWidth, Width, width_of, width_positions


@dataclass(frozen=True)
class Domain:
    """A width axis that is one and the same for all its vectors; ``rows`` bounds the Gaussians drawn on it.

    Its coordinates are ``(outer, unit, inner)`` in this order, where the coordinates of the group's ``unit`` axis are
    independent and every SplitWidth and MergeWidth of the group only moves factors of ``outer`` and ``inner``. Where
    no such layout exists (blocks taken one way here, another way there) the group is ``mixed``, and only the
    product ``blocks`` counts.
    """

    index: int
    ratio: float
    rows: int
    group: int = 0
    outer: int = 1
    inner: int = 1
    mixed: bool = False

    @property
    def blocks(self) -> int:
        """Length of the axis over that of the group's unit axis."""
        return self.outer * self.inner


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

    def groups(self) -> list[tuple[Domain, ...]]:
        """The domains by group."""
        return [tuple(group) for _, group in groupby(sorted(self.all(), key=lambda d: d.group), lambda d: d.group)]


def find_domains(program: Program) -> Domains:
    """Connected components of the vectors of a program under coordinatewise operations."""
    found: list[Any] = []
    edges: list[tuple[Any, Any]] = []
    ties: list[Node] = []
    for node in program.nodes:
        if node.kind == "matrix":
            found += [(node, 0), (node, 1)]
            continue
        if node.kind == "vector":
            found.append(node)
        if isinstance(node.op, SplitWidth | MergeWidth):
            ties.append(node)
            continue
        if isinstance(node.op, MatMul):
            matrix, x = node.operands
            out, into = (1, 0) if node.op.transpose else (0, 1)
            edges += [(node, (matrix, out)), (x, (matrix, into))]
            continue
        vectors = [x for x in (node, *node.operands) if x.kind == "vector"]
        edges += pairwise(vectors)
    order = {node: i for i, node in enumerate(program.nodes)}

    def first(component: set) -> int:
        return min(order[x[0] if isinstance(x, tuple) else x] for x in component)

    members: list[set] = sorted(components(found, edges), key=lambda c: (first(c), _tie(c)))
    place = {member: index for index, component in enumerate(members) for member in component}
    domains = [Domain(i, float(_ratio(c)), _rows(c), group=i) for i, c in enumerate(members)]
    ratios = [_ratio(c) for c in members]
    of: dict[Node, Domain] = {}
    sides: dict[tuple[Node, int], Domain] = {}
    for index, domain in enumerate(_grouped(domains, ratios, ties, place)):
        for member in members[index]:
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


def _grouped(
    domains: list[Domain], ratios: list[Fraction], ties: list[Node], place: Mapping[object, int]
) -> list[Domain]:
    """Groups of domains that are blocks of each other, and the layout of each."""
    steps: dict[int, list[tuple[int, Fraction, Fraction]]] = defaultdict(list)
    for node in ties:
        assert isinstance(node.op, SplitWidth | MergeWidth)
        a, b = place[node.operands[0]], place[node]
        change = ratios[b] / ratios[a]
        outer, inner = (Fraction(1), change) if node.op.inner else (change, Fraction(1))
        steps[a].append((b, outer, inner))
        steps[b].append((a, 1 / outer, 1 / inner))
    out = list(domains)
    seen: set[int] = set()
    for root in list(steps):
        if root in seen:
            continue
        layout, mixed = _layout(steps, root)
        seen |= set(layout)
        if mixed:
            layout = {i: (ratios[i], Fraction(1)) for i in layout}
        units = [_common(x[k] for x in layout.values()) for k in range(2)]
        for i, (outer, inner) in layout.items():
            sizes = {"outer": int(outer / units[0]), "inner": int(inner / units[1])}
            out[i] = replace(out[i], group=min(layout), mixed=mixed, **sizes)
    return out


def _layout(
    steps: Mapping[int, list[tuple[int, Fraction, Fraction]]], root: int
) -> tuple[dict[int, tuple[Fraction, Fraction]], bool]:
    """Factors before and behind the unit of each domain, relative to the first; True if two ways around disagree."""
    layout = {root: (Fraction(1), Fraction(1))}
    mixed = False
    queue = [root]
    for a in queue:
        for b, outer, inner in steps[a]:
            found = (layout[a][0] * outer, layout[a][1] * inner)
            if b not in layout:
                queue.append(b)
            mixed |= layout.setdefault(b, found) != found
    return layout, mixed


def _common(ratios: Iterable[Fraction]) -> Fraction:
    """The largest number of which all are multiples."""
    found = list(ratios)
    return Fraction(math.gcd(*(r.numerator for r in found)), math.lcm(*(r.denominator for r in found)))


def _tie(component: set) -> int:
    return min((x[1] for x in component if isinstance(x, tuple)), default=-1)


def _ratio(component: set) -> Fraction:
    for member in component:
        if isinstance(member, tuple):
            d = member[0].dims[width_positions(member[0].dims)[member[1]]]
            assert isinstance(d, Width)
            return d.ratio
        width = width_of(member.dims)
        assert width is not None
        return width.ratio
    raise AssertionError


def _rows(component: set) -> int:
    return sum(finite_size(x) for x in component if not isinstance(x, tuple) and isinstance(x.op, Init | MatMul))


def finite_size(node: Node) -> int:
    """Number of coordinates-vectors in a vector with finite axes."""
    size = 1
    for d in node.dims:
        size *= d if isinstance(d, int) else 1
    return size
