"""What lower orders of its arguments add to a finite operation (theory, sections 1 and 3)."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch

from tpcompile.analysis.semantics import constant_value
from tpcompile.errors import UnsupportedOperationError
from tpcompile.ir import Fluctuation, Node
from tpcompile.lowering.algebra import Algebra
from tpcompile.lowering.value import Axes, Value, largest


def corrected(algebra: Algebra, node: Node, axes: Axes, operands: Sequence[Value]) -> Value:
    """A function of limits, and its corrections: random scalars of which only the powers of n are known."""
    if algebra.width is not None:
        return Value(axes, ((Fraction(0), node),))
    unknown = largest(*(x.remainder for x in operands))
    if unknown is not None and unknown >= 0:  # an operand's limit is hidden: deeper series will tell
        return Value(axes, (), unknown)
    below = sorted({e for x in operands for e, _ in x.terms if e < 0}, reverse=True)
    known = constant_value(node, algebra.builder.data)
    if known is not None and not bool(torch.isfinite(known).all()):
        raise UnsupportedOperationError("the operation is not finite where its arguments tend to", where=algebra.place)
    vanishes = known is not None and not bool(known.any())
    items = [] if vanishes else [(Fraction(0), 1.0, node)]
    if not below or (unknown is not None and unknown >= below[0]):
        return algebra.collect(axes, items, unknown)
    floor = (below[0] if vanishes else Fraction(0)) - algebra.depth
    orders = _sums(below, floor if unknown is None else max(floor, unknown))
    for k, order in enumerate(orders[:-1]):
        sources = [y for x in operands for e, y in x.terms if order <= e < 0]
        items.append((order, 1.0, algebra.builder.node(Fluctuation(k + 1), node, *sources)))
    return algebra.collect(axes, items, largest(unknown, orders[-1]))


def _sums(exponents: Sequence[Fraction], floor: Fraction) -> list[Fraction]:
    """Negative exponents of products of powers of n, descending: all above the floor and the first that is not."""
    found, stack = set(exponents), list(exponents)
    while stack:
        start = stack.pop()
        if start > floor:
            fresh = {start + e for e in exponents} - found
            found |= fresh
            stack += fresh
    return [*sorted((e for e in found if e > floor), reverse=True), max(e for e in found if e <= floor)]
