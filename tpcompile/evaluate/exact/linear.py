"""Linear programs: every vector is a row of coefficients of orthonormal generators (:mod:`.generators`).

A vector keeps its finite axes; its width axis holds the coefficients. Of length 1 it stands for a vector that is
constant over its coordinates, so that products with constants broadcast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tpcompile.analysis.semantics import contract, execute
from tpcompile.errors import EvaluationError
from tpcompile.evaluate.domains import Domain, finite_size
from tpcompile.evaluate.exact.degrees import Degrees, coefficients
from tpcompile.evaluate.exact.generators import Generators, LinearMap, Side, form_covariance, padded
from tpcompile.evaluate.exact.histories import Accumulated, Pairing, find_pairs
from tpcompile.evaluate.plan import Evaluation, Plan
from tpcompile.ir import (
    Concat,
    Contract,
    Data,
    Gaussian,
    Init,
    Map,
    MatMul,
    Node,
    Sum,
    Width,
    split_spec,
    width_positions,
)
from tpcompile.laws import Normal, mean_and_std


class LinearRun(Evaluation):
    """One exact evaluation of a linear program, in float64.

    ``once`` says that there is a single member of the ensemble, where all random scalars are zero for example.
    """

    def __init__(self, plan: Plan, degrees: Degrees, dot: bool = True, once: bool = False) -> None:
        super().__init__(plan, torch.float64, seed=0)
        self.degrees = degrees
        self.generators = {d: Generators() for d in plan.domains.all()}
        # with an ensemble a history may be continued more than once, from several beginnings
        pairing = find_pairs(plan) if once or not plan.scalars else Pairing({}, {}, {})
        self.accumulated = Accumulated(pairing)
        self.matrices: dict[tuple[Node, int], LinearMap] = {}
        for matrix, domains in plan.domains.sides.items():
            assert isinstance(matrix.op, Init)
            assert isinstance(matrix.op.law, Normal)
            ratios = [float(d.ratio) for d in matrix.dims if isinstance(d, Width)]
            for f in range(finite_size(matrix)):  # one for each index of its finite axes
                out, into = (Side(self.generators[d], r) for d, r in zip(domains, ratios, strict=True))
                self.matrices[matrix, f] = LinearMap(matrix.op.law.std, out, into, dot)

    def value(self, node: Node) -> Tensor:
        op, pairing = node.op, self.accumulated.pairing
        match op:
            case Contract() if node in pairing.products:
                return self.accumulated.product(node, self.values)
            case Contract() if node in pairing.inner:
                return self.values[pairing.inner[node]]
            case Concat() if node in pairing.histories:
                self.accumulated.extend(node, self.values)
                return torch.empty(0)
            case Data(name=name):
                tensor = self.plan.program.data[name]
                return tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            case Init():
                return self._initial(node)
            case MatMul(transpose=transpose):
                matrix, x = node.operands
                rows = self._rows(x).chunk(finite_size(matrix))
                products = [self.matrices[matrix, f].product(part, transpose) for f, part in enumerate(rows)]
                longest = max(p.shape[1] for p in products)
                return self._placed(torch.cat([padded(p, longest) for p in products]), node)
            case Gaussian():
                raise EvaluationError("a Gaussian scalar outside an ensemble")
            case Contract():
                return self._contract(node)
            case Sum() | Concat() if node.kind == "vector":
                return self._execute(node, self._aligned(node))
            case Map() if self.degrees.vectors.get(node.operands[0]):
                return self._affine(node)
            case _:
                return self._execute(node, [self.values[x] for x in node.operands])

    # instructions --------------------------------------------------------------------------

    def _execute(self, node: Node, operands: Sequence[Tensor]) -> Tensor:
        vectors = [x.shape[_axis(n)] for n, x in zip(node.operands, operands, strict=False) if n.kind == "vector"]
        count = max(vectors, default=1)  # a scalar that becomes a vector is constant
        return execute(node.op, operands, node.dims, lambda _: count, self.dtype)

    def _initial(self, node: Node) -> Tensor:
        assert isinstance(node.op, Init)
        mean, std = mean_and_std(node.op.law)
        entries = finite_size(node)
        if std == 0.0:
            return self._placed(torch.full((entries, 1), mean, dtype=self.dtype), node)
        generators = self.generators[self.plan.domains.of[node]]
        fresh = generators.fresh(entries, node.op.law)
        rows = torch.zeros((entries, generators.count), dtype=self.dtype)
        rows[:, 0] = mean
        rows[torch.arange(entries), list(fresh)] = std
        return self._placed(rows, node)

    def _aligned(self, node: Node) -> list[Tensor]:
        """Operands of a sum or concatenation with equally many coefficients; numbers on the constant."""
        position = _axis(node) - len(node.dims)
        values = []
        for x in node.operands:
            value = self.values[x]
            if x.kind == "scalar":
                value = value.reshape((1,) * (-position - value.ndim) + tuple(value.shape))
            values.append(value)
        longest = max(v.shape[position] for v in values)
        return [padded(v, longest, position) for v in values]

    def _affine(self, node: Node) -> Tensor:
        """A pointwise ``a + b x``."""
        assert isinstance(node.op, Map)
        x, axis = self.values[node.operands[0]], _axis(node)
        a, b = map(float, (*(coefficients(node.op.fn, node.op.order, node.op.params) or ()), 0, 0)[:2])
        if not b:
            return torch.full_like(x.narrow(axis, 0, 1), a)
        out = x * b
        out.narrow(axis, 0, 1).add_(a)
        return out

    def _contract(self, node: Node) -> Tensor:
        """An Einstein sum; over the width it is the inner product of two vectors, or the mean of one."""
        assert isinstance(node.op, Contract)
        inputs, out = split_spec(node.op.spec)
        averaged = node.op.contracted_width(tuple(x.dims for x in node.operands)) is not None
        moving = [x for x in node.operands if x.kind == "vector" and self.degrees.vectors[x]]
        constant = not averaged and node.kind == "vector" and not moving
        words, values = [], []
        shortest = min((self.values[x].shape[_axis(x)] for x in moving), default=1)
        for letters, x in zip(inputs, node.operands, strict=True):
            value = self.values[x]
            if x.kind == "vector":
                axis = _axis(x)
                if constant:
                    constant = False  # the first of constant vectors keeps the axis
                elif len(moving) == 2 and x in moving:
                    value = value.narrow(axis, 0, shortest)
                elif averaged or x not in moving:
                    value = value.select(axis, 0)
                    letters = letters[:axis] + letters[axis + 1 :]
            words.append(letters)
            values.append(value)
        return contract(",".join(words) + "->" + out, values)

    # rows ----------------------------------------------------------------------------------

    def _rows(self, node: Node) -> Tensor:
        """Rows of a vector, shape (finite entries, coefficients)."""
        x = torch.movedim(self.values[node], _axis(node), -1)
        return x.reshape(-1, x.shape[-1])

    def _placed(self, rows: Tensor, node: Node) -> Tensor:
        finite = [d for d in node.dims if isinstance(d, int)]
        return torch.movedim(rows.reshape(*finite, rows.shape[-1]), -1, _axis(node))

    # ensembles -----------------------------------------------------------------------------

    def summand(self, node: Node) -> Tensor:
        """A quadratic form of the generators for each entry, shape (entries, K, K), symmetric."""
        assert isinstance(node.op, Gaussian)
        inputs, out = split_spec(node.op.spec)
        vectors = [x for x in node.operands if x.kind == "vector"]
        count = self.generators[self.plan.domains.of[vectors[0]]].count
        sides = iter("YZ")
        words, values, used = [], [], ""
        for letters, x in zip(inputs, node.operands, strict=True):
            value = self.values[x]
            if x.kind == "vector":
                axis = _axis(x)
                if self.degrees.vectors[x]:
                    side = next(sides)
                    used += side
                    value = padded(value, count, axis)
                    letters = letters[:axis] + side + letters[axis + 1 :]
                else:
                    value = value.select(axis, 0)
                    letters = letters[:axis] + letters[axis + 1 :]
            words.append(letters)
            values.append(value)
        form = torch.einsum(",".join(words) + "->" + out + used, *values).reshape(-1, *([count] * len(used)))
        if len(used) == 1:  # a sum of one vector: its product with the constant
            form = torch.cat([form[:, None], form.new_zeros((form.shape[0], count - 1, count))], 1)
        return (form + form.mT) / 2

    def covariance(self, first: Tensor, second: Tensor, domain: Domain) -> Tensor:
        return form_covariance(first, second, self.generators[domain])

    def mark(self) -> Any:
        sides = [(s.basis.count, len(s.brought)) for s in self._sides()]
        return [g.count for g in self.generators.values()], sides

    def rewind(self, marks: Any) -> None:
        for generators, count in zip(self.generators.values(), marks[0], strict=True):
            generators.truncate(count)
        for side, (rows, brought) in zip(self._sides(), marks[1], strict=True):
            side.basis.truncate(rows)
            del side.brought[brought:]

    def _sides(self) -> list[Side]:
        return [side for m in self.matrices.values() for side in (m.out, m.into)]


def _axis(node: Node) -> int:
    """Position of the width axis of a vector."""
    return width_positions(node.dims)[0]
