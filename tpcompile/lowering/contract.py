"""Contractions: moments, outer products, and products of matrices with vectors (theory, sections 1, 2, 5).

Every matrix product, inner product and sum of the traced graph comes here as an Einstein sum over the
labels of torch axes. This is the one place where powers of n enter from sums over the width.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

from tpcompile.errors import UnsupportedOperationError
from tpcompile.ir import Fluctuation, Node, Width
from tpcompile.lowering.algebra import Algebra
from tpcompile.lowering.matrix import Matrices
from tpcompile.lowering.nodes import Weighted
from tpcompile.lowering.value import (
    HALF,
    AnyValue,
    Axes,
    Axis,
    Block,
    MatrixValue,
    OuterTerm,
    Value,
    flat,
    is_width,
    largest,
    plus,
)

Item = tuple[Fraction, float, Node]  # exponent, number, node


class Contractions:
    """Einstein sums of values over labels of torch axes."""

    def __init__(self, algebra: Algebra, matrices: Matrices) -> None:
        self.a = algebra
        self.nodes = algebra.nodes
        self.matrices = matrices

    def einsum(self, x: AnyValue, x_labels: str, y: AnyValue, y_labels: str, out: str) -> AnyValue:
        """``out`` axes of the product of x and y, all other labels summed; one letter a torch axis."""
        if isinstance(x, MatrixValue) and isinstance(y, MatrixValue):
            return self._matrix_matrix(x, x_labels, y, y_labels, out)
        if isinstance(x, MatrixValue):
            assert isinstance(y, Value)
            return self._matrix_vector(x, x_labels, y, y_labels, out)
        if isinstance(y, MatrixValue):
            return self._matrix_vector(y, y_labels, x, x_labels, out)
        axes = self._axes([(x, x_labels), (y, y_labels)])
        widths = [label for label in out if is_width(axes[label])]
        if len(widths) == 2:
            return self._outer(x, x_labels, y, y_labels, out, axes)
        return self._vectors([(x, x_labels), (y, y_labels)], out, axes)

    def sum(self, x: Value, labels: str, out: str) -> Value:
        """Sum of one value over the labels that ``out`` does not name."""
        return self._vectors([(x, labels)], out, self._axes([(x, labels)]))

    def _axes(self, operands: Sequence[tuple[AnyValue, str]]) -> dict[str, Axis]:
        axes: dict[str, Axis] = {}
        for value, labels in operands:
            for label, axis in zip(labels, value.axes, strict=True):
                known = axes.setdefault(label, axis)
                if known == ():
                    axes[label] = axis
                elif axis not in ((), known):
                    raise self._unsupported(f"a product over axes {_show(known)} and {_show(axis)}")
        return axes

    def _unsupported(self, what: str, advice: str | None = None) -> UnsupportedOperationError:
        return UnsupportedOperationError(what, where=self.a.place, advice=advice)

    # scalars and vectors -------------------------------------------------------------------

    def _vectors(self, operands: Sequence[tuple[Value, str]], out: str, axes: dict[str, Axis]) -> Value:
        out_axes = tuple(axes[label] for label in out)
        if any(value.is_zero for value, _ in operands):
            return self.a.zeros(out_axes)
        letters = _Letters()
        words = [letters.word(labels, value.axes) for value, labels in operands]
        target = letters.word(out, out_axes)
        spec = ",".join(words) + "->" + target
        widths = {
            letter: dim
            for word, (value, _) in zip(words, operands, strict=True)
            for letter, dim in zip(word, flat(value.axes), strict=True)
            if isinstance(dim, Width)
        }
        summed = [dim for letter, dim in widths.items() if letter not in target]
        if len(widths) > 1:
            raise self._unsupported("a product of two vectors of different width axes inside a sum")
        items: list[Item] = []
        remainder: Fraction | None = None
        ratio = summed[0].ratio if summed else None
        for choice in _choices([value.terms for value, _ in operands]):
            exponent = sum((e for e, _ in choice), Fraction(0))
            parts, noise = self.moment(spec, [node for _, node in choice], ratio)
            items += [(exponent + e, c, node) for e, c, node in parts]
            remainder = largest(remainder, plus(exponent, noise))
        for i, (value, _) in enumerate(operands):
            others = [v.lead for j, (v, _) in enumerate(operands) if j != i]
            remainder = largest(remainder, plus(value.remainder, *others, Fraction(1 if summed else 0)))
        return self.a.collect(out_axes, items, remainder)

    def moment(self, spec: str, nodes: Sequence[Node], ratio: Fraction | None) -> tuple[list[Item], Fraction | None]:
        """An Einstein sum of nodes as terms ``(exponent, number, node)``, and the exponent of what is left out.

        ``ratio`` is that of the summed width axis, None if no width is summed. A sum over the width
        is n times a moment; where the moment vanishes by parity it is
        n^(1/2) times a Gaussian scalar. Both are followed by their fluctuation, n^(-1/2) smaller.
        """
        if ratio is None:
            number, node = self.nodes.contract(spec, nodes)
            return [(Fraction(0), number, node)], None
        if self.a.width is not None:
            number, node = self.nodes.contract(spec, nodes)
            return [(Fraction(0), number * float(ratio) * self.a.width, node)], None
        zero = self.a.parity.vanishes(*nodes)
        number, node = self.nodes.contract(spec, nodes, gaussian=zero)
        exponent = HALF if zero else Fraction(1)
        number *= float(ratio) ** float(exponent)
        if self.a.depth <= HALF:
            return [(exponent, number, node)], exponent - HALF
        noise = self.nodes.builder.node(Fluctuation(), node)
        return [(exponent, number, node), (exponent - HALF, number, noise)], exponent - 1

    # outer products ------------------------------------------------------------------------

    def _outer(self, x: Value, x_labels: str, y: Value, y_labels: str, out: str, axes: dict[str, Axis]) -> MatrixValue:
        row, column = (label for label in out if is_width(axes[label]))
        if out[-2:] != row + column:
            raise self._unsupported("a matrix whose two growing axes are not its last")
        if row in y_labels:
            x, x_labels, y, y_labels = y, y_labels, x, x_labels
        if row not in x_labels or column not in y_labels or row in y_labels or column in x_labels:
            raise self._unsupported("a sum over one width axis that leaves two others")
        batch = out[:-2]
        summed = [label for label in axes if label not in out]
        out_axes = tuple(axes[label] for label in out)
        blocks: dict[Fraction, list[Block]] = defaultdict(list)
        for ex, u in x.terms:
            for ey, v in y.terms:
                a, u1 = self._arrange(u, x, x_labels, batch, summed, row, axes)
                b, v1 = self._arrange(v, y, y_labels, batch, summed, column, axes)
                blocks[ex + ey].append(Block(a * b, u1, v1))
        remainder = largest(plus(x.remainder, y.lead), plus(x.lead, y.remainder))
        return self.matrices.make(out_axes, [], list(blocks.items()), remainder)

    def _arrange(
        self, node: Node, value: Value, labels: str, batch: str, summed: list[str], last: str, axes: dict[str, Axis]
    ) -> Weighted:
        """The node with dims ``(*batch, K, width)``, all summed axes merged to K, as number times node."""
        number, node = self.nodes.split(node)
        have = {label: axis for label, axis in zip(labels, value.axes, strict=True)}
        wanted = [*batch, *summed, last]
        offsets: dict[str, list[int]] = {}
        position = 0
        for label, axis in have.items():
            offsets[label] = list(range(position, position + len(axis)))
            position += len(axis)
        node = self.nodes.permute(node, [i for label in wanted for i in offsets.get(label, [])])
        inserted = [d for label in wanted for d in (have.get(label) or (1,) * len(axes[label]))]
        full = flat(tuple(axes[label] for label in wanted))
        node = self.nodes.expand(self.nodes.view(node, tuple(inserted)), full)
        rank = 1
        for label in summed:
            for d in axes[label]:
                assert isinstance(d, int)
                rank *= d
        dims = (*flat(tuple(axes[label] for label in batch)), rank, *axes[last])
        return number, self.nodes.view(node, dims)

    # matrix times vector -------------------------------------------------------------------

    def _matrix_vector(self, m: MatrixValue, m_labels: str, x: Value, x_labels: str, out: str) -> Value:
        row, column = m_labels[-2:]
        batch = m_labels[:-2]
        into, free = (column, row) if column in x_labels else (row, column)
        shared = [label for label in batch if m.axes[m_labels.index(label)] != ()]
        if into not in x_labels or into in out or free not in out or free in x_labels or shared:
            raise self._unsupported("a product with a matrix of two growing axes that is not matrix times vector")
        transpose = into == row
        labels = "".join(free if label == into else label for label in x_labels)
        free_axis = m.axes[m_labels.index(free)]
        axes = tuple(free_axis if label == into else axis for label, axis in zip(x_labels, x.axes, strict=True))
        keep = "".join(label for label in labels if label in out)
        product = self.apply_matrix(m, transpose, x, x_labels.index(into), axes)
        if keep != labels:
            product = self.sum(product, labels, keep)
        missing = [label for label in out if label not in keep]
        if missing:  # batch axes of length 1
            product = replace(product, axes=(*(() for _ in missing), *product.axes))
            keep = "".join(missing) + keep
        return self.a.permute(product, [keep.index(label) for label in out])

    def apply_matrix(self, m: MatrixValue, transpose: bool, x: Value, position: int, out_axes: Axes) -> Value:
        """``M x`` or ``M^T x`` over the torch axis ``position`` of x; the axis is replaced in place."""
        if m.is_zero or x.is_zero:
            return self.a.zeros(out_axes)
        items: list[Item] = []
        remainder = largest(plus(m.remainder, x.lead, Fraction(1)), plus(m.action, x.remainder))
        for exponent, node in x.terms:
            for term in m.inits:
                number, product = self.nodes.matmul(term.matrix, node, term.transpose != transpose)
                items.append((exponent + term.exponent, number * term.coefficient, product))
            for outer in m.outers:
                parts, noise = self._apply_outer(outer, transpose, node, x.axes, position)
                items += [(exponent + outer.exponent + e, c, y) for e, c, y in parts]
                remainder = largest(remainder, plus(exponent, outer.exponent, noise))
        return self.a.collect(out_axes, items, remainder)

    def _apply_outer(
        self, outer: OuterTerm, transpose: bool, node: Node, axes: Axes, position: int
    ) -> tuple[list[Item], Fraction | None]:
        """``U diag(c) <V, x>`` of all blocks at once."""
        number, coefficients, u, v = self.matrices.chain(outer)
        if transpose:
            u, v = v, u
        at = sum(len(axis) for axis in axes[:position])
        letters = string.ascii_letters[: len(node.dims)]
        width = node.dims[at]
        assert isinstance(width, Width)
        finite = letters.replace(letters[at], "")
        out = letters.replace(letters[at], "Z")
        parts, noise = self.moment(f"Y{letters[at]},{letters}->Y{finite}", [v, node], width.ratio)
        items: list[Item] = []
        for exponent, c, s in parts:
            c2, product = self.nodes.contract(f"YZ,Y{finite}->{out}", [u, self._weigh(s, coefficients)])
            items.append((exponent, number * c * c2, product))
        return items, noise

    def _weigh(self, s: Node, coefficients: Node | None, axis: int = 0) -> Node:
        """Entries of s along an axis times the coefficients of the blocks they belong to."""
        if coefficients is None:
            return s
        after = len(s.dims) - 1 - axis % len(s.dims)
        column = self.nodes.view(coefficients, (*coefficients.dims, *([1] * after)))
        scaled = self.nodes.mul([s, column], s.dims)
        assert scaled is not None
        return scaled

    # matrix times matrix -------------------------------------------------------------------

    def _matrix_matrix(self, x: MatrixValue, x_labels: str, y: MatrixValue, y_labels: str, out: str) -> Value:
        """Full inner product over both growing axes, batch axes kept: what a tangent kernel is made of."""
        if x_labels[-2:] != y_labels[-2:] or set(out) & set(x_labels[-2:]) or x.inits or y.inits:
            raise self._unsupported(
                "a product of two matrices that both grow with the width",
                "apply them to vectors one after the other, or use a single matrix",
            )
        batch = {
            label: axis
            for v, labels in ((x, x_labels), (y, y_labels))
            for label, axis in zip(labels[:-2], v.axes, strict=False)
        }
        letters = _Letters()
        bx = letters.word(x_labels[:-2], x.axes[:-2])
        by = letters.word(y_labels[:-2], y.axes[:-2])
        target = letters.word(out, tuple(batch[label] for label in out))
        k, j, w = (letters.fresh() for _ in range(3))
        seen = "".join(dict.fromkeys(bx + by))
        items: list[Item] = []
        remainder = largest(plus(x.remainder, y.action, Fraction(1)), plus(x.action, y.remainder, Fraction(1)))
        for a in x.outers:
            for b in y.outers:
                na, ca, ua, va = self.matrices.chain(a)
                nb, cb, ub, vb = self.matrices.chain(b)
                rows, n1 = self.moment(f"{bx}{k}{w},{by}{j}{w}->{seen}{k}{j}", [ua, ub], _ratio(ua))
                columns, n2 = self.moment(f"{bx}{k}{w},{by}{j}{w}->{seen}{k}{j}", [va, vb], _ratio(va))
                exponent = a.exponent + b.exponent
                remainder = largest(remainder, plus(exponent, n1, Fraction(1)), plus(exponent, Fraction(1), n2))
                for e1, c1, r in rows:
                    for e2, c2, c in columns:
                        weighed = self._weigh(self._weigh(r, ca, axis=-2), cb, axis=-1)
                        c3, node = self.nodes.contract(f"{seen}{k}{j},{seen}{k}{j}->{target}", [weighed, c])
                        items.append((exponent + e1 + e2, na * nb * c1 * c2 * c3, node))
        return self.a.collect(tuple(batch[label] for label in out), items, remainder)


def _ratio(node: Node) -> Fraction:
    width = node.dims[-1]
    assert isinstance(width, Width)
    return width.ratio


class _Letters:
    """One letter for each atom of each label."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, int], str] = {}

    def word(self, labels: str, axes: Axes) -> str:
        return "".join(
            self._letter(label, i) for label, axis in zip(labels, axes, strict=True) for i in range(len(axis))
        )

    def fresh(self) -> str:
        return self._letter("\0", len(self._of))

    def _letter(self, label: str, atom: int) -> str:
        return self._of.setdefault((label, atom), string.ascii_letters[len(self._of)])


def _choices(series: Sequence[Sequence[tuple[Fraction, Node]]]) -> list[tuple[tuple[Fraction, Node], ...]]:
    out: list[tuple[tuple[Fraction, Node], ...]] = [()]
    for terms in series:
        out = [(*done, term) for done in out for term in terms]
    return out


def _show(axis: Axis) -> str:
    return "*".join(map(str, axis)) or "1"
