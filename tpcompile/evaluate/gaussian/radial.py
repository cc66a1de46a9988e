"""Gaussian values over the length of a Gaussian vector: batch statistics, normalisation over finite axes.

A factor ``(eps + c |l|^2)^(-p)``, l a vector of Gaussian variables, is an integral over Gaussian weights:
``1 / Gamma(p) int t^(p-1) exp(-t eps) exp(-t c |l|^2) dt``. Under each weight l is Gaussian with a smaller covariance,
so that what is multiplied by the factor is an expectation like any other, with one more axis: the nodes of t (the
Laplace method of Yang et al., A Mean Field Theory of Batch Normalization, 1902.08129). Two copies of a program have a
factor each: two integrals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch

from tpcompile import nonlin
from tpcompile.analysis.semantics import constant_value
from tpcompile.evaluate.gaussian.terms import Array, Label, Poly, SumArray, Term
from tpcompile.evaluate.gaussian.tilted import BOTH, SINGLE
from tpcompile.ir import Const, Contract, Dims, Expand, Map, Mul, Node, Op, Sum, View, Width

if TYPE_CHECKING:
    from tpcompile.evaluate.gaussian.moments import Factor, Moments


@dataclass(frozen=True)
class Scale:
    """``coefficient * (eps + c |l|^2)^(-power)`` with l all entries of a Gaussian node at one coordinate."""

    coefficient: float
    power: float
    ell: Node
    c: float
    eps: float


@dataclass(frozen=True, eq=False)
class Tilt:
    """Weights ``exp(-t c |l|^2)`` on the vectors l of one or two copies; one axis of nodes for the values of t.

    ``scales`` belong to the copies, None where a copy has no weight; ``covariances`` are those of l without weights.
    """

    ell: Node
    copies: tuple[int, ...]
    scales: tuple[Scale | None, ...]
    covariances: tuple[tuple[Array, ...], ...]
    nodes: int


@dataclass(frozen=True)
class Tilted(Op):
    """The vector l under the weights of a tilt, with an axis for the nodes of t in front: a generator."""

    mnemonic: ClassVar[str] = "tilted"
    source: Node
    tilt: Tilt

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        return (self.tilt.nodes, *self.source.dims)


@dataclass(frozen=True, eq=False)
class TiltedCovariance(Array):
    """Covariance of l on two copies under the weights, ``(*axes, *axes, nodes)``."""

    tilt: Tilt
    places: tuple[int, int]


@dataclass(frozen=True, eq=False)
class TiltArray(Array):
    """The integral over t of an expectation under the weights, whose last axis are the nodes."""

    inner: SumArray
    tilt: Tilt
    form: int


# what is recognised ------------------------------------------------------------------------


def scale(m: Moments, node: Node) -> Scale | None:
    """A value as a negative power of a constant plus the square of a Gaussian vector, if it is one."""
    if isinstance(node.op, View | Expand) and _entries(node) == _entries(node.operands[0]):
        return scale(m, node.operands[0])
    if not isinstance(node.op, Map):
        return None
    if node not in m.scales:
        m.scales[node] = _scale(m, node)
    return m.scales[node]


def _scale(m: Moments, node: Node) -> Scale | None:
    op, (x,) = node.op, node.operands
    assert isinstance(op, Map)
    if x not in m.structure.random or any(d != 1 for d in x.dims if isinstance(d, int)) or x.kind != "vector":
        return None
    degree = nonlin.homogeneity(op.fn, op.order, **dict(op.params))
    if not degree or not nonlin.has_derivative(op.fn, op.order, **dict(op.params)):
        return None
    one = torch.ones((), dtype=torch.float64)
    factor = float(nonlin.evaluate(op.fn, one, op.order, **dict(op.params)))
    inner = scale(m, x)
    if inner is not None and inner.coefficient > 0 and degree > 0:
        whole = factor * inner.coefficient**degree
        return Scale(whole, inner.power * degree, inner.ell, inner.c, inner.eps)
    square = _square(m, x) if degree < 0 else None
    if square is None or square[0] <= 0 or square[2] < 0 or factor == 0:
        return None
    return Scale(factor, -degree, square[1], square[0], square[2])


def _square(m: Moments, node: Node) -> tuple[float, Node, float] | None:
    """``(c, l, eps)`` of ``c |l|^2 + eps``, |l|^2 summed over all finite axes that are summed below."""
    op, x = node.op, node.operands
    if isinstance(op, Sum):
        found: tuple[float, Node, float] | None = None
        eps = 0.0
        for c, y in zip(op.coefficients, x, strict=True):
            if y in m.structure.random:
                inner = _square(m, y)
                if found is not None or inner is None:
                    return None
                found = (c * inner[0], inner[1], c * inner[2])
                continue
            value = constant_value(y, m.program.data)
            if value is None or value.numel() != 1:
                return None
            eps += c * float(value)
        return None if found is None else (found[0], found[1], found[2] + eps)
    if isinstance(op, Contract) and m.structure.width(node) is None:
        if len(x) == 1:
            return _square(m, x[0])
        same = len(x) == 2 and x[0] is x[1] and len(set(op.spec.partition("->")[0].split(","))) == 1
        return (1.0, x[0], 0.0) if same and m.structure.gaussian(x[0]) else None
    if isinstance(op, View | Expand) and _entries(node) == _entries(x[0]):
        return _square(m, x[0])
    power = isinstance(op, Map) and op.order == 0 and dict(op.params).get("exponent") == 2
    if (power or (isinstance(op, Mul) and len(x) == 2 and x[0] is x[1])) and m.structure.gaussian(x[0]):
        return 1.0, x[0], 0.0
    return None


def _entries(node: Node) -> int:
    return math.prod(d for d in node.dims if isinstance(d, int))


def held(m: Moments, factors: Sequence[Factor]) -> set[Node]:
    """Gaussian values that stay whole beside the powers of their lengths."""
    found = (scale(m, f.node) for f in factors)
    return {s.ell for s in found if s is not None}


def freed(m: Moments, f: Factor) -> tuple[float, tuple[Factor, ...]] | None:
    """A positively homogeneous function of a product with powers of lengths, as a number and a product itself."""
    op, (x,) = f.node.op, f.node.operands
    assert isinstance(op, Map)
    if not isinstance(x.op, Mul):
        return None
    powers = [y for y in x.operands if (s := scale(m, y)) is not None and s.coefficient > 0]
    numbers = {y: c for y in x.operands if (c := _number(y)) is not None and c > 0}
    rest = [y for y in x.operands if y not in powers and y not in numbers]
    degree = nonlin.homogeneity(op.fn, op.order, **dict(op.params)) if powers and len(rest) == 1 else None
    if degree is None or degree < 0 or degree != int(degree) or rest[0].dims != x.dims:
        return None
    if len(set(powers)) < len(powers):
        return None
    inner = Node(op, (rest[0],), x.dims, f.node.serial)
    inner = m.made.setdefault((op, rest[0]), inner)
    m.structure.random.add(inner)
    lengths = (m.broadcast(m.broadcast(f, x), y) for y in powers for _ in range(int(degree)))
    return math.prod(numbers.values()) ** degree, (f.on(inner, f.labels), *lengths)


def _number(node: Node) -> float | None:
    while isinstance(node.op, View | Expand):
        node = node.operands[0]
    return float(node.op.value) if isinstance(node.op, Const) else None


# planning ----------------------------------------------------------------------------------


def tilted(m: Moments, group: Sequence[Factor]) -> Poly | None:
    """The expectation of Gaussian values and functions of them times powers of lengths; None if it is no such."""
    powers = [(f, s) for f in group if (s := scale(m, f.node)) is not None]
    rest = [f for f in group if scale(m, f.node) is None]
    if not powers or any(f.blocks for f in group):
        return None
    ell = powers[0][1].ell
    variables = [f if m.structure.gaussian(f.node) else _operand(m, f) for f in rest]
    if any(v is None or v.node is not ell for v in variables) or any(s.ell is not ell for _, s in powers):
        return None
    times, rest = _euler(m, rest)
    if not times:
        return ()
    probe = m.factor(ell, 0)
    if m.array([probe], probe.named()) is not None:
        return None
    tilt, coefficient = _tilt(m, powers, sorted({f.copy for f in group}))
    t = m.label(tilt.nodes)
    node = m.made.setdefault((tilt, ell), Node(Tilted(ell, tilt), (), (tilt.nodes, *ell.dims), ell.serial))
    m.structure.declare_gaussian(node, tilt)
    out = tuple(dict.fromkeys(x for f in rest for x in f.named()))
    key = (*m.key(sorted(rest, key=lambda f: (f.node.serial, f.copy)), out), "tilted", tilt)
    array = m.known.get(key)
    if array is None:
        moved = tuple(_under(m, f, node, t) for f in rest)
        inner = m.sum(m.moment(moved), (*out, t))
        sizes = tuple(m.lengths[x] for x in out)
        m.forms.append((f"quadrature over the length of {_entries(ell)} Gaussian variables", None))
        array = m.known[key] = TiltArray(sizes, inner, tilt, len(m.forms) - 1)
    return (Term(coefficient * times, ((array, out),)),)


def _euler(m: Moments, factors: Sequence[Factor]) -> tuple[float, list[Factor]]:
    """Products ``x f'(x)`` of homogeneous functions of degree d as ``d f(x)``: fewer derivatives are asked for then."""
    times, found = 1.0, list(factors)
    for f in factors:
        op, x = f.node.op, _operand(m, f)
        while x is not None and isinstance(op, Map) and op.order and x in found:
            degree = nonlin.homogeneity(op.fn, op.order - 1, **dict(op.params))
            if degree is None:
                break
            times *= degree
            lower = Map(op.fn, op.order - 1, op.params)
            node = m.made.setdefault((lower, x.node), Node(lower, (x.node,), f.node.dims, f.node.serial))
            m.structure.random.add(node)
            found.remove(x)
            found.remove(f)
            f, op = f.on(node, f.labels), lower
            found.append(f)
    return times, found


def _operand(m: Moments, f: Factor) -> Factor | None:
    if isinstance(f.node.op, Map) and m.structure.gaussian(f.node.operands[0]):
        return m.broadcast(f, f.node.operands[0])
    return None


def _under(m: Moments, f: Factor, node: Node, t: Label) -> Factor:
    """A factor with l replaced by l under the weights."""
    if f.node.op is node.op or m.structure.gaussian(f.node):
        return type(f)(node, f.copy, (t, *f.labels))
    inner = m.made.setdefault((f.node.op, node), Node(f.node.op, (node,), node.dims, f.node.serial))
    m.structure.random.add(inner)
    return type(f)(inner, f.copy, (t, *f.labels))


def _tilt(m: Moments, powers: Sequence[tuple[Factor, Scale]], copies: Sequence[int]) -> tuple[Tilt, float]:
    """The weights of a product of powers (equal requests give one tilt) and the product of their coefficients."""
    ell = powers[0][1].ell
    first = powers[0][1]
    coefficient = math.prod(s.coefficient for _, s in powers)
    scales: list[Scale | None] = []
    for copy in copies:
        total = sum(s.power for f, s in powers if f.copy == copy)
        scales.append(Scale(1.0, total, ell, first.c, first.eps) if total else None)
    key = ("tilt", tuple(copies), tuple(scales))
    if key not in m.made:
        rows = []
        for a in copies:
            row = []
            for b in copies:
                f, g = m.factor(ell, a), m.factor(ell, b)
                found = m.array([f, g], (*f.named(), *g.named()), centre=True)
                row.append(found if found is not None else m.sum((), (*f.named(), *g.named())))
            rows.append(tuple(row))
        weighted = sum(s is not None for s in scales)
        nodes = SINGLE if weighted == 1 else BOTH**2
        m.made[key] = Tilt(ell, tuple(copies), tuple(scales), tuple(rows), nodes)
    return m.made[key], coefficient


def covariance(m: Moments, a: Factor, b: Factor) -> Poly:
    """``E[a b]`` of two entries of l under the same weights."""
    op = a.node.op
    assert isinstance(op, Tilted)
    tilt = op.tilt
    places = tilt.copies.index(a.copy), tilt.copies.index(b.copy)
    own = tuple(d for d in tilt.ell.dims if not isinstance(d, Width) and d != 1)
    key = ("tilted covariance", tilt, places)
    array = m.known.setdefault(key, TiltedCovariance((*own, *own, tilt.nodes), tilt, places))
    (t, *first), (_, *second) = a.labels, b.labels
    assert t is not None
    return (Term(1.0, ((array, (*(x for x in (*first, *second) if x is not None), t)),)),)
