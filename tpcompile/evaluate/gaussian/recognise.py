"""Instructions that are functions with a closed form of their own."""

from __future__ import annotations

import math

from tpcompile.ir import Map, Mul, Node, Sum


def monomial(op: Map) -> tuple[float, int] | None:
    """A small whole power, or a derivative of one, as coefficient and exponent."""
    exponent = dict(op.params).get("exponent")
    if op.fn != "pow" or exponent not in (1, 2, 3, 4) or op.order > exponent:
        return None
    return float(math.perm(int(exponent), op.order)), int(exponent) - op.order


def negative_square(node: Node) -> tuple[float, Node] | None:
    """c and x of ``exp(-c x^2)``, c positive."""
    if not isinstance(node.op, Map) or (node.op.fn, node.op.order) != ("exp", 0):
        return None
    (square,), c = node.operands, -1.0
    while isinstance(square.op, Sum) and len(square.operands) == 1:
        c *= square.op.coefficients[0]
        (square,) = square.operands
    inner = square.operands
    same = isinstance(square.op, Mul) and len(inner) == 2 and inner[0] is inner[1]
    if not same and not (isinstance(square.op, Map) and monomial(square.op) == (1.0, 2)):
        return None
    return (c, inner[0]) if c > 0 else None
