"""Parts of axes and their adjoints: slices, selections, concatenations, of finite and of growing axes alike.

A part of a growing axis is a run of its blocks (:class:`~tpcompile.lowering.value.Part`): the axis is split, the
blocks become entries of a finite axis, and what remains is an ordinary slice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from typing import Any

from tpcompile.capture.graph import Scaled
from tpcompile.errors import UnsupportedOperationError
from tpcompile.ir import Dims, Node, Slice, Unslice, Width
from tpcompile.lowering.algebra import Algebra
from tpcompile.lowering.axes import refactored, single
from tpcompile.lowering.matrix import Matrices
from tpcompile.lowering.value import AnyValue, Axis, Block, MatrixValue, Part, extent, flat, is_width

_LARGE = 2**62  # an end that means "to the end"


class Parts:
    """Slices of values and matrices along one torch axis, and their adjoints."""

    def __init__(self, algebra: Algebra, matrices: Matrices) -> None:
        self.a = algebra
        self.nodes = algebra.nodes
        self.matrices = matrices

    # which part ----------------------------------------------------------------------------

    def part(self, axis: Axis, dim: int, start: Any, stop: Any, step: int) -> Part:
        """The part ``start:stop:step`` of a growing axis, with bounds that are zero or proportional to the width."""
        total = extent(axis)[0]
        end = total if stop is None else self._bound(stop, total, dim)
        if step != 1:
            first = 0 if start is None else start
            if not isinstance(first, int) or not 0 <= first < step or end != total:
                raise self._unsupported(f"every {step}-th entry of a part of axis {dim}, which grows with the width")
            return Part(step, first, first + 1, Width(total / step), inner=True)
        begin = Fraction(0) if start is None else self._bound(start, total, dim)
        unit = _common(begin, end, total)
        return Part(int(total / unit), int(begin / unit), int(end / unit), Width(unit))

    def run(self, axis: Axis, offset: Fraction, length: Fraction, unit: Fraction) -> Part:
        """The part of ``length`` (in widths) from ``offset`` on, in blocks of ``unit``."""
        total = extent(axis)[0]
        return Part(int(total / unit), int(offset / unit), int((offset + length) / unit), Width(unit))

    def _bound(self, x: Any, total: Fraction, dim: int) -> Fraction:
        if isinstance(x, Scaled) and x.exponent == 1:
            bound = Fraction(x.coefficient).limit_denominator(2**20)
            return min(max(bound + total if bound < 0 else bound, Fraction(0)), total)
        if isinstance(x, int) and (x == 0 or x >= _LARGE):
            return Fraction(0) if x == 0 else total
        raise self._unsupported(f"a part of axis {dim}, which grows with the width, that is not a fixed share of it")

    def _unsupported(self, what: str) -> UnsupportedOperationError:
        return UnsupportedOperationError(
            what,
            where=self.a.place,
            advice="coordinates of a growing axis are alike: only parts in proportion to the width have a limit",
        )

    # cutting and embedding -----------------------------------------------------------------

    def cut(self, x: AnyValue, dim: int, part: Part) -> AnyValue:
        """A part of the growing torch axis ``dim``."""
        if isinstance(x, MatrixValue):
            return self._matrix(x, dim, part, single(part.piece), lambda node, at, have: self.cut_node(node, at, part))
        axes = (*x.axes[:dim], part.piece, *x.axes[dim + 1 :])
        at, have = len(flat(x.axes[:dim])), x.axes[dim]
        return self.a.over_nodes(x, axes, lambda node: self._cut(node, at, have, part))

    def embed(self, x: AnyValue, dim: int, part: Part) -> AnyValue:
        """The adjoint of :meth:`cut`: zeros outside the part."""
        if isinstance(x, MatrixValue):
            if x.inits or x.composed:
                raise self._unsupported("an initial matrix put into a larger one")
            whole = single(part.whole)
            return self._matrix(x, dim, part, whole, lambda node, at, have: self.embed_node(node, at, have, part))
        axes = (*x.axes[:dim], part.whole, *x.axes[dim + 1 :])
        at, have = len(flat(x.axes[:dim])), x.axes[dim]
        return self.a.over_nodes(x, axes, lambda node: self._embed(node, at, have, part))

    def cut_node(self, node: Node, at: int, part: Part) -> Node:
        """A part of the width atom at ``at``, as one width atom."""
        return self._as(self._cut(node, at, single(part.whole), part), at, part.piece, single(part.piece))

    def embed_node(self, node: Node, at: int, have: Axis, part: Part) -> Node:
        """Zeros around a node whose axis at ``at``, of atoms ``have``, is the part; one width atom."""
        return self._as(self._embed(node, at, have, part), at, part.whole, single(part.whole))

    def _cut(self, node: Node, at: int, have: Axis, part: Part) -> Node:
        node = self._as(node, at, have, part.whole)
        if (part.start, part.stop) == (0, part.parts):
            return node
        finite = at + (1 if part.inner else 0)
        node = self._finite(node, lambda x: self.nodes.builder.node(Slice(finite, part.start, part.stop, 1), x))
        return self._squeezed(node, finite) if part.stop - part.start == 1 else node

    def _embed(self, node: Node, at: int, have: Axis, part: Part) -> Node:
        node = self._as(node, at, have, part.piece)
        if (part.start, part.stop) == (0, part.parts):
            return node
        finite = at + (1 if part.inner else 0)
        if part.stop - part.start == 1:
            node = self.nodes.view(node, (*node.dims[:finite], 1, *node.dims[finite:]))
        op = Unslice(finite, part.start, part.stop, 1, part.parts)
        return self._finite(node, lambda x: self.nodes.builder.node(op, x))

    def _as(self, node: Node, at: int, have: Axis, want: Axis) -> Node:
        if have == want:
            return node
        before, behind = node.dims[:at], node.dims[at + len(have) :]
        return refactored(self.nodes, node, node.dims, (*before, *want, *behind))

    def _finite(self, node: Node, f: Callable[[Node], Node]) -> Node:
        number, base = self.nodes.split(node)
        scaled = self.nodes.scale(number, f(base))
        assert scaled is not None
        return scaled

    def _squeezed(self, node: Node, axis: int) -> Node:
        dims: Dims = (*node.dims[:axis], *node.dims[axis + 1 :])
        return self.nodes.view(node, dims)

    # matrices ------------------------------------------------------------------------------

    def _matrix(
        self, m: MatrixValue, dim: int, part: Part, axis: Axis, f: Callable[[Node, int, Axis], Node]
    ) -> MatrixValue:
        plain = tuple(single(a) if is_width(a) else a for a in m.axes)
        m = self.matrices.regroup(m, plain)
        row = dim == next(i for i, a in enumerate(m.axes) if is_width(a))
        side = "rows" if row else "columns"
        at = len(m.finite) + 1  # behind the finite axes and the rank

        def moved(b: Block) -> Block:
            return replace(b, u=f(b.u, at, m.axes[dim])) if row else replace(b, v=f(b.v, at, m.axes[dim]))

        if m.composed:
            raise self._unsupported("a part of a product of matrices")
        if any(getattr(t, side) is not None for t in m.inits):
            raise self._unsupported("a part of a part of an initial matrix")
        axes = (*m.axes[:dim], axis, *m.axes[dim + 1 :])
        inits = tuple(replace(t, **{side: part}) for t in m.inits)
        outers = [(t.exponent, [moved(b) for b in t.blocks]) for t in m.outers]
        place = len(flat(m.axes[:dim]))
        entries = [(e, f(x, place, m.axes[dim])) for e, x in m.entries]
        return self.matrices.make(axes, inits, outers, m.remainder, entries)


def pieces(axes: list[Axis]) -> tuple[list[Fraction], Fraction, Fraction]:
    """Lengths of growing axes in widths, their largest common measure, and their sum."""
    lengths = [extent(axis)[0] for axis in axes]
    return lengths, _common(*lengths), sum(lengths, Fraction(0))


def _common(*lengths: Fraction) -> Fraction:
    numbers = [x for x in lengths if x]
    return Fraction(math.gcd(*(x.numerator for x in numbers)), math.lcm(*(x.denominator for x in numbers)))
