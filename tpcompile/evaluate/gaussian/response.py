"""Response (dot) terms of the Master Theorem in factorised form (theory, section 2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tpcompile.evaluate.gaussian import axes
from tpcompile.evaluate.gaussian.terms import Delta, Label, Poly, Term, matched
from tpcompile.ir import Contract, Expand, Init, Map, MatMul, Mul, Node, Permute, Sum, Width
from tpcompile.laws import mean_and_std

if TYPE_CHECKING:
    from tpcompile.evaluate.gaussian.moments import Factor, Moments

Part = tuple[float, tuple["Factor", ...], tuple[Delta, ...]]


def alternatives(m: Moments, f: Factor) -> list[tuple[Term, tuple[Factor, ...]]]:
    """``Z^{W x} = Ẑ^{W x} + sigma^2 r sum_y E[dZ^x / dẐ^{W^T y}] Z^y``, r the ratio of the axis that W contracts."""
    matrix, x = f.node.operands
    assert isinstance(matrix.op, Init)
    _, std = mean_and_std(matrix.op.law)
    ratio = next(float(d.ratio) for d in x.dims if isinstance(d, Width))
    family = sum(isinstance(d, int) for d in matrix.dims)
    out: list[tuple[Term, tuple[Factor, ...]]] = [(Term(1.0), (f.on(m.structure.hat(f.node), f.labels),))]
    for g in m.structure.opposite(f.node):
        own = m.factor(g, f.copy)
        deltas = matched(f.labels[:family], own.labels[:family])
        slope = _expected(m, type(f)(x, f.copy, f.labels), g, own.labels)
        y = f.on(g.operands[1], own.labels)
        out += [(Term(ratio, (m.variance(matrix, std),), deltas) * term, (y,)) for term in slope]
    return out


def _expected(m: Moments, f: Factor, g: Node, labels: tuple[Label | None, ...]) -> Poly:
    """``E[dZ^f / dẐ^g]`` over the labels of both."""
    out: list[Term] = []
    for c, factors, deltas in _derivative(m, f, g, labels):
        out += m.times((Term(c, (), deltas),), factors)
    return tuple(out)


def _derivative(m: Moments, f: Factor, g: Node, labels: tuple[Label | None, ...]) -> list[Part]:
    """The derivative of a value by a product's Gaussian part, as a sum of products of factors and deltas."""
    node = f.node
    if node is g:
        return [(1.0, (), matched(f.labels, labels))]
    if m.structure.deterministic(node) or g not in m.structure.reach(node) or isinstance(node.op, Init):
        return []
    op, x = node.op, node.operands
    if isinstance(op, Sum):
        parts = zip(op.coefficients, x, strict=True)
        return [(c * d, fs, ds) for c, y in parts for d, fs, ds in _derivative(m, m.broadcast(f, y), g, labels)]
    if isinstance(op, Map):
        inner = m.broadcast(f, x[0])
        slope = m.derivative(f)
        return [(d, (slope, *fs), ds) for d, fs, ds in _derivative(m, inner, g, labels)]
    if isinstance(op, Mul | Expand):
        factors = [m.broadcast(f, y) for y in x]
    elif isinstance(op, Contract) and m.structure.width(node) is None:
        factors = list(m.contracted(f))
    elif isinstance(op, Permute):
        factors = [axes.permuted(f)]
    elif isinstance(op, MatMul) and not any(g in m.structure.reach(y.operands[1]) for y in m.structure.opposite(node)):
        return []
    else:
        raise m.unfactorised(f"the response through {op.mnemonic}", node)
    return derivative(m, factors, g, labels)


def derivative(m: Moments, factors: Sequence[Factor], g: Node, labels: tuple[Label | None, ...]) -> list[Part]:
    """The derivative of a product of values by a product's Gaussian part."""
    out: list[Part] = []
    for i, h in enumerate(factors):
        rest = (*factors[:i], *factors[i + 1 :])
        out += [(d, (*rest, *fs), ds) for d, fs, ds in _derivative(m, h, g, labels)]
    return out
