"""Products of irreducible factors: split into independent groups, each an integral over few Gaussian variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tpcompile import nonlin
from tpcompile.evaluate import duals
from tpcompile.evaluate.components import components
from tpcompile.evaluate.gaussian.initial import plan_initial
from tpcompile.evaluate.gaussian.radial import Tilted, tilted
from tpcompile.evaluate.gaussian.sampled import plan_sampled, sources
from tpcompile.evaluate.gaussian.terms import (
    Array,
    DualArray,
    IntegralArray,
    Label,
    Poly,
    SingleArray,
    Term,
    product,
)
from tpcompile.ir import Const, Expand, Gaussian, Init, Map, MatMul, Mul, Node, Sum, Width

if TYPE_CHECKING:
    from tpcompile.evaluate.gaussian.moments import Factor, Moments

_MOST = 3  # Gaussian variables under one integral


def independent(m: Moments, factors: Sequence[Factor]) -> Poly:
    """The expectation of a product of generators and functions of Gaussian variables."""
    if len(factors) <= 2 and all(is_generator(m, f) for f in factors):
        return _group(m, factors)
    origins = [_sources(m, f) for f in factors]
    ties = [
        (i, j)
        for i in range(len(factors))
        for j in range(i)
        if any(_correlated(m, v, w) for v in origins[i] for w in origins[j])
    ]
    poly: Poly = (Term(1.0),)
    groups = sorted(components(range(len(factors)), ties), key=lambda c: (len(c), min(c)))
    pending = [[factors[i] for i in sorted(group)] for group in groups]
    pending.sort(key=lambda group: not all(is_generator(m, f) for f in group))  # what vanishes by structure first
    while pending and poly:
        group = pending.pop(0)
        found = _group(m, group)
        deltas = {d for term in found for d in term.deltas}
        if pending and len(found) == 1 and deltas:  # what they unify is asked of the others as a diagonal
            rest = tuple(f for g in pending for f in g)
            return product(poly, m.times(found, rest))
        poly = product(poly, found)
    return poly


def is_generator(m: Moments, f: Factor) -> bool:
    """Initial values, products with initial matrices, Gaussian scalars; Gaussian values that are kept whole."""
    return isinstance(f.node.op, Init | MatMul | Gaussian | Tilted) or m.whole(f)


def _is_direct(m: Moments, f: Factor) -> bool:
    """A registered function of one Gaussian variable."""
    return isinstance(f.node.op, Map) and m.structure.gaussian(f.node.operands[0])


def _variables(m: Moments, f: Factor) -> list[Factor]:
    """The Gaussian variables of which a factor is a function."""
    if is_generator(m, f):
        return [f]
    if _is_direct(m, f):
        return [m.broadcast(f, f.node.operands[0])]
    if m.structure.pointwise(f.node):
        found: dict[Factor, None] = {}
        for x in f.node.operands:
            if x not in m.structure.random:
                continue
            g = m.broadcast(f, x)
            for v in [g] if m.structure.gaussian(x) else _variables(m, g):
                found.setdefault(v)
        return list(found)
    return [f]  # to be drawn


def _sources(m: Moments, f: Factor) -> list[Factor]:
    """What the randomness of a factor comes from: Gaussian values, and initial values of other laws."""
    if is_generator(m, f):
        return [f]
    if _is_direct(m, f):
        return _variables(m, f)
    found: dict[Node, bool] = {}
    sources(m, f.node, found)
    return [m.factor(x, f.copy) for x in found]


def _correlated(m: Moments, v: Factor, w: Factor) -> bool:
    """False only if two variables are independent for reasons of structure."""
    if not m.structure.families(v.node) & m.structure.families(w.node):
        return False
    if isinstance(v.node.op, Tilted):
        return True
    if isinstance(v.node.op, Gaussian) or isinstance(w.node.op, Gaussian) or v.node.kind == "scalar":
        return bool(m.covariance(v, w))
    if not (m.structure.gaussian(v.node) and m.structure.gaussian(w.node)):
        return True
    if m.parity.vanishes(v.node, w.node):
        return False
    # parities are joined beyond a number of summands (deep networks): then the covariance itself decides
    out = tuple(dict.fromkeys((*v.named(), *w.named())))
    return m.array([v, w], out, centre=any(m.array([x], x.named()) is not None for x in (v, w))) is not None


def _group(m: Moments, group: Sequence[Factor]) -> Poly:
    if all(is_generator(m, f) for f in group) and len(group) <= 2:
        return m.mean(group[0]) if len(group) == 1 else m.generators(group[0], group[1])
    by_length = tilted(m, group)
    if by_length is not None:
        return by_length
    variables = sorted(dict.fromkeys(v for f in group for v in _variables(m, f)), key=lambda v: v.copy)
    if not all(m.structure.gaussian(v.node) for v in variables):
        return _sampled(m, group)
    if len({v.blocks for v in variables}) > 1:
        return _across_blocks(m, group)
    if len(variables) > 2:
        for f in group:
            if is_generator(m, f) and all(is_generator(m, g) or _is_direct(m, g) for g in group):
                return _stein(m, f, [g for g in group if g is not f])
    if len(variables) > _MOST:
        return _sampled(m, group)
    out = tuple(dict.fromkeys(x for v in variables for x in v.named()))
    simple = len(variables) <= 2 and all(is_generator(m, f) or _is_direct(m, f) for f in group)
    key = (*m.key(sorted(group, key=lambda f: (f.node.serial, f.node.op.mnemonic, f.copy)), out), "expectation")
    array = m.known.get(key)
    if array is None:
        if not simple and any(_reads_scalars(m, f, set(variables)) for f in group):
            return _sampled(m, group)
        array = m.known[key] = (_closed if simple else _integral)(m, group, variables, out)
    return (Term(1.0, ((array, out),)),)


def _sampled(m: Moments, group: Sequence[Factor]) -> Poly:
    out = tuple(dict.fromkeys(x for f in group for x in f.named()))
    key = (*m.key(sorted(group, key=lambda f: (f.node.serial, f.copy)), out), "sampled")
    array = m.known.get(key)
    if array is None:
        array = m.known[key] = plan_initial(m, group) or plan_sampled(m, group, out)
    return (Term(1.0, ((array, out),)),)


def _across_blocks(m: Moments, group: Sequence[Factor]) -> Poly:
    """Functions at coordinates of two blocks: one coordinate where the blocks are equal, independent ones elsewhere."""
    blocks = list(dict.fromkeys(f.blocks for f in group))
    if len(blocks) != 2 or len(blocks[0]) != len(blocks[1]):
        raise m.unfactorised("functions at coordinates of more than two blocks", group[0].node)
    first, second = ([f for f in group if f.blocks == b] for b in blocks)
    deltas = tuple((p, q) for p, q in zip(*blocks, strict=True) if p != q)
    equal = tuple(f.under({q: p for p, q in deltas}) for f in group)
    apart = product(m.moment(tuple(first)), m.moment(tuple(second)))
    same = Term(1.0, (), deltas)
    minus = Term(-1.0, (), deltas)
    return (*apart, *(same * t for t in m.moment(equal)), *(minus * t for t in apart))


def _stein(m: Moments, g: Factor, others: Sequence[Factor]) -> Poly:
    """``E[g F] = E[g] E[F] + sum_v Cov(g, v) E[dF/dv]`` (Stein's lemma), for a linear factor g."""
    out = product(m.mean(g), m.moment(tuple(others)))
    for i, f in enumerate(others):
        rest = [x for j, x in enumerate(others) if j != i]
        if is_generator(m, f):
            out += m.times(m.covariance(g, f), tuple(rest))
            continue
        if not _is_direct(m, f):
            raise m.unfactorised("a product of correlated values", f.node)
        (v,) = _variables(m, f)
        slope = m.derivative(f)
        out += m.times(m.covariance(g, v), (*rest, slope))
    return out


def _closed(m: Moments, group: Sequence[Factor], variables: Sequence[Factor], out: Sequence[Label]) -> Array:
    """One or two variables, of each a product of registered functions."""
    parts: dict[Factor, list] = {v: [] for v in variables}
    for f in group:
        (v,) = _variables(m, f)
        op = f.node.op
        parts[v].append((op.fn, op.order, op.params) if isinstance(op, Map) else ("linear", 0, ()))
    functions = [duals.Factor(tuple(sorted(parts[v], key=repr))) for v in variables]
    means = [m.array([v], out) for v in variables]
    centred = all(x is None for x in means)
    variances = [_variance(m, v, out) for v in variables]
    sizes = _sizes(m, [*variances, *means], out)
    if len(variables) == 1:
        single = duals.expectation(functions[0])
        m.forms.append((single.form, single.error))
        return SingleArray(sizes, single, variances[0], means[0])
    u, v = variables
    both = duals.dual(functions[0], functions[1], centred=centred)
    m.forms.append((both.form, both.error))
    cov = m.array([u, v], out, centre=not centred)
    assert cov is not None
    sizes = _sizes(m, [cov, *variances, *means], out)
    return DualArray(sizes, both, cov, variances[0], variances[1], means[0], means[1])


def _variance(m: Moments, v: Factor, out: Sequence[Label]) -> Array:
    found = m.array([v, v], out, centre=True)
    if found is None:
        raise m.unfactorised("a variable without variance", v.node)
    return found


def _sizes(m: Moments, arrays: Sequence[Array | None], out: Sequence[Label]) -> tuple[int, ...]:
    known = [x.sizes for x in arrays if x is not None]
    return tuple(max(s[i] for s in known) for i in range(len(out)))


@dataclass(frozen=True)
class Integrand:
    """A product of nodes as a function of the values of Gaussian variables."""

    factors: tuple[Factor, ...]
    variables: tuple[Factor, ...]
    broadcast: Callable[[Factor, Node], Factor]

    def __call__(self, values: Mapping[Factor, Tensor]) -> Tensor:
        out: Tensor | None = None
        for f in self.factors:
            x = self._value(f, values)
            out = x if out is None else out * x
        assert out is not None
        return out

    def kinks(self) -> list[list[float]]:
        """Points of each variable where a function of it alone has a kink."""
        found: dict[Factor, set[float]] = {v: set() for v in self.variables}
        stack = list(self.factors)
        while stack:
            f = stack.pop()
            if f in found:
                continue
            inner = [self.broadcast(f, x) for x in f.node.operands]
            if isinstance(f.node.op, Map) and inner[0] in found:
                found[inner[0]] |= set(nonlin.kinks(f.node.op.fn, **dict(f.node.op.params)))
            stack += inner
        return [sorted(found[v]) for v in self.variables]

    def _value(self, f: Factor, values: Mapping[Factor, Tensor]) -> Tensor:
        if f in values:
            return values[f]
        op = f.node.op
        inner = [self._value(self.broadcast(f, x), values) for x in f.node.operands]
        match op:
            case Map(fn=fn, order=order, params=params):
                return nonlin.evaluate(fn, inner[0], order, **dict(params))
            case Sum(coefficients=coefficients):
                total = coefficients[0] * inner[0]
                for c, x in zip(coefficients[1:], inner[1:], strict=True):
                    total = total + c * x
                return total
            case Mul():
                total = inner[0]
                for x in inner[1:]:
                    total = total * x
                return total
            case Expand():
                return inner[0]
            case Const(value=value):
                return torch.tensor(value)
        raise AssertionError(op)


def _integral(m: Moments, group: Sequence[Factor], variables: Sequence[Factor], out: Sequence[Label]) -> Array:
    """Any product of pointwise functions of up to three variables, on a grid."""
    integrand = Integrand(tuple(group), tuple(variables), m.broadcast)
    means = tuple(m.array([v], out) for v in variables)
    rows = []
    for v in variables:
        row = []
        for w in variables:
            found = m.array([v, w], out, centre=True)
            row.append(found if found is not None else m.sum((), out))
        rows.append(tuple(row))
    sizes = _sizes(m, [x for row in rows for x in row] + list(means), out)
    m.forms.append((f"quadrature over {len(variables)} variables", None))
    return IntegralArray(sizes, integrand, tuple(rows), means, len(m.forms) - 1)


def _reads_scalars(m: Moments, f: Factor, stop: set[Factor]) -> bool:
    if f in stop:
        return False
    if m.structure.deterministic(f.node):
        return not _is_number(f.node)
    return any(_reads_scalars(m, m.broadcast(f, x), stop) for x in f.node.operands)


def _is_number(node: Node) -> bool:
    return node.op.mnemonic == "const" and not any(isinstance(d, Width) for d in node.dims)
