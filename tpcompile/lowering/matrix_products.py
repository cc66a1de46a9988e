"""Products of two matrices that both grow: with one axis left of each, or none; products with diagonal matrices."""

from __future__ import annotations

import string
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from tpcompile.ir import Dim, Init, Node, Width
from tpcompile.laws import mean_and_std
from tpcompile.lowering.axes import single
from tpcompile.lowering.value import Axes, Block, Composed, MatrixValue, Value, flat, has_width, is_width, largest, plus
from tpcompile.lowering.words import Letters, Words, ratio_of

if TYPE_CHECKING:
    from tpcompile.lowering.contract import Contractions

Item = tuple[Fraction, float, Node]  # exponent, number, node


def product(
    of: Contractions, x: MatrixValue, x_labels: str, y: MatrixValue, y_labels: str, out: str, k: str
) -> MatrixValue:
    """``X Y``: sums of outer products stay sums of outer products, of the rank of one of the factors.

    ``(u v^T) Y = u (Y^T v)^T``, of which the left vectors are those of X, so that polynomials in ``X X^T`` (as in the
    Newton-Schulz iteration) keep its rank; else ``X (u v^T) = (X u) v^T``, where Y is such a sum. Powers of the
    width and moments that vanish are those of matrix times vector. Any other product stays as it is written, and is
    applied to vectors one factor after the other.
    """
    if k == x_labels[0]:
        x = of.matrices.permute(x, [1, 0])
    if k == y_labels[1]:
        y = of.matrices.permute(y, [1, 0])
    x, y = (of.matrices.regroup(m, tuple(single(axis) for axis in m.axes)) for m in (x, y))
    axes = (x.axes[0], y.axes[1])
    left = x.low_rank
    if not left and not y.low_rank:
        total = composed(of, axes, x, y)
        return total if out[0] in x_labels else of.matrices.permute(total, [1, 0])
    outers: list[tuple[Fraction, list[Block]]] = []
    rest = largest(plus(x.remainder, y.action), plus(x.action, y.remainder))
    for t in (x if left else y).outers:
        for b in t.blocks:
            factor, kept = (b.v, b.u) if left else (b.u, b.v)
            rows, columns = (y if left else x).widths
            dims: dict[str, Dim] = {"a": rows, "b": columns, "k": factor.dims[-2]}
            vector = Value(tuple((d,) for d in factor.dims), ((Fraction(0), factor),))
            into, free = "ab" if left else "ba"
            moved = of.apply(y if left else x, left, vector, Words("ab", "", into, free, "k" + into, dims))
            rest = largest(rest, plus(t.exponent, moved.remainder))
            for e, node in moved.terms:
                number, base = of.nodes.split(node)
                pair = (kept, base) if left else (base, kept)
                outers.append((t.exponent + e, [Block(b.coefficient * number, *pair)]))
    total = of.matrices.make(axes, [], outers, rest)
    return total if out[0] in x_labels else of.matrices.permute(total, [1, 0])


def composed(of: Contractions, axes: Axes, *factors: MatrixValue | Value) -> MatrixValue:
    """The product of matrices of two growing axes alone, of diagonal ones (vectors), and of scalars."""
    exponent, coefficient, inside = Fraction(0), 1.0, []
    for f in factors:
        one = f.composed[0] if isinstance(f, MatrixValue) and len(f.composed) == 1 else None
        if one is None or f != MatrixValue(f.axes, composed=(one,)):
            inside.append(f)
            continue
        exponent, coefficient = exponent + one.exponent, coefficient * one.coefficient
        inside += one.factors
    return of.matrices.make(axes, [], [], None, composed=[Composed(exponent, coefficient, tuple(inside))])


def spread(of: Contractions, m: MatrixValue, s: Value) -> MatrixValue | None:
    """A matrix whose rows or columns are multiplied by a vector: a product with a diagonal matrix. Else None."""
    places = [i - len(s.axes) for i, axis in enumerate(s.axes) if axis]
    growing = [i - len(m.axes) for i, axis in enumerate(m.axes) if axis]
    if len(growing) != 2 or has_width(m.axes) != 2 or len(places) != 1 or places[0] not in growing:
        return None
    if not is_width(s.axes[places[0]]):
        return None
    axes = tuple(single(axis) for axis in m.axes if axis)
    plain = of.matrices.regroup(replace(m, axes=tuple(axis for axis in m.axes if axis)), axes)
    rows = places[0] == growing[0]
    vector = of.a.reshape(s, (axes[0 if rows else 1],))
    if plain.low_rank:
        total = _weighted(of, plain, vector, rows)
    else:
        total = composed(of, axes, *((vector, plain) if rows else (plain, vector)))
    return replace(total, axes=tuple(single(axis) for axis in m.axes))


def _weighted(of: Contractions, m: MatrixValue, s: Value, rows: bool) -> MatrixValue:
    """Outer products whose left (else right) vectors are multiplied by a vector."""
    outers: list[tuple[Fraction, list[Block]]] = []
    for t in m.outers:
        for b in t.blocks:
            vectors = b.u if rows else b.v
            moved = of.a.mul(Value(tuple((d,) for d in vectors.dims), ((Fraction(0), vectors),)), s)
            for e, node in moved.terms:
                number, base = of.nodes.split(node)
                pair = (base, b.v) if rows else (b.u, base)
                outers.append((t.exponent + e, [Block(b.coefficient * number, *pair)]))
    rest = largest(plus(m.remainder, s.lead), plus(m.action, s.remainder, Fraction(-1)))
    return of.matrices.make(m.axes, [], outers, rest)


def applied(of: Contractions, p: Composed, transpose: bool, x: Value, words: Words) -> Value:
    """A product of matrices, or its transpose, times x: one factor after the other. One axis an atom."""
    y = replace(x, axes=tuple((d,) for d in flat(x.axes)))
    at = words.x.index(words.into)
    a, b = (letter for letter, _ in zip((c for c in string.ascii_letters if c not in words.x), range(2), strict=False))
    into, free = (a, b) if transpose else (b, a)
    word = words.x[:at] + into + words.x[at + 1 :]
    for f in p.factors if transpose else reversed(p.factors):
        if isinstance(f, MatrixValue):
            rows, columns = f.widths
            y = of.apply(f, transpose, y, Words(a + b, "", into, free, word, {**words.dims, a: rows, b: columns}))
        else:
            y = of.a.mul(y, replace(f, axes=(*f.axes, *((),) * (len(word) - at - 1)) if f.axes else ()))
    return of.a.scale(y, p.coefficient, p.exponent)


def inner(of: Contractions, x: MatrixValue, x_labels: str, y: MatrixValue, y_labels: str, out: str) -> Value:
    """Full inner product over both growing axes, batch axes kept: norms, and what a tangent kernel is made of."""
    letters = Letters()
    x_word, y_word = letters.word(x_labels, x.axes), letters.word(y_labels, y.axes)
    dims = dict(zip(x_word + y_word, flat(x.axes) + flat(y.axes), strict=True))
    growing = [[letter for letter in word if isinstance(dims[letter], Width)] for word in (x_word, y_word)]
    axes = of.axes([(x, x_labels), (y, y_labels)])
    out_axes = tuple(axes[label] for label in out)
    target = letters.word(out, out_axes)
    other = not (x.low_rank and y.low_rank)
    crossed = growing[0] != growing[1] or set(target) & set(growing[0])
    if crossed or (other and (x.finite or y.finite)) or x.composed or y.composed:
        raise of.unsupported(
            "a product of two matrices that both grow with the width",
            "apply them to vectors one after the other, or use a single matrix",
        )
    bx, by = ("".join(letter for letter in word if letter not in growing[0]) for word in (x_word, y_word))
    k, j, w = (letters.fresh() for _ in range(3))
    seen = "".join(dict.fromkeys(bx + by))
    items, rest = _with_other_parts(of, x, y) if other else ([], None)
    remainder = largest(rest, plus(x.remainder, y.action, Fraction(1)), plus(x.action, y.remainder, Fraction(1)))
    for a in x.outers:
        for b in y.outers:
            na, ca, ua, va = of.matrices.chain(a)
            nb, cb, ub, vb = of.matrices.chain(b)
            rows, n1 = of.moment(f"{bx}{k}{w},{by}{j}{w}->{seen}{k}{j}", [ua, ub], (ratio_of(ua),))
            columns, n2 = of.moment(f"{bx}{k}{w},{by}{j}{w}->{seen}{k}{j}", [va, vb], (ratio_of(va),))
            exponent = a.exponent + b.exponent
            remainder = largest(remainder, plus(exponent, n1, Fraction(1)), plus(exponent, Fraction(1), n2))
            for e1, c1, r in rows:
                for e2, c2, c in columns:
                    weighed = of.weigh(of.weigh(r, ca, axis=-2), cb, axis=-1)
                    c3, node = of.nodes.contract(f"{seen}{k}{j},{seen}{k}{j}->{target}", [weighed, c])
                    items.append((exponent + e1 + e2, na * nb * c1 * c2 * c3, node))
    return of.a.collect(out_axes, items, remainder)


def _with_other_parts(of: Contractions, x: MatrixValue, y: MatrixValue) -> tuple[list[Item], Fraction | None]:
    """The shares of initial matrices and of values on pairs in ``sum_ij X_ij Y_ij``; no finite axes.

    The entries of an initial matrix, of variance ``std^2 / n``, have the sum of squares ``n std^2`` (times the ratios
    of its axes) up to a fluctuation of order one, which is also all that two independent ones have in common.
    """
    items: list[Item] = []
    rest: Fraction | None = None
    rows, columns = x.widths
    for s in x.inits:
        for t in y.inits:
            exponent = s.exponent + t.exponent
            rest = largest(rest, exponent)
            if s.matrix is t.matrix and s.transpose == t.transpose:
                law = s.matrix.op.law if isinstance(s.matrix.op, Init) else None
                if law is None or (s.rows, s.columns) != (t.rows, t.columns):
                    raise of.unsupported("an inner product of parts of an initial matrix")
                variance = mean_and_std(law)[1] ** 2 * float(rows.ratio * columns.ratio)
                items.append((exponent + 1, s.coefficient * t.coefficient * variance, of.nodes.one))
    for m, n in ((x, y), (y, x)):
        for init in m.inits:
            single_init = MatrixValue(m.axes, (init,))
            for t in n.outers:
                for b in t.blocks:
                    found, noise = _bilinear(of, single_init, b)
                    items += [(t.exponent + e, b.coefficient * c, node) for e, c, node in found]
                    rest = largest(rest, plus(t.exponent, noise))
            rest = largest(rest, *(plus(init.exponent, e, Fraction(1)) for e, _ in n.entries))
        for e, pairs in m.entries:
            for t in n.outers:
                for b in t.blocks:
                    found, noise = _bilinear(of, MatrixValue(m.axes, entries=((e, pairs),)), b)
                    items += [(t.exponent + f, b.coefficient * c, node) for f, c, node in found]
                    rest = largest(rest, plus(t.exponent, noise))
    for e, p in x.entries:
        for f, q in y.entries:
            found, noise = of.moment("ab,ab->", [p, q], (rows.ratio, columns.ratio))
            items += [(e + f + g, c, node) for g, c, node in found]
            rest = largest(rest, plus(e, f, noise))
    return items, rest


def _bilinear(of: Contractions, m: MatrixValue, b: Block) -> tuple[list[Item], Fraction | None]:
    """``sum_k u_k^T M v_k`` of one part M of a matrix."""
    rows, columns = m.widths
    dims: dict[str, Dim] = {"a": rows, "b": columns, "k": b.v.dims[-2]}
    vector = Value(tuple((d,) for d in b.v.dims), ((Fraction(0), b.v),))
    moved = of.apply(m, False, vector, Words("ab", "", "b", "a", "kb", dims))
    items: list[Item] = []
    rest = plus(moved.remainder, Fraction(1))
    for e, node in moved.terms:
        found, noise = of.moment("ka,ka->", [b.u, node], (rows.ratio,))
        items += [(e + f, c, x) for f, c, x in found]
        rest = largest(rest, plus(e, noise))
    return items, rest
