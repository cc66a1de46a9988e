"""Axes as products of atoms: views regroup the atoms, split them and merge them (architecture, decision 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

from tpcompile.errors import UnsupportedOperationError
from tpcompile.ir import Dim, Dims, Node, Width, width_positions
from tpcompile.lowering.nodes import Nodes
from tpcompile.lowering.value import Axes, Axis, extent


def refactor(axes: Axes, sizes: Sequence[tuple[Fraction, int]], place: str) -> Axes:
    """Axes of a view of ``axes`` as torch axes of these sizes ``coefficient * n**power``.

    A width atom stays whole where it can; where a size cuts through it, it is split.
    """
    atoms = list(merge_finite([d for axis in axes for d in axis]))
    out: list[Axis] = []
    for coefficient, power in sizes:
        group: list[Dim] = []
        need = coefficient
        if power == 1:
            if atoms and isinstance(atoms[0], int):
                group.append(atoms.pop(0))
                need /= group[0]  # type: ignore[operator]
            width = atoms.pop(0) if atoms else None
            if not isinstance(width, Width):
                raise _no_view(axes, sizes, place)
            if need < width.ratio:  # the rest of the width goes to later axes
                atoms[:0] = [_whole(width.ratio / need, axes, sizes, place)]
                group.append(Width(need))
                need = Fraction(1)
            else:
                group.append(width)
                need /= width.ratio
            atoms = list(merge_finite(atoms))
        elif power > 1:
            raise _no_view(axes, sizes, place)
        left = _whole(need, axes, sizes, place)
        if left > 1:
            first = atoms.pop(0) if atoms else 1
            if isinstance(first, Width):
                atoms.insert(0, Width(first.ratio / left))
            elif first % left == 0:
                atoms.insert(0, first // left)
            elif power == 0 and left % first == 0 and atoms and isinstance(atoms[0], Width):
                atoms[0] = Width(atoms[0].ratio / (left // first))
            else:
                raise _no_view(axes, sizes, place)
            group.append(left)
            atoms = [d for d in atoms if d != 1]
        out.append(merge_finite(group))
    if atoms:
        raise _no_view(axes, sizes, place)
    return tuple(out)


def refactored(nodes: Nodes, node: Node, have: Dims, want: Dims, place: str = "") -> Node:
    """A value of dims ``have`` as one of dims ``want``: the same entries in the same order.

    Finite factors that both have beside a width stay; the others are merged into the width or split from it.
    """
    here, there = width_positions(have), width_positions(want)
    if not here or have == want:
        return nodes.view(node, want)
    if len(here) == 2:
        return _refactored_pairs(nodes, node, have, want, place)
    (i,), (j,) = here, there
    before, after, narrow, behind = (_size(x) for x in (have[:i], want[:j], have[i + 1 :], want[j + 1 :]))
    front, back = math.gcd(before, after), math.gcd(narrow, behind)
    outer, inner = before // front, narrow // back
    head = have[:i] if outer == 1 else (front, outer)
    tail = have[i + 1 :] if inner == 1 else (inner, back)
    node = nodes.view(node, (*head, have[i], *tail))
    node = _rejoined(nodes, node, 0, outer, inner, after // front, behind // back)
    return nodes.view(node, want)


def _refactored_pairs(nodes: Nodes, node: Node, have: Dims, want: Dims, place: str) -> Node:
    """The same of a value with two widths; between them stand inner factors of the first and outer ones of the second.

    How many of those a width takes in (or leaves) follows from its length and that of what is outside of it.
    """
    (i, j), (k, m) = width_positions(have), width_positions(want)
    before, after, narrow, behind = (_size(x) for x in (have[:i], want[:k], have[j + 1 :], want[m + 1 :]))
    front, back = math.gcd(before, after), math.gcd(narrow, behind)
    grown = [
        _ratio(want[b]) * there / (_ratio(have[a]) * here)
        for a, b, here, there in ((i, k, before, after), (j, m, narrow, behind))
    ]
    takes, leaves = [x.numerator for x in grown], [x.denominator for x in grown]
    middle = _size(have[i + 1 : j])
    if middle % (takes[0] * takes[1]):
        raise UnsupportedOperationError(
            f"a view of a matrix with axes {list(map(str, have))} as {list(map(str, want))}", where=place
        )
    outer, inner, rest = before // front, narrow // back, middle // (takes[0] * takes[1])
    parts: list[Dim] = [front, outer, have[i], takes[0], rest, takes[1], have[j], inner, back]
    node = nodes.view(node, tuple(d for d in parts if d != 1))
    node = _rejoined(nodes, node, 1, takes[1], inner, leaves[1], behind // back)
    node = _rejoined(nodes, node, 0, outer, takes[0], after // front, leaves[0])
    return nodes.view(node, want)


def _rejoined(nodes: Nodes, node: Node, which: int, outer: int, inner: int, new_outer: int, new_inner: int) -> Node:
    """A width with the factors beside it merged into it, then others split from it; 1 is none."""
    at = width_positions(node.dims)[which]
    if inner > 1:
        node = nodes.merge_width(node, at, inner=True)
    if outer > 1:
        node = nodes.merge_width(node, at - 1, inner=False)
        at -= 1
    if new_outer > 1:
        node = nodes.split_width(node, at, new_outer, inner=False)
        at += 1
    if new_inner > 1:
        node = nodes.split_width(node, at, new_inner, inner=True)
    return node


def _ratio(d: Dim) -> Fraction:
    assert isinstance(d, Width)
    return d.ratio


def _size(dims: Dims) -> int:
    return math.prod(d for d in dims if isinstance(d, int))


def _whole(size: Fraction, axes: Axes, sizes: Sequence[tuple[Fraction, int]], place: str) -> int:
    if size.denominator != 1:
        raise _no_view(axes, sizes, place)
    return int(size)


def _no_view(axes: Axes, sizes: Sequence[tuple[Fraction, int]], place: str) -> UnsupportedOperationError:
    want = [f"{c}*n^{p}" if p else str(c) for c, p in sizes]
    return UnsupportedOperationError(
        f"a view of axes {[[str(d) for d in a] for a in axes]} as {want}: the parts of a growing axis "
        "must be a fixed number of equal ones, or of a fixed length",
        where=place,
    )


def single(axis: Axis) -> Axis:
    """A growing axis as one width atom; a finite one as it is."""
    size, power = extent(axis)
    return (Width(size),) if power == 1 else axis


def merge_finite(group: Sequence[Dim]) -> Axis:
    """Neighbouring finite atoms merged, ones dropped."""
    out: list[Dim] = []
    for atom in group:
        last = out[-1] if out else None
        if isinstance(atom, int) and isinstance(last, int):
            out[-1] = last * atom
        elif atom != 1:
            out.append(atom)
    return tuple(out)
