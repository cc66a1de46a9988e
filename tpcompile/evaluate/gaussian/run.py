"""Evaluation of planned expectations on a block of pairs of inputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpcompile.analysis.semantics import execute
from tpcompile.errors import EvaluationError
from tpcompile.evaluate import duals
from tpcompile.evaluate.gaussian import products
from tpcompile.evaluate.gaussian.initial import InitialArray, evaluate_initial
from tpcompile.evaluate.gaussian.moments import Moments
from tpcompile.evaluate.gaussian.order import Order, PairKey, order, pair_key
from tpcompile.evaluate.gaussian.radial import Tilt, TiltArray, TiltedCovariance
from tpcompile.evaluate.gaussian.reads import ReadArray, evaluate_read
from tpcompile.evaluate.gaussian.sampled import SampledArray, evaluate_sampled
from tpcompile.evaluate.gaussian.terms import (
    Array,
    DualArray,
    EyeArray,
    GatherArray,
    IntegralArray,
    OneHotArray,
    ReshapeArray,
    ScalarArray,
    SingleArray,
    SumArray,
    Term,
    VarianceArray,
    resolved,
)
from tpcompile.evaluate.gaussian.tilted import Solved, integrate, solve
from tpcompile.ir import Contract, Data, Node, Sum, Width

_PAIR = "YZ"  # letters of the two pair axes in an Einstein sum
_LETTERS = "abcdefghijklmnopqrstuvwxABCDEFGHIJKLMNOPQRSTUVWX"


class Run:
    """Arrays on one block: inputs of the two copies, each ``(N, *input shape)``.

    ``variances`` replaces the variances of initial values by name (numbers or tensors that require grad), ``known``
    are values of arrays.
    """

    def __init__(
        self,
        moments: Moments,
        inputs: tuple[Tensor, Tensor],
        dtype: torch.dtype,
        variances: Mapping[str, Tensor | float] | None = None,
        scalars: dict[Any, Tensor] | None = None,
        samples: int = 16384,
        seed: int = 0,
        known: Mapping[Array, Tensor] | None = None,
    ) -> None:
        self.moments = moments
        self.inputs = inputs
        self.dtype = dtype
        self.variances = variances or {}
        self.samples = samples
        self.seed = seed
        self.values: dict[Array, Tensor] = {}
        self.known: Mapping[Array, Tensor] = {} if known is None else known
        self.pairs: dict[PairKey, duals.Pair] = {}
        self.scalars: dict[Any, Tensor] = {} if scalars is None else scalars
        self.left: dict[Array, int] = {}
        self.open: dict[PairKey, int] = {}
        self.tilts: dict[Tilt, Solved] = {}

    def evaluate(self, arrays: Sequence[Array | None], plan: Order | None = None) -> list[Tensor | None]:
        """Values of arrays, shape ``(N1 or 1, N2 or 1, *sizes)``; None is zero. ``plan`` may give their order."""
        wanted = [a for a in arrays if a is not None]
        plan = plan or order(wanted, self.known)
        self.left, self.open = dict(plan.reads), dict(plan.duals)
        for array in plan.first:
            if array not in self.values:
                self.values[array] = self._value(array)
        return [None if a is None else self.value(a) for a in arrays]

    def value(self, array: Array) -> Tensor:
        """The value of one array; it is dropped after its last use."""
        if array in self.known:
            return self.known[array]
        found = self.values.get(array)
        if found is None:
            found = self._value(array)
            if self.left.get(array, 0) > 1:
                self.values[array] = found
        left = self.left.get(array, 0) - 1
        self.left[array] = left
        if left <= 0:
            self.values.pop(array, None)
        return found

    def _value(self, array: Array) -> Tensor:
        match array:
            case SumArray():
                return self._sum(array)
            case DualArray():
                return self._dual(array)
            case SingleArray(of=of, var=var, mean=mean):
                centre = None if mean is None else self.value(mean)
                at = self.value(var)
                return of.diagonal(at, centre) if isinstance(of, duals.Dual) else of(at, centre)
            case ScalarArray(node=node, copy=copy):
                value = self.scalar(node, copy)
                return _on_pair(value.reshape(value.shape[0], *array.sizes), copy)
            case VarianceArray(name=name, value=value):
                given = self.variances.get(name, value)
                return torch.as_tensor(given, dtype=self.dtype).reshape(1, 1)
            case EyeArray(sizes=sizes):
                return torch.eye(*sizes, dtype=self.dtype)[None, None]
            case ReshapeArray():
                return self._reshape(array)
            case GatherArray():
                return self._gather(array)
            case ReadArray():
                return evaluate_read(array, self.value(array.source))
            case OneHotArray(index=index, copy=copy, sizes=sizes):
                places = self._index(index, copy)
                hot = places[..., None] == torch.arange(sizes[-1])
                return _on_pair(hot.reshape(-1, *sizes).to(self.dtype), copy)
            case IntegralArray():
                return self._integral(array)
            case SampledArray():
                return evaluate_sampled(self, array)
            case InitialArray():
                return evaluate_initial(self, array)
            case TiltArray():
                return integrate(self, array)
            case TiltedCovariance(tilt=tilt, places=places):
                found = solve(self, tilt).covariances[places].to(self.dtype)
                return found.reshape(*found.shape[:2], *array.sizes)
        raise EvaluationError(f"no evaluation of {type(array).__name__}")

    # sums ----------------------------------------------------------------------------------

    def _sum(self, array: SumArray) -> Tensor:
        total: Tensor | None = None
        constant: Any = 0.0
        owned = False  # whether the total is a tensor of this sum alone
        for term in array.terms:
            coefficient, factors = self._factors(term, array)
            if not factors:
                constant = constant + coefficient
                continue
            if total is None and isinstance(constant, float) and constant:
                total, constant = self._number(constant, len(array.out)), 0.0
            total, owned = products.added(total, owned, coefficient, factors)
        if total is None:
            return self._number(constant, len(array.out))
        if isinstance(constant, float) and not constant:
            return total
        return total.add_(constant) if owned and isinstance(constant, float) else total + constant

    def _number(self, value: Any, axes: int) -> Tensor:
        return torch.as_tensor(value, dtype=self.dtype).reshape((1,) * (2 + axes))

    def _factors(self, term: Term, array: SumArray) -> tuple[Any, list[Tensor]]:
        """A term as a number (a tensor where that requires grad) and factors over the labels of the sum."""
        uses, times = resolved(term, array)
        out = array.out
        coefficient: Any = term.coefficient * times
        factors: list[tuple[Tensor, tuple[int, ...]]] = []
        for a, labels in uses:
            if isinstance(a, VarianceArray) and not isinstance(self.variances.get(a.name), Tensor):
                coefficient = coefficient * self.variances.get(a.name, a.value)
                continue
            value, labels = products.diagonal(self.value(a), labels)
            if not labels and value.numel() == 1:
                coefficient = coefficient * (value.reshape(()) if value.requires_grad else float(value))
            else:
                factors.append((value, labels))
        summed = {x for _, labels in factors for x in labels} - set(out)
        carried = {x for v, labels in factors for x, size in zip(labels, v.shape[2:], strict=True) if size > 1}
        coefficient = coefficient * math.prod(array.lengths[x] for x in summed - carried)
        if summed:
            return coefficient, [self._einsum(factors, out)]
        return coefficient, [products.aligned(x, labels, out) for x, labels in factors]

    def _einsum(self, factors: Sequence[tuple[Tensor, tuple[int, ...]]], out: tuple[int, ...]) -> Tensor:
        found = products.short(factors, out)
        if found is not None:
            return found
        names: dict[int, str] = {}
        for _, labels in factors:
            for x in labels:
                names.setdefault(x, _LETTERS[len(names)])
        words = [_PAIR + "".join(names[x] for x in labels) for _, labels in factors]
        target = _PAIR + "".join(names[x] for x in out if x in names)
        value = torch.einsum(",".join(words) + "->" + target, *(x for x, _ in factors))
        return products.aligned(value, tuple(x for x in out if x in names), out)

    # expectations --------------------------------------------------------------------------

    def _dual(self, array: DualArray) -> Tensor:
        key = pair_key(array)
        if key is not None:
            pair = self.pairs.get(key)
            if pair is None:
                pair = self.pairs[key] = duals.Pair(*(self.value(x) for x in key))
            self.open[key] = self.open.get(key, 1) - 1
            if self.open[key] <= 0:
                del self.pairs[key]
            return array.dual(pair)
        means = [None if x is None else self.value(x) for x in (array.mean_u, array.mean_v)]
        return array.dual(self.value(array.cov), self.value(array.var_u), self.value(array.var_v), *means)

    def _integral(self, array: IntegralArray) -> Tensor:
        rows = [[self.value(x) for x in row] for row in array.covariances]
        means = [None if x is None else self.value(x) for x in array.means]
        shape = np.broadcast_shapes(*(x.shape for row in rows for x in row))
        cov = torch.stack([torch.stack([x.expand(shape) for x in row], -1) for row in rows], -2)
        zero = torch.zeros(shape, dtype=self.dtype)
        mean = torch.stack([zero if x is None else x.expand(shape) for x in means], -1)
        variables = array.integrand.variables

        def integrand(*values: Tensor) -> Tensor:
            return array.integrand(dict(zip(variables, values, strict=True)))

        value, error = duals.integral(integrand, cov, mean, kinks=array.integrand.kinks())
        self.moments.found_error(array.form, error)
        return value

    # finite axes ---------------------------------------------------------------------------

    def _reshape(self, array: ReshapeArray) -> Tensor:
        value = self.value(array.source)
        kept = value.dim() - len(array.before)
        full = value.expand(*value.shape[:kept], *array.before)
        return full.reshape(*value.shape[:kept], *array.sizes[kept - 2 :])

    def _gather(self, array: GatherArray) -> Tensor:
        source = self.value(array.source)
        index = self._index(array.index, array.copy)
        places = array.sizes[array.axis : array.axis + len(array.sizes) - len(array.source.sizes) + 1]
        index = index.reshape(index.shape[0], -1)
        axis = array.axis + 2
        masked = bool((index < 0).any())
        at = index.clamp(min=0)
        if source.shape[axis] == 1:
            at = torch.zeros_like(at)
        if at.shape[0] == 1:
            value = source.index_select(axis, at[0])
        else:
            value = torch.take_along_dim(source, self._placed(at, array.copy, axis, source.dim()), axis)
        if masked:
            value = value * self._placed((index >= 0).to(value.dtype), array.copy, axis, source.dim())
        return value.reshape(*value.shape[:axis], *places, *value.shape[axis + 1 :])

    @staticmethod
    def _placed(x: Tensor, copy: int, axis: int, rank: int) -> Tensor:
        shape = [1] * rank
        shape[copy], shape[axis] = x.shape
        return x.reshape(shape)

    def _index(self, index: Node | Tensor, copy: int) -> Tensor:
        """An index array as ``(N or 1, ...)``."""
        return index[None] if isinstance(index, Tensor) else self.scalar(index, copy)

    # scalars -------------------------------------------------------------------------------

    def scalar(self, node: Node, copy: int) -> Tensor:
        """A deterministic scalar on all inputs of a copy, ``(N, *dims)``; N is 1 where it does not depend on them."""
        if not self.moments.varies(node) or self.inputs[0] is self.inputs[1]:
            copy = 0
        key = (node, copy)
        if key not in self.scalars:
            self.scalars[key] = self._scalar(node, copy)
        return self.scalars[key]

    def _scalar(self, node: Node, copy: int) -> Tensor:
        op = node.op
        if isinstance(op, Data):
            if op.name == self.moments.input_name:
                x = self.inputs[copy]
                return self._cast(x).reshape(x.shape[0], *op.shape)
            return self._cast(self.moments.program.data[op.name])[None]
        if isinstance(op, Contract) and op.contracted_width(tuple(x.dims for x in node.operands)) is not None:
            return self._moment(node, copy)
        operands = [self.scalar(x, copy) for x in node.operands]
        return batched(node, operands, self.dtype)

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.dtype) if x.is_floating_point() else x

    def _moment(self, node: Node, copy: int) -> Tensor:
        """A moment of the program on one copy: a planned expectation without the other."""
        array, labels = self.moments.scalar_moment(node, copy)
        sizes = tuple(d for d in node.dims if isinstance(d, int))
        if array is None:
            return torch.zeros((1, *sizes), dtype=self.dtype)
        inner = Run(
            self.moments, self.inputs, self.dtype, self.variances, self.scalars, samples=self.samples, seed=self.seed
        )
        (value,) = inner.evaluate([array])
        assert value is not None
        value = value.expand(*value.shape[:2], *(self.moments.lengths[x] for x in labels))
        value = value[:, 0] if copy == 0 else value[0]
        return value.reshape(-1, *sizes)


def batched(node: Node, operands: Sequence[Tensor], dtype: torch.dtype, length: int = 0) -> Tensor:
    """An instruction with a batch axis in front of every operand; batch axes of length 1 broadcast.

    ``length`` is that of width axes, where there are any.
    """
    width: Callable[[Width], int] = lambda _: length
    count = max((x.shape[0] for x in operands), default=1)
    if count == 1:
        return execute(node.op, [x[0] for x in operands], node.dims, width, dtype)[None]
    if isinstance(node.op, Sum):  # in place elsewhere, which vmap does not allow
        terms = zip(node.op.coefficients, operands, strict=True)
        rank = len(node.dims)
        return sum(c * x.reshape(x.shape[0], *([1] * (rank + 1 - x.dim())), *x.shape[1:]) for c, x in terms)  # type: ignore[return-value]
    dims = tuple(0 if x.shape[0] == count else None for x in operands)
    values = [x if d == 0 else x[0] for x, d in zip(operands, dims, strict=True)]

    def one(*x: Tensor) -> Tensor:
        return execute(node.op, list(x), node.dims, width, dtype)

    return torch.vmap(one, dims)(*values)


def _on_pair(x: Tensor, copy: int) -> Tensor:
    return x.unsqueeze(1) if copy == 0 else x.unsqueeze(0)
