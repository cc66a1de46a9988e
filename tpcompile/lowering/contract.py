"""Contractions: moments, outer products, and products of matrices with vectors (theory, sections 1, 2, 5).

Every matrix product, inner product and sum of the traced graph comes here as an Einstein sum over the
labels of torch axes. This is the one place where powers of n enter from sums over the width.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction

from tpcompile.analysis import blocks
from tpcompile.analysis.parity import init_name
from tpcompile.errors import UnsupportedOperationError
from tpcompile.ir import Contract, Dim, Fluctuation, Mul, Node, Width
from tpcompile.lowering import families
from tpcompile.lowering.algebra import Algebra
from tpcompile.lowering.axes import single
from tpcompile.lowering.matrix import Matrices
from tpcompile.lowering.matrix_products import applied, inner, product
from tpcompile.lowering.nodes import Weighted
from tpcompile.lowering.parts import Parts
from tpcompile.lowering.remainders import of_product, parts_of
from tpcompile.lowering.value import (
    HALF,
    AnyValue,
    Axis,
    Block,
    Fixed,
    InitTerm,
    MatrixValue,
    Multiple,
    OuterTerm,
    Value,
    extent,
    flat,
    has_width,
    is_width,
    largest,
    plus,
)
from tpcompile.lowering.words import Letters, Words, ratio_of

_EXCHANGED = ""  # in place of a spec: whether a mean vanishes by exchange of parameters
Item = tuple[Fraction, float, Node]  # exponent, number, node


class Contractions:
    """Einstein sums of values over labels of torch axes."""

    def __init__(self, algebra: Algebra, matrices: Matrices) -> None:
        self.a = algebra
        self.nodes = algebra.nodes
        self.matrices = matrices
        self.parts = Parts(algebra, matrices)

    def einsum(self, x: AnyValue, x_labels: str, y: AnyValue, y_labels: str, out: str) -> AnyValue:
        """``out`` axes of the product of x and y, all other labels summed; one letter a torch axis."""
        x, y = self._agreed([(x, x_labels), (y, y_labels)])
        if isinstance(x, MatrixValue) and isinstance(y, MatrixValue):
            return self._matrix_matrix(x, x_labels, y, y_labels, out)
        if isinstance(x, MatrixValue):
            assert isinstance(y, Value)
            return self._matrix_vector(x, x_labels, y, y_labels, out)
        if isinstance(y, MatrixValue):
            return self._matrix_vector(y, y_labels, x, x_labels, out)
        axes = self.axes([(x, x_labels), (y, y_labels)])
        widths = [label for label in out if is_width(axes[label])]
        if len(widths) == 2:
            return self._outer(x, x_labels, y, y_labels, out, axes)
        return self._vectors([(x, x_labels), (y, y_labels)], out, axes)

    def sum(self, x: Value, labels: str, out: str) -> Value:
        """Sum of one value over the labels that ``out`` does not name."""
        return self._vectors([(x, labels)], out, self.axes([(x, labels)]))

    def _agreed(self, operands: Sequence[tuple[AnyValue, str]]) -> list[AnyValue]:
        """The operands with one factorisation of every growing axis that they share: a matrix's, or one width atom."""
        wanted: dict[str, Axis] = {}
        for value, labels in sorted(operands, key=lambda item: isinstance(item[0], Value)):
            for label, axis in zip(labels, value.axes, strict=True):
                known = wanted.setdefault(label, axis)
                if known == ():
                    wanted[label] = axis
                elif axis not in ((), known) and is_width(axis) and extent(axis) == extent(known):
                    wanted[label] = known if any(isinstance(v, MatrixValue) for v, _ in operands) else single(known)
        out: list[AnyValue] = []
        for value, labels in operands:
            axes = tuple(
                wanted[label] if is_width(axis) and extent(axis) == extent(wanted[label]) else axis
                for label, axis in zip(labels, value.axes, strict=True)
            )
            out.append(self.a.reshape(value, axes) if isinstance(value, Value) else self.matrices.regroup(value, axes))
        return out

    def axes(self, operands: Sequence[tuple[AnyValue, str]]) -> dict[str, Axis]:
        axes: dict[str, Axis] = {}
        for value, labels in operands:
            for label, axis in zip(labels, value.axes, strict=True):
                known = axes.setdefault(label, axis)
                if known == ():
                    axes[label] = axis
                elif axis not in ((), known):
                    raise self.unsupported(f"a product over axes {_show(known)} and {_show(axis)}")
        return axes

    def unsupported(self, what: str, advice: str | None = None) -> UnsupportedOperationError:
        return UnsupportedOperationError(what, where=self.a.place, advice=advice)

    # scalars and vectors -------------------------------------------------------------------

    def _vectors(self, operands: Sequence[tuple[Value, str]], out: str, axes: dict[str, Axis]) -> Value:
        out_axes = tuple(axes[label] for label in out)
        if any(value.is_zero for value, _ in operands):
            return self.a.zeros(out_axes)
        letters = Letters()
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
        if len(widths) > 1 and all(has_width(value.axes) < 2 for value, _ in operands):
            raise self.unsupported("a product of two vectors of different width axes inside a sum")
        items: list[Item] = []
        remainder: Fraction | None = None
        ratios = tuple(dim.ratio for dim in summed)
        for choice in _choices([value.terms for value, _ in operands]):
            exponent = sum((e for e, _ in choice), Fraction(0))
            parts, noise = self.moment(spec, [node for _, node in choice], ratios)
            items += [(exponent + e, c, node) for e, c, node in parts]
            remainder = largest(remainder, plus(exponent, noise))
        for i, (value, _) in enumerate(operands):
            others = [v for j, (v, _) in enumerate(operands) if j != i]
            parity = self.a.parity
            left = largest(
                *(
                    plus(e, *(v.lead for v in others), power)
                    for e, power in parts_of(value, others, len(summed), parity, self.a.support)
                )
            )
            remainder = largest(remainder, left)
        result = self.a.collect(out_axes, items, remainder)
        values = [value for value, _ in operands]
        if summed or result.remainder is None:
            return result
        kept = (
            of_product(values[0], values[1], result.remainder, self.a.parity)
            if len(values) == 2
            else values[0].multiples
        )
        return replace(result, multiples=kept)

    def moment(
        self, spec: str, nodes: Sequence[Node], ratios: tuple[Fraction, ...]
    ) -> tuple[list[Item], Fraction | None]:
        """An Einstein sum of nodes as terms ``(exponent, number, node)``, and the exponent of what is left out.

        ``ratios`` are those of the summed width axes. A sum over the width
        is n times a moment, and n^(1/2) times the moment's fluctuation: a random scalar of order one that stands for
        all the rest. Where the moment vanishes by parity that scalar is Gaussian in the limit.
        """
        if not ratios:
            number, node = self.nodes.contract(spec, nodes)
            return [(Fraction(0), number, node)], None
        scale, spec, nodes = self._factors(spec, nodes)
        if scale != 1.0:
            parts, noise = self.moment(spec, nodes, ratios)
            return [(e, scale * c, node) for e, c, node in parts], noise
        if self.a.width is not None:
            number, node = self.nodes.contract(spec, nodes)
            return [(Fraction(0), number * math.prod(float(r) * self.a.width for r in ratios), node)], None
        if any(x.kind == "matrix" for x in nodes):
            return self._pair_moment(spec, nodes, ratios)
        (ratio,) = ratios
        zero = self._vanishes(spec, tuple(nodes))
        number, node = self.nodes.contract(spec, nodes, gaussian=zero)
        if not zero and self.a.doubt is not None and self.a.doubt(self.a.builder, self.a.place, node):
            zero = True
            number, node = self.nodes.contract(spec, nodes, gaussian=True)
        exponent = HALF if zero else Fraction(1)
        number *= float(ratio) ** float(exponent)
        if zero:
            return [(exponent, number, node)], None
        limit, sign = node, 1.0
        if self.a.exchange is not None and isinstance(node.op, Contract):
            sign, limit = self.a.exchange.representative(node)
        if self.a.depth <= HALF:
            return [(exponent, sign * number, limit)], exponent - HALF
        noise = self.nodes.builder.node(Fluctuation(), node)
        return [(exponent, sign * number, limit), (exponent - HALF, number, noise)], None

    def _vanishes(self, spec: str, nodes: tuple[Node, ...]) -> bool:
        known = self.a.vanishing
        if (spec, nodes) not in known:
            known[spec, nodes] = self.a.parity.vanishes(*nodes) or (
                not blocks.hopeless(nodes, self.a.parity) and blocks.vanishes(spec, nodes, support=self.a.support)
            )
        if known[spec, nodes] or self.a.exchange is None:
            return known[spec, nodes]
        if (_EXCHANGED, nodes) not in known:
            known[_EXCHANGED, nodes] = self.a.exchange.vanishes(nodes)
        return known[_EXCHANGED, nodes]

    def _factors(self, spec: str, nodes: Sequence[Node]) -> tuple[float, str, Sequence[Node]]:
        """The sum of a product of two vectors as their inner product: a number, and the Einstein sum of the factors."""
        if len(nodes) != 1:
            return 1.0, spec, nodes
        number, base = self.nodes.split(nodes[0])
        if not isinstance(base.op, Mul) or [x.kind for x in base.operands] != ["vector", "vector"]:
            return 1.0, spec, nodes
        word, _, out = spec.partition("->")
        words, factors = [], []
        for x in base.operands:  # an axis that is repeated is left out
            own = word[len(word) - len(x.dims) :]
            kept = [i for i, d in enumerate(x.dims) if d != 1]
            words.append("".join(own[i] for i in kept))
            factors.append(self.nodes.view(x, tuple(x.dims[i] for i in kept)))
        if not set(out) <= set("".join(words)):
            return 1.0, spec, nodes
        return number, f"{','.join(words)}->{out}", factors

    def _pair_moment(
        self, spec: str, nodes: Sequence[Node], ratios: tuple[Fraction, ...]
    ) -> tuple[list[Item], Fraction | None]:
        """Sums of values on pairs, over one axis or both: the mean over each is taken with the other held fixed."""
        vanishing = self.a.parity.vanishing_axes(spec, nodes)
        exponent = len(ratios) - HALF * vanishing
        number, node = self.nodes.contract(spec, nodes, gaussian=vanishing > 0)
        return [(exponent, number * math.prod(map(float, ratios)), node)], exponent - HALF

    # outer products ------------------------------------------------------------------------

    def _outer(self, x: Value, x_labels: str, y: Value, y_labels: str, out: str, axes: dict[str, Axis]) -> MatrixValue:
        letters = Letters()
        x_word, y_word = letters.word(x_labels, x.axes), letters.word(y_labels, y.axes)
        out_axes = tuple(axes[label] for label in out)
        target = letters.word(out, out_axes)
        dims = dict(zip(target, flat(out_axes), strict=True))
        dims |= dict(zip(x_word + y_word, flat(x.axes) + flat(y.axes), strict=True))
        row, column = (letter for letter in target if isinstance(dims[letter], Width))
        if row in y_word:
            x, x_word, y, y_word = y, y_word, x, x_word
        if row not in x_word or column not in y_word or row in y_word or column in x_word:
            raise self.unsupported("a sum over one width axis that leaves two others")
        summed = "".join(dict.fromkeys(letter for letter in x_word + y_word if letter not in target))
        if any(isinstance(dims[letter], Width) for letter in summed):
            raise self.unsupported("a sum over one width axis that leaves two others")
        finite = "".join(letter for letter in target if letter not in (row, column))
        rank = 1
        for letter in summed:
            d = dims[letter]
            assert isinstance(d, int)
            rank *= d
        batch = tuple(dims[letter] for letter in finite)
        found: dict[Fraction, list[Block]] = defaultdict(list)
        for ex, u in x.terms:
            for ey, v in y.terms:
                a, u1 = self._arranged(u, x_word, finite + summed + row, dims)
                b, v1 = self._arranged(v, y_word, finite + summed + column, dims)
                u1 = self.nodes.view(u1, (*batch, rank, dims[row]))
                v1 = self.nodes.view(v1, (*batch, rank, dims[column]))
                found[ex + ey].append(Block(a * b, u1, v1))
        remainder = largest(plus(x.remainder, y.lead), plus(x.lead, y.remainder))
        return self.matrices.make(out_axes, [], list(found.items()), remainder)

    def _arranged(self, node: Node, word: str, wanted: str, dims: Mapping[str, Dim]) -> Weighted:
        """The node with axes in the wanted order, repeated along those that it lacks, as number times node."""
        number, node = self.nodes.split(node)
        node = self.nodes.permute(node, [word.index(letter) for letter in wanted if letter in word])
        node = self.nodes.view(node, tuple(dims[letter] if letter in word else 1 for letter in wanted))
        return number, self.nodes.expand(node, tuple(dims[letter] for letter in wanted))

    # matrix times vector -------------------------------------------------------------------

    def _matrix_vector(self, m: MatrixValue, m_labels: str, x: Value, x_labels: str, out: str) -> Value:
        letters = Letters()
        m_word, x_word = letters.word(m_labels, m.axes), letters.word(x_labels, x.axes)
        axes = self.axes([(m, m_labels), (x, x_labels)])
        out_axes = tuple(axes[label] for label in out)
        target = letters.word(out, out_axes)
        dims = dict(zip(m_word + x_word, flat(m.axes) + flat(x.axes), strict=True))
        row, column = (letter for letter in m_word if isinstance(dims[letter], Width))
        into, free = (column, row) if column in x_word else (row, column)
        if into not in x_word or into in target or free not in target or free in x_word:
            raise self.unsupported("a product with a matrix of two growing axes that is not matrix times vector")
        finite = "".join(letter for letter in m_word if letter not in (row, column))
        words = Words(m_word, finite, into, free, x_word, dims)
        product = self.apply(m, into == row, x, words)
        result = "".join(letter for letter in words.result if letter in target)
        if result != words.result:
            product = self.sum(product, words.result, result)
        product = self.a.permute(product, [result.index(letter) for letter in target])
        return replace(product, axes=out_axes)

    def apply(self, m: MatrixValue, transpose: bool, x: Value, words: Words) -> Value:
        """``M x`` or ``M^T x`` for every index of the finite axes of M, one axis an atom."""
        out_axes = tuple((words.dims[letter],) for letter in words.result)
        if m.is_zero or x.is_zero:
            return self.a.zeros(out_axes)
        items: list[Item] = []
        remainder = largest(plus(m.remainder, x.lead, Fraction(1)), plus(m.action, x.remainder))
        for exponent, node in x.terms:
            for term in m.inits:
                number, product = self._apply_init(term, transpose, node, words)
                if product is not None:
                    items.append((exponent + term.exponent, number * term.coefficient, product))
            for outer in m.outers:
                parts, noise = self._apply_outer(outer, transpose, node, words)
                items += [(exponent + outer.exponent + e, c, y) for e, c, y in parts]
                remainder = largest(remainder, plus(exponent, outer.exponent, noise))
            for e, pairs in m.entries:
                width = words.dims[words.into]
                assert isinstance(width, Width)
                spec = f"{words.m},{words.x}->{words.result}"
                parts, noise = self.moment(spec, [pairs, node], (width.ratio,))
                items += [(exponent + e + shift, c, y) for shift, c, y in parts]
                remainder = largest(remainder, plus(exponent, e, noise))
        for p in m.composed:
            moved = applied(self, p, transpose, x, words)
            items += [(e, 1.0, node) for e, node in moved.terms]
            remainder = largest(remainder, moved.remainder)
        out = self.a.collect(out_axes, items, remainder)
        if m.outers or m.entries or m.composed or m.remainder is not None or out.remainder is None:
            return out
        names = frozenset(init_name(term.matrix) for term in m.inits)  # signs pass through an initial matrix
        passed = (Multiple(of.nodes, of.beside | names, plus(of.rest, m.action)) for of in x.multiples)
        return replace(out, multiples=tuple(passed))

    def _apply_init(self, term: InitTerm, transpose: bool, node: Node, words: Words) -> tuple[float, Node | None]:
        """``W_f x[f]``: the finite axes of W come first, in its own order; None for zero."""
        fixed = {x: i.index for x, i in zip(words.finite, term.finite, strict=True) if isinstance(i, Fixed)}
        own = "".join(words.finite[term.finite.index(i)] for i in range(len(words.finite) - len(fixed)))
        word, (number, node) = words.x, self.nodes.split(node)
        for letter, index in fixed.items():
            if letter not in word:
                continue
            at = word.index(letter)
            here = families.taken(self.nodes, node, at, range(index, index + 1))
            if here is None:
                return 0.0, None
            c, here = self.nodes.split(here)
            word, number = word[:at] + word[at + 1 :], number * c
            node = self.nodes.view(here, (*here.dims[:at], *here.dims[at + 1 :]))
        c1, moved = self._arranged(node, word, own + words.rest, words.dims)
        out, into = (term.columns, term.rows) if transpose else (term.rows, term.columns)
        at = len(own) + words.rest.index(words.into)
        if into is not None:
            moved = self.parts.embed_node(moved, at, (words.dims[words.into],), into)
        c2, product = self.nodes.matmul(term.matrix, moved, term.transpose != transpose)
        if out is not None:
            product = self.parts.cut_node(product, at, out)
        have = own + words.rest.replace(words.into, words.free)
        product = self.nodes.permute(product, [have.index(letter) for letter in words.result if letter in have])
        product = self.nodes.view(product, tuple(1 if x in fixed else words.dims[x] for x in words.result))
        for letter, index in fixed.items():
            size = words.dims[letter]
            assert isinstance(size, int)
            at = words.result.index(letter)
            product = families.within(self.nodes, product, at, range(index, index + 1), size)
        return number * c1 * c2, product

    def _apply_outer(
        self, outer: OuterTerm, transpose: bool, node: Node, words: Words
    ) -> tuple[list[Item], Fraction | None]:
        """``U diag(c) <V, x>`` of all blocks at once."""
        number, coefficients, u, v = self.matrices.chain(outer)
        if transpose:
            u, v = v, u
        finite, into, free = words.finite, words.into, words.free
        y = words.fresh
        rest = words.rest.replace(into, "")
        parts, noise = self.moment(f"{finite}{y}{into},{words.x}->{finite}{y}{rest}", [v, node], (ratio_of(v),))
        items: list[Item] = []
        for exponent, c, s in parts:
            weighed = self.weigh(s, coefficients, axis=len(finite))
            c2, product = self.nodes.contract(f"{finite}{y}{free},{finite}{y}{rest}->{words.result}", [u, weighed])
            items.append((exponent, number * c * c2, product))
        return items, noise

    def weigh(self, s: Node, coefficients: Node | None, axis: int = 0) -> Node:
        """Entries of s along an axis times the coefficients of the blocks they belong to."""
        if coefficients is None:
            return s
        after = len(s.dims) - 1 - axis % len(s.dims)
        column = self.nodes.view(coefficients, (*coefficients.dims, *([1] * after)))
        scaled = self.nodes.mul([s, column], s.dims)
        assert scaled is not None
        return scaled

    def _matrix_matrix(self, x: MatrixValue, x_labels: str, y: MatrixValue, y_labels: str, out: str) -> AnyValue:
        """The product of two matrices over one growing axis, or their inner product over both."""
        x, x_labels = _squeezed(x, x_labels)
        y, y_labels = _squeezed(y, y_labels)
        kept = "".join(label for label in out if label in x_labels + y_labels)
        if kept != out:
            total = self._matrix_matrix(x, x_labels, y, y_labels, kept)
            axes = iter(total.axes)
            return replace(total, axes=tuple(next(axes) if label in kept else () for label in out))
        shared = [label for label in x_labels if label in y_labels and label not in out]
        if len(x_labels) == len(y_labels) == len(out) == 2 and len(shared) == 1:
            return product(self, x, x_labels, y, y_labels, out, shared[0])
        return inner(self, x, x_labels, y, y_labels, out)


def _choices(series: Sequence[Sequence[tuple[Fraction, Node]]]) -> list[tuple[tuple[Fraction, Node], ...]]:
    out: list[tuple[tuple[Fraction, Node], ...]] = [()]
    for terms in series:
        out = [(*done, term) for done in out for term in terms]
    return out


def _squeezed(m: MatrixValue, labels: str) -> tuple[MatrixValue, str]:
    """Without its torch axes of length one."""
    kept = [i for i, axis in enumerate(m.axes) if axis]
    return replace(m, axes=tuple(m.axes[i] for i in kept)), "".join(labels[i] for i in kept)


def _show(axis: Axis) -> str:
    return "*".join(map(str, axis)) or "1"
