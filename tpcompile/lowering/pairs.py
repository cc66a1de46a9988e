"""Entrywise functions of growing matrices: a matrix as values on pairs of coordinates (theory, section 1, last row).

An adaptive optimizer takes square roots, signs and quotients of gradients, which are sums of outer products. Their
entries are functions of the row's and of the column's variables: ordinary nodes with two width axes.
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction

from tpcompile.errors import UnsupportedOperationError
from tpcompile.ir import Entries, Node, Outer, Width
from tpcompile.lowering.algebra import Algebra
from tpcompile.lowering.families import within
from tpcompile.lowering.matrix import Matrices
from tpcompile.lowering.nodes import Weighted
from tpcompile.lowering.value import HALF, AnyValue, Block, Fixed, InitTerm, MatrixValue, Value, flat, largest


class Pairs:
    """Entrywise arithmetic of matrix values, by way of values with two growing axes."""

    def __init__(self, algebra: Algebra, matrices: Matrices, beyond: bool = False) -> None:
        self.a = algebra
        self.beyond = beyond  # sizes are asked for, not values: initial entries may be the largest part
        self.nodes = algebra.nodes
        self.matrices = matrices

    def map(self, m: MatrixValue, f: Callable[[Value], Value]) -> MatrixValue:
        """An entrywise function of a matrix."""
        return self.matrix(f(self.entries(m)))

    def combine(self, a: AnyValue, b: AnyValue, f: Callable[[Value, Value], Value]) -> MatrixValue:
        """An entrywise function of two values of which one is a matrix at least; the other may broadcast."""
        return self.matrix(f(*(self.entries(x) if isinstance(x, MatrixValue) else x for x in (a, b))))

    def matrix(self, x: Value) -> MatrixValue:
        """A value on pairs as a matrix."""
        return self.matrices.make(x.axes, [], [], x.remainder, x.terms)

    def has_entries(self, m: MatrixValue) -> bool:
        """True if :meth:`entries` has an answer: an initial part must be smaller than the rest, but for sizes."""
        if m.composed or self.a.width is not None or self.beyond:
            return not m.composed
        known = [t.exponent for t in m.outers] + [e for e, _ in m.entries]
        return all(known and t.exponent - HALF < max(known) for t in m.inits)

    def entries(self, m: MatrixValue) -> Value:
        """The entries of a matrix as a series."""
        if not self.has_entries(m):
            raise UnsupportedOperationError(
                "an operation on a whole matrix of two growing axes that is neither linear nor a product with a "
                f"vector: an entrywise function of {'a product of matrices' if m.composed else 'its initial values'}",
                where=self.a.place,
                advice="decouple the weight decay from the gradient (AdamW), or scale it down with the width",
            )
        items = [(e, c, node) for t in m.outers for e, c, node in self._outer(t.exponent, t.blocks, m)]
        items += [(e, 1.0, node) for e, node in m.entries]
        remainder = m.remainder
        top = max((e for e, _, _ in items), default=None)
        for t in m.inits:
            if self.a.width is not None:
                items.append((t.exponent, *self._initial(t, m)))
                continue
            size = t.exponent - HALF
            if self.beyond and (top is None or size >= top):
                number, node = self._initial(t, m, scaled=True)
                items.append((size, number, node))
                continue
            remainder = largest(remainder, size)
        return self.a.collect(m.axes, items, remainder)

    def _outer(
        self, exponent: Fraction, blocks: tuple[Block, ...], m: MatrixValue
    ) -> list[tuple[Fraction, float, Node]]:
        out = []
        order = self._order(m)
        for b in blocks:
            node = self.nodes.builder.node(Outer(), b.u, b.v)
            out.append((exponent, b.coefficient, self.nodes.permute(node, order)))
        return out

    def _order(self, m: MatrixValue) -> list[int]:
        """Where the axes of the value stand in ``(*finite, rows, columns)``."""
        count = len(m.finite)
        finite, growing = iter(range(count)), iter((count, count + 1))
        return [next(growing) if isinstance(d, Width) else next(finite) for d in flat(m.axes)]

    def _initial(self, t: InitTerm, m: MatrixValue, scaled: bool = False) -> Weighted:
        if t.rows is not None or t.columns is not None:
            raise UnsupportedOperationError("an entrywise function of a part of an initial matrix", where=self.a.place)
        dims = t.matrix.dims
        growing = [i for i, d in enumerate(dims) if isinstance(d, Width)]
        plain = [i for i in range(len(dims)) if i not in growing]
        rows, columns = reversed(growing) if t.transpose else growing
        where, whole = iter(t.finite), flat(m.axes)
        fixed = {i: next(where) for i, d in enumerate(whole) if isinstance(d, int)}
        at = {i: x.index for i, x in fixed.items() if isinstance(x, Fixed)}
        finite = iter(plain[i] for i in t.finite if not isinstance(i, Fixed))
        widths = iter((rows, columns))
        order = [next(widths) if isinstance(d, Width) else next(finite) for i, d in enumerate(whole) if i not in at]
        matrix = self.nodes.builder.node(Entries(), t.matrix) if scaled else t.matrix
        placed = self.nodes.view(
            self.nodes.permute(matrix, order), tuple(1 if i in at else d for i, d in enumerate(whole))
        )
        for i, index in at.items():
            size = whole[i]
            assert isinstance(size, int)
            placed = within(self.nodes, placed, i, range(index, index + 1), size)
        return t.coefficient, placed
