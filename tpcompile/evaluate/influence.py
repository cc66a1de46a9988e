"""Influence functions: how the outputs of a program at finite width move with the empirical law of its coordinates.

A network of width n is a function of independent coordinates through empirical means alone. For vectors this is how a
program reads; an initial matrix W with entries of variance s^2/n is no exception once it is revealed by its products.
Let ``<a, b>`` be the mean of ``a b`` over the coordinates of an axis, ``p_j`` orthonormal directions that W was
multiplied with (``f_j = W p_j``), ``q_k`` those of its transpose (``h_k = W^T q_k``). Given all products so far, that
with a new direction p is in law exactly

    W p = sum_k q_k <q_k, W p> + s (g - sum_k q_k <q_k, g>),     <q_k, W p> = <h_k, p>  (times the ratio of widths)

with g a fresh vector of independent standard normals (Lu, arXiv:2101.07464). In the limit ``<q_k, g>`` is zero, which
is the Master Theorem; its fluctuation of order n^(-1/2) is kept here.

So the outputs are ``T(mu_n)``, T a functional of the joint law mu of the coordinates of every width axis, mu_n their
empirical law. The coordinates of an axis are independent of each other and identically distributed, and where T is
differentiable the delta method (von Mises) gives

    sqrt(n) (T(mu_n) - T(mu)) -> N(0, sum over axes of E[I I^T] / ratio),      I = T'(mu)[delta_z - mu].

Particles stand for mu: I at a particle is the derivative with respect to its weight in all means, by reverse-mode
differentiation. Weights enter nothing but means, so that the fresh normals are constants. The derivative of a mean of a
function that jumps (relu in the backward pass) has the density at the jump in it, which is estimated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from tpcompile import nonlin
from tpcompile.analysis.semantics import execute
from tpcompile.errors import EvaluationError, UndeterminedLimitError
from tpcompile.evaluate.domains import Domain, finite_size
from tpcompile.evaluate.frames import Frame, Layout, Span
from tpcompile.evaluate.plan import Plan
from tpcompile.evaluate.points import Source
from tpcompile.ir import Contract, Data, Init, Map, MatMul, MergeWidth, Node, Outer, SplitWidth, Width, width_positions
from tpcompile.laws import Law, Orthogonal, ParameterLaw, Pieces, mean_and_std

DEPENDENT = 1e-9  # what is left of a row, relative to it, that is spanned by those before
JITTER = 1e-3  # of the weights: what vanishes at equal weights alone, with a direction of its own, is then seen
STEP = 1e-6  # to the sides of a kink
BATCH = 64  # outputs differentiated at once


@dataclass
class _Side:
    """What was multiplied from one side of a matrix, orthonormal, and the products; None before the first."""

    frame: Frame
    weights: Tensor  # of the particles, divided by their number
    ratio: float
    basis: Tensor | None = None  # (K, M) here
    products: Tensor | None = None  # (K, M) on the other side


@dataclass
class _Matrix:
    """An initial matrix, revealed by its products with their exact law at finite width."""

    std: float  # times the root of n
    out: _Side
    into: _Side

    def product(self, x: Tensor, transpose: bool) -> Tensor:
        """``W x``, or ``W^T x``, for rows of x."""
        here, there = (self.out, self.into) if transpose else (self.into, self.out)
        rest = x
        for _ in range(2):
            if here.basis is not None:
                rest = rest - ((rest * here.weights) @ here.basis.T) @ here.basis
        new = _independent(x.detach(), rest.detach(), here.weights.detach())
        if any(new):
            rest = rest[new]
            root = torch.linalg.cholesky((rest * here.weights) @ rest.T)
            fresh = torch.linalg.solve_triangular(root, rest, upper=False)
            product = self._revealed(fresh, here, there)
            here.basis = fresh if here.basis is None else torch.cat([here.basis, fresh])
            here.products = product if here.products is None else torch.cat([here.products, product])
        if here.basis is None or here.products is None:
            return x.new_zeros((x.shape[0], there.weights.shape[0]))
        return ((x * here.weights) @ here.basis.T) @ here.products

    def _revealed(self, directions: Tensor, here: _Side, there: _Side) -> Tensor:
        """Products with new orthonormal directions."""
        fresh = there.frame.normals(directions.shape[0])
        there.frame.segment(directions.shape[0]).append(fresh)
        scale = self.std * math.sqrt(here.ratio)
        if there.basis is None or there.products is None:
            return scale * fresh
        known = (here.ratio / there.ratio) * (directions * here.weights) @ there.products.T
        beside = (fresh * there.weights) @ there.basis.T
        return scale * fresh + (known - scale * beside) @ there.basis


def _independent(rows: Tensor, rest: Tensor, weights: Tensor) -> list[bool]:
    """Which of the rows add a direction to the basis that ``rest`` is orthogonal to, and to the rows before."""
    kept = rest.new_empty((0, rest.shape[1]))
    found = []
    for row, left in zip(rows, rest, strict=True):
        size = float((row.square() * weights).sum().sqrt())
        for _ in range(2):
            left = left - ((left * weights) @ kept.T) @ kept
        length = float((left.square() * weights).sum().sqrt())
        new = length > DEPENDENT * size
        found.append(new)
        if new:
            kept = torch.cat([kept, left[None] / length])
    return found


class Functional:
    """The outputs of a program lowered at ``width``, as a function of the weights of its particles."""

    def __init__(self, plan: Plan, laws: Mapping[str, ParameterLaw], width: int, particles: int, seed: int) -> None:
        self.plan, self.laws, self.width, self.particles = plan, laws, width, particles
        self.dtype = torch.float64
        generator = torch.Generator().manual_seed(seed)
        self.weights: dict[Domain, Tensor] = {}
        self.frames: dict[Domain, Frame] = {}
        for domain in plan.domains.all():
            source = Source(domain.rows, particles, (seed * 7919 + 104729 * domain.group + 1) % (2**31))
            self.frames[domain] = Frame(Layout(particles), Span(Layout(particles), self.dtype, source))
            moved = JITTER * torch.randn(particles, generator=generator, dtype=self.dtype)
            self.weights[domain] = ((1 + moved) / particles).requires_grad_()
        self.numbers: dict[Node, Tensor] = {}  # finite parameters that are drawn, in standard deviations
        self.matrices = {(m, f): self._matrix(m) for m in plan.domains.sides for f in range(finite_size(m))}
        self.values: dict[Node, Tensor] = {}
        with torch.enable_grad():
            for i, node in enumerate(plan.program.nodes):
                if node.kind != "matrix":
                    self.values[node] = self._value(node)
                for x in plan.done[i]:
                    self.values.pop(x, None)

    def output(self, name: str) -> Tensor:
        """The value of an output, flattened."""
        output = self.plan.program.outputs[name]
        shape = tuple(d for d in output.shape if isinstance(d, int))
        if output.limit is None:
            return torch.zeros(math.prod(shape), dtype=self.dtype)
        value = self.values[output.limit].reshape(-1)
        if not bool(torch.isfinite(value).all()):
            raise EvaluationError(
                f"'{name}' is not finite: the training diverges", advice="lower the learning rate or the steps"
            )
        return value

    def influences(self, outputs: Tensor) -> list[Tensor]:
        """Matrices A, a column for each output, whose ``A^T A`` add up to n times the covariance of the outputs."""
        domains = list(self.weights)
        leaves = [*self.weights.values(), *self.numbers.values()]
        rows: list[list[Tensor]] = [[] for _ in leaves]
        unit = torch.eye(outputs.numel(), dtype=self.dtype)
        for some in unit.split(BATCH):
            if not outputs.requires_grad:
                found: tuple[Tensor | None, ...] = (None,) * len(leaves)
            else:
                found = torch.autograd.grad(
                    outputs, leaves, some, retain_graph=True, allow_unused=True, is_grads_batched=True
                )
            for kept, g, leaf in zip(rows, found, leaves, strict=True):
                kept.append(torch.zeros((len(some), *leaf.shape), dtype=self.dtype) if g is None else g)
        gradients = [torch.cat(kept).reshape(outputs.numel(), -1) for kept in rows]
        parts = []
        for domain, g in zip(domains, gradients, strict=False):  # derivative by a weight 1/M: the influence itself
            parts.append((g - g.mean(1, keepdim=True)).T / math.sqrt(self.particles * domain.ratio))
        return parts + [math.sqrt(self.width) * g.T for g in gradients[len(domains) :]]

    # instructions --------------------------------------------------------------------------

    def _value(self, node: Node) -> Tensor:
        op = node.op
        x = [self.values[y] for y in node.operands if y.kind != "matrix"]
        match op:
            case Data(name=name):
                tensor = self.plan.program.data[name]
                return tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            case Init():
                return self._initial(node)
            case MatMul(transpose=transpose):
                matrix = node.operands[0]
                rows = self._rows(node.operands[1], x[0]).chunk(finite_size(matrix))
                products = [self.matrices[matrix, f].product(part, transpose) for f, part in enumerate(rows)]
                return self._placed(torch.cat(products), node)
            case Contract() if averaged := op.contracted_widths(tuple(y.dims for y in node.operands)):
                if len(averaged) > 1:
                    raise self._unsupported("a sum over two growing axes", node)
                at = next(i for i, y in enumerate(node.operands) if y.kind == "vector")
                operand = node.operands[at]
                (axis,) = width_positions(operand.dims)
                weights = self.weights[self.plan.domains.of[operand]]
                x[at] = x[at] * weights.reshape([-1 if i == axis else 1 for i in range(len(operand.dims))])
            case Map() if x[0].requires_grad:
                return execute(op, x, node.dims, lambda _: self.particles, self.dtype) + self._jumps(op, x[0], node)
            case SplitWidth() | MergeWidth() | Outer():
                raise self._unsupported(
                    "blocks of a growing axis" if not isinstance(op, Outer) else "functions of matrices", node
                )
        return execute(op, x, node.dims, lambda _: self.particles, self.dtype)

    def _jumps(self, op: Map, x: Tensor, node: Node) -> Tensor:
        """Zero, whose derivative is that of the jumps: a delta, as a kernel of fourth order as wide as M allows.

        The density of x at the jump is estimated; the bias is of the order of the fourth power of the bandwidth.
        """
        record, params = nonlin.lookup(op.fn), dict(op.params)
        everything = {**record.defaults, **params}
        jumps = torch.zeros_like(x)
        if op.order + 1 <= record.smoothness(**everything):
            return jumps
        if op.order > record.smoothness(**everything) or node.kind != "vector":
            raise self._unsupported(f"derivative {op.order} of {op.fn}", node)
        axis = width_positions(node.dims)[0]
        at = x.detach()
        bandwidth = at.std(axis, keepdim=True) * self.particles**-0.2
        for kink in record.kinks(**everything):
            sides = at.new_tensor([kink - STEP, kink + STEP])
            below, above = nonlin.evaluate(op.fn, sides, op.order, **params).tolist()
            if abs(above - below) > 10 * STEP:
                u = (at - kink) / bandwidth
                density = (3 - u.square()) / 2 * torch.exp(-u.square() / 2) / (math.sqrt(2 * math.pi) * bandwidth)
                jumps = jumps + (above - below) * density * (x - at)
        return jumps

    def _unsupported(self, what: str, node: Node) -> UndeterminedLimitError:
        return UndeterminedLimitError(
            f"the law of the deviation from the limit is not known for {what}",
            where=self.plan.program.origins.get(node),
            advice="compare simulate(width, seed) over seeds instead",
        )

    def _law(self, node: Node) -> tuple[Law, float]:
        """The law of an initial value, and its power of n as a number."""
        assert isinstance(node.op, Init)
        law = self.laws.get(node.op.name)
        if law is None or isinstance(law, Orthogonal | Pieces):
            kind = "orthogonal parameter" if isinstance(law, Orthogonal) else "parameter of several laws"
            raise self._unsupported(f"the {kind} '{node.op.name}'", node)
        return replace(law, width_exponent=type(law.width_exponent)(0)), self.width ** float(law.width_exponent)

    def _initial(self, node: Node) -> Tensor:
        law, power = self._law(node)
        if node.kind == "vector":
            return self._placed(power * self.frames[self.plan.domains.of[node]].draw(law, finite_size(node)), node)
        mean, std = mean_and_std(law)
        shape = [d for d in node.dims if isinstance(d, int)]
        self.numbers[node] = torch.zeros(shape, dtype=self.dtype, requires_grad=True)
        return power * (mean + std * self.numbers[node])

    def _matrix(self, node: Node) -> _Matrix:
        law, power = self._law(node)
        mean, std = mean_and_std(law)
        if mean != 0:
            raise self._unsupported("a matrix whose entries have a mean", node)
        ratios = [float(d.ratio) for d in node.dims if isinstance(d, Width)]
        out, into = (
            _Side(self.frames[d], self.weights[d], r)
            for d, r in zip(self.plan.domains.sides[node], ratios, strict=True)
        )
        return _Matrix(std * power * math.sqrt(self.width), out, into)

    def _rows(self, node: Node, x: Tensor) -> Tensor:
        return torch.movedim(x, width_positions(node.dims)[0], -1).reshape(-1, self.particles)

    def _placed(self, rows: Tensor, node: Node) -> Tensor:
        finite = [d for d in node.dims if isinstance(d, int)]
        return torch.movedim(rows.reshape(*finite, self.particles), -1, width_positions(node.dims)[0])
