"""Limits without the fluctuations that do not reach them.

A fluctuation is a random scalar without a law. In the limit it often stands only in summands whose mean is zero for
reasons of sign, beside others of the same order whose mean is not; the moment is then that of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

from tpcompile.analysis.memo import bottom_up
from tpcompile.analysis.parity import Parity
from tpcompile.ir import Concat, Const, Contract, Fluctuation, Gaussian, MatMul, Mul, Node, Sum, reachable
from tpcompile.lowering.nodes import Nodes

_MOST = 64  # summands with fluctuations that are kept apart; beyond that they are joined


@dataclass(frozen=True)
class _Parts:
    """A value as a sum: what no fluctuation enters (None for zero), and the summands that one does."""

    quiet: Node | None
    noisy: tuple[Node, ...] = ()


def settled(nodes: Nodes, parity: Parity, limit: Node) -> Node:
    """The limit without the summands of moments that hold fluctuations and have mean zero (theory, section 4).

    Whether a fluctuation is left is for the caller to see.
    """
    reached = {x for x in reachable([limit]) if isinstance(x.op, Fluctuation)}
    for x in reachable([limit]):
        if any(y in reached for y in x.operands):
            reached.add(x)
    if not reached:
        return limit
    known: dict[Node, _Parts] = {}

    def find(node: Node) -> _Parts:
        if node not in reached:
            return _Parts(node)
        if isinstance(node.op, Fluctuation):
            return _Parts(None, (node,))
        parts = [known[x] for x in node.operands]
        if isinstance(node.op, Sum | Mul | Contract) or (node.op.linear and not isinstance(node.op, Concat)):
            return _distributed(nodes, parity, node, parts)
        rebuilt = nodes.builder.node(node.op, *(_whole(nodes, p, x) for p, x in zip(parts, node.operands, strict=True)))
        return _Parts(None, (rebuilt,)) if any(p.noisy for p in parts) else _Parts(rebuilt)

    parts = bottom_up(limit, known, lambda x: x.operands if x in reached else (), find)
    return _whole(nodes, parts, limit)


def _whole(nodes: Nodes, parts: _Parts, like: Node) -> Node:
    items = ([] if parts.quiet is None else [parts.quiet]) + list(parts.noisy)
    total = nodes.sum([(1.0, x) for x in items], like.dims)
    return total if total is not None else nodes.expand(nodes.builder.node(Const(0.0)), like.dims)


def _distributed(nodes: Nodes, parity: Parity, node: Node, parts: Sequence[_Parts]) -> _Parts:
    """A sum, or an operation that is linear in each operand, of operands in parts."""
    quiet: list[Node] = []
    noisy: list[Node] = []
    if isinstance(node.op, Sum):
        for c, p in zip(node.op.coefficients, parts, strict=True):
            scaled = lambda x, c=c: nodes.sum([(c, x)], node.dims)  # summands broadcast
            quiet += [x for x in [p.quiet and scaled(p.quiet)] if x is not None]
            noisy += [x for x in map(scaled, p.noisy) if x is not None]
    else:
        for choice in product(*([(p.quiet, False), *((x, True) for x in p.noisy)] for p in parts)):
            factors = [x for x, _ in choice if x is not None]
            if len(factors) < len(choice):
                continue
            loud = any(flag for _, flag in choice)
            if loud and _is_moment(node) and parity.vanishes(*(x for x in factors if x.kind == "vector")):
                continue
            made = _made(nodes, node, factors)
            if made is not None:
                (noisy if loud else quiet).append(made)
    total = nodes.sum([(1.0, x) for x in quiet], node.dims) if quiet else None
    if len(noisy) > _MOST:
        joined = nodes.sum([(1.0, x) for x in noisy], node.dims)
        noisy = [] if joined is None else [joined]
    return _Parts(total, tuple(noisy))


def _is_moment(node: Node) -> bool:
    op = node.op
    if not isinstance(op, Contract) or isinstance(op, Gaussian) or any(x.kind == "matrix" for x in node.operands):
        return False
    return op.contracted_width(tuple(x.dims for x in node.operands)) is not None


def _made(nodes: Nodes, node: Node, factors: Sequence[Node]) -> Node | None:
    op = node.op
    if isinstance(op, Mul):
        return nodes.mul(factors, node.dims)
    if isinstance(op, Contract):
        return nodes.scale(*nodes.contract(op.spec, factors, gaussian=isinstance(op, Gaussian)))
    if isinstance(op, MatMul):
        return nodes.scale(*nodes.matmul(factors[0], factors[1], op.transpose))
    return nodes.builder.node(op, *factors)
