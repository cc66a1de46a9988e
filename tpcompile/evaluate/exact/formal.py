"""Programs over polynomials in formal generators: exact rationals, roots, symbols, or floats (:mod:`.wick`).

A value is an object array over its axes, a width axis of length 1: entries of scalars are numbers, or polynomials in
the random ones, those of vectors polynomials. Numbers are rational where the floats of the program stand for rationals
(:mod:`.numbers`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, reduce
from itertools import product
from typing import Any

import numpy as np
import torch

from tpcompile import nonlin
from tpcompile.analysis.parity import Parity
from tpcompile.analysis.semantics import execute
from tpcompile.errors import EvaluationError
from tpcompile.evaluate.domains import Domain, Domains, find_domains
from tpcompile.evaluate.ensemble import check_centred, check_settled
from tpcompile.evaluate.exact.degrees import coefficients
from tpcompile.evaluate.exact.functions import Integral
from tpcompile.evaluate.exact.numbers import Number, recognised
from tpcompile.evaluate.exact.wick import GaussianSum, Initial, Polynomial, Product, Wick, lifted
from tpcompile.ir import (
    Concat,
    Const,
    Contract,
    Data,
    Expand,
    Finite,
    Gather,
    Gaussian,
    Init,
    Map,
    MatMul,
    Mul,
    Node,
    Permute,
    Program,
    Scatter,
    Slice,
    Sum,
    Unslice,
    View,
    Width,
    split_spec,
)
from tpcompile.laws import Constant, Law, Normal, TruncatedNormal, Uniform

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Formal:
    """The limits of all outputs, as object arrays: numbers, or polynomials in the random scalars."""

    values: Mapping[str, Array]
    wick: Wick

    def mean(self, name: str) -> Array:
        """An output's expectation over the random scalars."""
        return _each(self.wick.average, self.values[name])

    def covariance(self, name: str) -> Array:
        """The covariance over the random scalars of all entries of an output."""
        entries = self.values[name].ravel()
        mean = self.mean(name).ravel()
        out = np.empty((len(entries), len(entries)), dtype=object)
        for i, j in product(range(len(entries)), repeat=2):
            out[i, j] = out[j, i] if j < i else self.wick.average(entries[i] * entries[j]) - mean[i] * mean[j]
        return out


def evaluate_formally(
    program: Program,
    *,
    variances: Mapping[str, Number] | None = None,
    data: Mapping[str, Array] | None = None,
    constants: Mapping[Node, Sequence[Number]] | None = None,
    number: Callable[[float | Fraction], Number] = recognised,
    zero: frozenset[Node] = frozenset(),
    dot: bool = True,
    integral: Integral | None = None,
) -> Formal:
    """The limits of all outputs.

    ``variances`` of initial values by name replace the squares of the floats in their laws, ``data`` the tensors of the
    program, ``constants`` its numbers (those of sums and constants, by node). ``number`` turns any other float or
    fraction of the program into a number; ``zero`` are random scalars taken to be zero;
    ``dot=False`` drops the response terms, which is wrong, and shows what they contribute; ``integral`` replaces the
    float64 quadrature of expectations that are not exact.
    Raises EvaluationError for what is not polynomial (functions of Gaussian vectors excepted).
    """
    run = _Run(program, variances or {}, data or {}, constants or {}, number, zero, dot, integral)
    for node in program.nodes:
        if node.kind != "matrix":
            try:
                run.values[node] = run.value(node)
            except EvaluationError as error:
                where = error.where or program.origins.get(node)
                raise EvaluationError(error.what, where=where, advice=error.advice) from error
    out = {}
    for name, output in program.outputs.items():
        shape = tuple(1 if isinstance(d, Width) else d for d in output.shape)
        value = np.zeros(shape, dtype=object) if output.limit is None else run.values[output.limit]
        out[name] = value.reshape(shape)
    return Formal(out, run.wick)


class _Run:
    def __init__(
        self,
        program: Program,
        variances: Mapping[str, Number],
        data: Mapping[str, Array],
        constants: Mapping[Node, Sequence[Number]],
        number: Callable[[float | Fraction], Number],
        zero: frozenset[Node],
        dot: bool,
        integral: Integral | None,
    ) -> None:
        self.program = program
        self.variances = variances
        self.data = data
        self.constants = constants
        self.number = number
        self.zero = zero
        self.dot = dot
        self.wick = Wick(integral=integral)
        self.parity = Parity()
        self.sums: list[tuple[Node, Domain]] = []  # Gaussian sums so far
        self.products: dict[Any, list[tuple[int, Polynomial]]] = {}  # by side: generator of W y, and y
        self.values: dict[Node, Array] = {}

    def value(self, node: Node) -> Array:
        op = node.op
        x = [self.values[y] for y in node.operands if y.kind != "matrix"]
        match op:
            case Data(name=name):
                return self.data[name] if name in self.data else self._data(name)
            case Const(value=value):
                return _array(self.constants.get(node) or [self.number(value)], ())
            case Init():
                return self._initial(node, op)
            case MatMul(transpose=transpose):
                return self._matmul(node, x[0], transpose)
            case Map():
                return _each(lambda v: self._map(op, v), x[0])
            case Sum(coefficients=cs):
                numbers = self.constants.get(node) or [self.number(c) for c in cs]
                return reduce(_add, [_whole(v * c) for c, v in zip(numbers, x, strict=True)])
            case Mul():
                return reduce(_multiply, x)
            case Gaussian():
                return self._gaussian(node, op.spec, x)
            case Contract(spec=spec):
                averaged = op.contracted_width(tuple(y.dims for y in node.operands)) is not None
                return _einstein(spec, x, self._expected if averaged else _product)
            case Finite():
                return self._finite(op, x)
        return _moved(op, x, node)

    @cached_property
    def domains(self) -> Domains:
        return find_domains(self.program)

    # leaves --------------------------------------------------------------------------------

    def _data(self, name: str) -> Array:
        tensor = self.program.data[name]
        if not tensor.is_floating_point():
            return tensor.numpy()
        eps = torch.finfo(tensor.dtype).eps
        exact = self.number if eps < 1e-15 else lambda v: self.number(float(recognised(v, eps)))
        return _array([exact(float(v)) for v in tensor.double().flatten()], tuple(tensor.shape))

    def _initial(self, node: Node, op: Init) -> Array:
        shape = tuple(_size(d) for d in node.dims)
        if node in self.zero:
            return np.zeros(shape, dtype=object)
        scalar = node.kind == "scalar"
        return _array([self._entry(op.name, op.law, scalar) for _ in range(math.prod(shape))], shape)

    def _entry(self, name: str, law: Law, scalar: bool) -> Polynomial:
        from scipy import stats

        match law:
            case Constant(value=value):
                return lifted(self.number(value))
            case Normal(std=std, mean=mean):
                variance = self.variances.get(name, self.number(std * std))
                return self.wick.fresh(Initial(variance=variance), scalar) + self.number(mean)
            case Uniform(low=low, high=high):
                a, b = self.number(low), self.number(high)

                def uniform(k: int) -> Number:
                    return sum((a**i * b ** (k - i) for i in range(k + 1)), 0 * a) * self.number(Fraction(1, k + 1))

                return self.wick.fresh(Initial(moment=uniform), scalar)
            case TruncatedNormal(std=std, low=low, high=high, mean=mean):
                of = stats.truncnorm((low - mean) / std, (high - mean) / std, loc=mean, scale=std)
                return self.wick.fresh(Initial(moment=lambda k: float(of.moment(k))), scalar)
        raise EvaluationError(f"the entries of an initial vector of law {law} are not independent")

    # instructions --------------------------------------------------------------------------

    def _matmul(self, node: Node, x: Array, transpose: bool) -> Array:
        """``Z = Ẑ + Ż``, with the derivatives of Ż taken formally (theory, section 2)."""
        matrix, operand = node.operands
        assert isinstance(matrix.op, Init)
        assert isinstance(matrix.op.law, Normal)
        variance = self.variances.get(matrix.op.name, self.number(matrix.op.law.std**2))
        (ratio,) = (Fraction(d.ratio) for d in operand.dims if isinstance(d, Width))
        factor = variance * self.number(ratio)
        family = sum(isinstance(d, int) for d in matrix.dims)
        out = np.empty(x.shape, dtype=object)
        for place in np.ndindex(x.shape):
            p = lifted(x[place])
            key, opposite = ((matrix, place[:family], t) for t in (transpose, not transpose))
            new = self.wick.fresh(Product(key, factor, p))
            (generator,) = next(iter(new.terms))
            total = new
            if self.dot:
                reached = self.wick.reach(p)
                for g, y in self.products.get(opposite, []):
                    if g in reached:
                        slope = self.wick.mean(self.wick.derivative(p, g))
                        total = total + y * slope * factor if slope != 0 else total
            self.products.setdefault(key, []).append((generator, p))
            out[place] = total
        return out

    def _map(self, op: Map, x: Polynomial | Number) -> Polynomial | Number:
        found = coefficients(op.fn, op.order, op.params)
        if found is not None:
            total: Any = 0
            for c in reversed(found):
                total = total * x + self.number(c)
            return total
        if isinstance(x, Polynomial):
            return self.wick.atom(op.fn, op.order, op.params, x)
        return float(nonlin.evaluate(op.fn, as_tensor(_array([x], ())), op.order, **dict(op.params)))

    def _gaussian(self, node: Node, spec: str, x: Sequence[Array]) -> Array:
        """Sums over the width whose summands have mean zero, one generator each."""
        summands = _einstein(spec, x, _product)
        if node in self.zero:
            return np.zeros(summands.shape, dtype=object)
        if any(
            isinstance(psi, Polynomial) and not self.wick.scalars.isdisjoint(psi.generators()) for psi in summands.flat
        ):
            raise EvaluationError("the law of a random number depends on earlier ones: it has no exact evaluation")
        domain = self.domains.of[next(y for y in node.operands if y.kind == "vector")]
        check_centred(node)
        for other, axis in self.sums:
            check_settled(node, other, domain, axis, self.parity)
        check_settled(node, node, domain, domain, self.parity)
        self.sums.append((node, domain))
        return _each(lambda psi: self.wick.fresh(GaussianSum(lifted(psi), domain.group), scalar=True), summands)

    def _expected(self, factors: Sequence[Polynomial | Number]) -> Number:
        """The expectation of a product, given the random scalars."""
        number: Number = 1
        moving: list[Polynomial] = []
        for f in factors:
            if isinstance(f, Polynomial):
                moving.append(f)
            else:
                number = number * f
        if number == 0:
            return 0
        if len(moving) < 2:
            return self.wick.mean(moving[0]) * number if moving else number
        first = moving[0]
        for f in moving[1:-1]:
            first = first * f
        return self.wick.inner(first, moving[-1]) * number

    def _finite(self, op: Finite, x: Sequence[Array]) -> Array:
        name = op.target.split(".")[1]
        rule = _FINITE.get(name)
        if rule is not None and not op.kwargs:
            decoded = [x[a[1]] if isinstance(a, tuple) and a[:1] == ("%",) else a for a in op.args]
            found = rule(self, *decoded)
            if found is not None:
                return np.asarray(found, dtype=object).reshape(op.shape)
        try:
            value = execute(op, [as_tensor(v) for v in x], op.shape, lambda _: 1, torch.float64)
        except TypeError as error:
            raise EvaluationError(f"{op.target} is no polynomial of the symbols") from error
        return _array(value.double().flatten().tolist(), tuple(value.shape))


def _einstein(spec: str, x: Sequence[Array], term: Callable[[Sequence[Any]], Any]) -> Array:
    """An Einstein sum of arrays, ``term`` of the factors for their product."""
    inputs, out = split_spec(spec)
    sizes = {a: s for word, v in zip(inputs, x, strict=True) for a, s in zip(word, v.shape, strict=True)}
    summed = [a for a in sizes if a not in out]
    result = np.empty(tuple(sizes[a] for a in out), dtype=object)
    for place in np.ndindex(result.shape):
        at = dict(zip(out, place, strict=True))
        total: Any = 0
        for inner in product(*(range(sizes[a]) for a in summed)):
            at.update(zip(summed, inner, strict=True))
            total = total + term([v[tuple(at[a] for a in word)] for word, v in zip(inputs, x, strict=True)])
        result[place] = total
    return result


def _product(factors: Sequence[Any]) -> Any:
    return math.prod(factors[1:], start=factors[0])


def _mse(run: _Run, x: Array, y: Array, reduction: int = 1) -> Array | None:
    square = (x - y) * (x - y)
    if reduction == 0:
        return square
    return square.sum() * (run.number(Fraction(1, square.size)) if reduction == 1 else 1)


def _mse_backward(run: _Run, grad: Array, x: Array, y: Array, reduction: int) -> Array:
    scale = Fraction(2, x.size) if reduction == 1 else Fraction(2)
    return (x - y) * grad * run.number(scale)


def _mean(run: _Run, x: Array, dims: Sequence[int] | None = None, keep: bool = False) -> Array:
    axes = tuple(range(x.ndim)) if not dims else tuple(dims)
    count = math.prod(x.shape[a] for a in axes)
    return x.sum(axis=axes, keepdims=keep) * run.number(Fraction(1, count))


def _sum(run: _Run, x: Array, dims: Sequence[int] | None = None, keep: bool = False) -> Array:
    return x.sum(axis=tuple(range(x.ndim)) if not dims else tuple(dims), keepdims=keep)


_FINITE: dict[str, Callable[..., Array | None]] = {
    "mse_loss": _mse,
    "mse_loss_backward": _mse_backward,
    "mean": _mean,
    "sum": _sum,
    "neg": lambda run, x: -x,
}


def _moved(op: Any, x: Sequence[Array], node: Node) -> Array:
    """Instructions that move entries."""
    shape = tuple(_size(d) for d in node.dims)
    match op:
        case Concat(axis=axis):
            return np.concatenate(x, axis)
        case View():
            return x[0].reshape(shape)
        case Permute(order=order):
            return x[0].transpose(order)
        case Expand():
            return np.broadcast_to(x[0], shape)
        case Slice(axis=axis, start=start, stop=stop, step=step):
            return x[0][(slice(None),) * axis + (slice(start, stop, step),)]
        case Unslice(axis=axis, start=start, stop=stop, step=step):
            out = np.zeros(shape, dtype=object)
            out[(slice(None),) * axis + (slice(start, stop, step),)] = x[0]
            return out
        case Gather(axis=axis):
            padded = np.concatenate([x[0], np.zeros_like(np.take(x[0], [0], axis))], axis)  # -1 is the zero behind
            return np.take(padded, x[1].astype(int), axis)
        case Scatter(axis=axis, size=size, rank=rank):
            rows = x[0].reshape(*x[0].shape[:axis], -1, *x[0].shape[axis + rank :])
            out = np.zeros((*rows.shape[:axis], size, *rows.shape[axis + 1 :]), dtype=object)
            for i, at in enumerate(x[1].astype(int).ravel()):
                if at >= 0:
                    into = (slice(None),) * axis
                    out[(*into, at)] = out[(*into, at)] + rows[(*into, i)]
            return out
    raise EvaluationError(f"the instruction '{op.mnemonic}' has no exact evaluation over polynomials")


def _whole(x: Any) -> Array:
    """An object array; of arrays without axes, operations give their entry."""
    if isinstance(x, np.ndarray):
        return x
    out = np.empty((), dtype=object)
    out[()] = x
    return out


def _add(x: Array, y: Array) -> Array:
    return _whole(x + y)


def _multiply(x: Array, y: Array) -> Array:
    return _whole(x * y)


def _size(d: Any) -> int:
    return 1 if isinstance(d, Width) else d


def _array(entries: Sequence[Any], shape: tuple[int, ...]) -> Array:
    out = np.empty(len(entries), dtype=object)
    out[:] = entries
    return out.reshape(shape)


def _each(fn: Callable[[Any], Any], x: Array) -> Array:
    return _array([fn(v) for v in x.ravel()], x.shape)


def as_tensor(x: Array) -> torch.Tensor:
    """An array of numbers as float64; TypeError for symbols."""
    return torch.tensor([float(v) for v in x.ravel()], dtype=torch.float64).reshape(x.shape)
