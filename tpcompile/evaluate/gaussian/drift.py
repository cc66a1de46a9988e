"""Gaussian sums whose mean vanishes only because an inner product of an earlier layer does.

The summand ``psi`` of ``S = n^(-1/2) sum_i psi_i`` is a function of Gaussians ``g = W x`` of mean zero and covariance
``K = sigma^2 <x, x'> / n``. At finite width K fluctuates by ``n^(-1/2)``. Where ``E psi`` is zero only because entries
of K are, these fluctuations move the mean of S by as much as S itself varies (delta method; ``d E psi / d K_gg'`` is
``E d^2 psi / dg dg'`` for g other than g', Price, IRE Trans. Inf. Theory 4:69, 1958):

    S = Ŝ + 1/2 sum_{g, g'} E[d^2 psi / dg dg'] sigma^2 S',    S' = n^(-1/2) sum_j x_j x'_j,

Ŝ with the covariance ``E[psi psi']`` and independent of the S', which belong to the layers before and are taken apart
in the same way. An example is the first variation of a network under a readout of non-zero mean: with
``psi = phi'(h) dh``, ``S' = n^(-1/2) sum_j x_j dx_j`` and ``E[phi''(h)]`` in front of it. Backwards, this is the
response term of ``W^T``.
"""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING

from tpcompile.analysis.gaussians import centred
from tpcompile.evaluate.gaussian import response
from tpcompile.evaluate.gaussian.terms import Label, Poly, Term, matched, unified
from tpcompile.ir import Gaussian, Init, MatMul, Node, Width
from tpcompile.laws import mean_and_std

if TYPE_CHECKING:
    from tpcompile.evaluate.gaussian.moments import Factor, Moments


def drifts(m: Moments, node: Node) -> bool:
    """True if a Gaussian sum has a mean that fluctuates as much as the sum; not for what has been taken apart."""
    if not isinstance(node.op, Gaussian) or node in m.structure.hats:
        return False
    key = ("drifts", node)
    if key not in m.made:
        m.made[key] = not centred(node)
    return m.made[key]


def alternatives(m: Moments, f: Factor) -> list[tuple[Term, tuple[Factor, ...]]]:
    """``S = Ŝ + 1/2 sum E[d^2 psi / dg dg'] sigma^2 S'`` as alternatives to be added."""
    factors = m.contracted(f)
    numbers = tuple(x for x in factors if x.node.kind == "scalar")
    summand = tuple(x for x in factors if x.node.kind != "scalar")
    width = next(d for x in summand for d in x.node.dims if isinstance(d, Width))
    out: list[tuple[Term, tuple[Factor, ...]]] = [(Term(1.0), (f.on(m.structure.hat(f.node), f.labels),))]
    for g, h in combinations_with_replacement(_products(m, summand), 2):
        if g.operands[0] is not h.operands[0] or g.op != h.op:
            continue
        first, second = m.factor(g, f.copy), m.factor(h, f.copy)
        parts = _curvature(m, summand, first, second)
        if not parts:
            continue
        x, y = g.operands[1], h.operands[1]
        if not m.parity.vanishes(x, y):
            # a flip that makes psi odd and this inner product even makes the curvature odd
            if all(m.parity.vanishes(*(z.node for z in fs if z.node.kind == "vector")) for _, fs, _ in parts):
                continue
            raise m.unfactorised("a sum whose mean moves with an inner product that is not zero in the limit", f.node)
        matrix = g.operands[0]
        assert isinstance(matrix.op, Init)
        _, std = mean_and_std(matrix.op.law)
        family = sum(isinstance(d, int) for d in matrix.dims)
        into = next(float(d.ratio) for d in x.dims if isinstance(d, Width))
        deltas = matched(first.labels[:family], second.labels[:family])
        scale = math.sqrt(float(width.ratio) * into) * (0.5 if g is h else 1.0)
        own = Term(scale, (m.variance(matrix, std),), deltas)
        labels = tuple(dict.fromkeys(z for v in (*summand, first, second) for z in v.named()))
        inner = f.on(_inner(m, x, y), (*first.labels, *second.labels))
        out += [(own * t, (*numbers, inner)) for t in _expected(m, parts, labels)]
    return out


def _products(m: Moments, summand: Sequence[Factor]) -> list[Node]:
    """The products with initial matrices that a summand is a function of."""
    found: dict[Node, None] = {}
    seen: set[Node] = set()
    stack = [x.node for x in summand]
    while stack:
        node = stack.pop()
        if node in seen or node not in m.structure.random:
            continue
        seen.add(node)
        if node.kind == "scalar":
            raise m.unfactorised("a sum whose mean moves with inner products and with random numbers", node)
        if isinstance(node.op, MatMul):
            if m.structure.responds(node):
                raise m.unfactorised("a sum whose mean moves with inner products, by a matrix and its transpose", node)
            found[node] = None
        else:
            stack += node.operands
    return sorted(found, key=lambda x: x.serial)


def _curvature(m: Moments, summand: tuple[Factor, ...], g: Factor, h: Factor) -> list[response.Part]:
    """``d^2 psi / dg dh`` as a sum of products of factors and deltas."""
    out: list[response.Part] = []
    for c, factors, deltas in response.derivative(m, summand, g.node, g.labels):
        out += [(c * d, fs, (*deltas, *ds)) for d, fs, ds in response.derivative(m, factors, h.node, h.labels)]
    return out


def _expected(m: Moments, parts: Sequence[response.Part], out: Sequence[Label]) -> Poly:
    """The expectation of a derivative, as one array where that hides no delta of two of its labels ``out``."""
    poly = tuple(t for c, factors, deltas in parts for t in m.times((Term(c, (), deltas),), factors))
    used = {x for term in poly for x in term.labels()}
    kept = tuple(x for x in out if x in used)
    for term in poly:
        names = unified(term.deltas)
        if len({names.get(x, x) for x in kept}) < len(kept):
            return poly
    return (Term(1.0, ((m.sum(poly, kept), kept),)),) if len(poly) > 1 else poly


def _inner(m: Moments, x: Node, y: Node) -> Node:
    """``n^(-1/2) sum_j x_j y_j`` for all finite axes of both."""
    key = ("inner product", x, y)
    if key not in m.made:
        names = iter(string.ascii_letters)
        shared = next(names)
        letters = ["".join(shared if isinstance(d, Width) else next(names) for d in z.dims) for z in (x, y)]
        op = Gaussian(",".join(letters) + "->" + "".join(letters).replace(shared, ""))
        node = m.made[key] = Node(op, (x, y), op.infer((x.dims, y.dims)), max(x.serial, y.serial))
        m.structure.random.add(node)
    return m.made[key]
