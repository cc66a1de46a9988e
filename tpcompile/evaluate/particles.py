"""The particle evaluator: a program on M particles in place of coordinates (theory, section 6)."""

from __future__ import annotations

import torch
from torch import Tensor

from tpcompile.analysis.semantics import execute, shape
from tpcompile.errors import EvaluationError
from tpcompile.evaluate.buffers import Allocate, Arena
from tpcompile.evaluate.domains import Domain, finite_size
from tpcompile.evaluate.frames import Frame, Layout, LazyMatrix, Rows, Side, Span
from tpcompile.evaluate.plan import Evaluation, Plan
from tpcompile.evaluate.points import Source
from tpcompile.ir import Concat, Contract, Data, Gaussian, Init, Map, MatMul, Mul, Node, Op, Sum, Width, split_spec
from tpcompile.laws import Normal


class Run(Evaluation):
    """One evaluation on one set of particles.

    ``particles`` is the number of each domain that is no block of another and has none; in a group of domains the
    unit axis has as many. ``arena`` has the memory of large tensors; ``allocate`` makes those of bases, fresh normals
    and histories where these are to be elsewhere.
    """

    def __init__(
        self,
        plan: Plan,
        particles: int,
        dtype: torch.dtype,
        seed: int,
        part: int = 0,
        parts: int = 1,
        dot: bool = True,
        arena: Arena | None = None,
        allocate: Allocate | None = None,
    ) -> None:
        super().__init__(plan, dtype, seed)
        self.particles = particles
        self.part = part
        self.parts = parts
        self.dot = dot
        self.arena = Arena() if arena is None else arena
        self.allocate = self.arena.take if allocate is None else allocate
        self.spans: list[Span] = []
        self.frames = {d: f for group in self.plan.domains.groups() for d, f in self._frames(group).items()}
        # one for each index of a matrix's finite axes
        self.matrices = {(m, f): self._matrix(m) for m in self.plan.domains.sides for f in range(finite_size(m))}
        self.buffers: dict[Node, Tensor] = {}

    def _frames(self, group: tuple[Domain, ...]) -> dict[Domain, Frame]:
        """One source for the domains of a group, and one span of its unit rows where they are not too many."""
        first = group[0]
        rows = sum(d.rows * d.blocks for d in group)
        seed = (self.seed * 7919 + 104729 * first.group + 1) % (2**31)
        source = Source(rows, self.particles, seed, self.part, self.parts, sobol=not first.mixed)
        layouts = {d: Layout(self.particles, d.outer, d.inner) for d in group}
        if first.mixed or (len(group) > 1 and rows > self.particles // 4):
            spans = {
                d: Span(layout, self.dtype, source, self.allocate, self.arena.take) for d, layout in layouts.items()
            }
            self.spans += spans.values()
            return {d: Frame(Layout(layouts[d].particles), span) for d, span in spans.items()}
        span = Span(Layout(self.particles), self.dtype, source, self.allocate, self.arena.take)
        self.spans.append(span)
        return {d: Frame(layout, span) for d, layout in layouts.items()}

    def count(self, node: Node) -> int:
        """Number of particles of a vector."""
        return self.frames[self.plan.domains.of[node]].particles

    def _matrix(self, node: Node) -> LazyMatrix:
        if not isinstance(node.op, Init):
            raise EvaluationError(
                "an entrywise function of a growing matrix, as adaptive optimizers make it, has no evaluation",
                advice="tp.verify and tp.mup tell its powers of the width; SGD and its relatives are evaluated",
            )
        assert isinstance(node.op.law, Normal)
        out, into = (self.frames[d] for d in self.plan.domains.sides[node])
        forward = self.plan.domains.columns.get((node, False), 0) // finite_size(node)
        backward = self.plan.domains.columns.get((node, True), 0) // finite_size(node)

        def rows(n: int, frame: Frame) -> Rows:
            return Rows(min(max(n, 1), frame.particles), frame.particles, self.dtype, self.allocate)

        out_side = Side(out, rows(backward, out), out.segment(min(forward, into.particles)))
        in_side = Side(into, rows(forward, into), into.segment(min(backward, out.particles)))
        ratios = [d.ratio for d in node.dims if isinstance(d, Width)]
        return LazyMatrix(
            node.op.law.std, out_side, in_side, float(ratios[0]), float(ratios[1]), self.dot, self.arena.take
        )

    # walking -------------------------------------------------------------------------------

    def value(self, node: Node) -> Tensor:
        """The value of one node from those of its operands."""
        op: Op = node.op
        match op:
            case Data(name=name):
                tensor = self.plan.program.data[name]
                return tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            case Init(law=law):
                drawn = self.frames[self.plan.domains.of[node]].draw(law, finite_size(node))
                axes = self.plan.axes.get(node)
                return self._unflatten(drawn if axes is None else axes.to(self.dtype) @ drawn, node)
            case MatMul(transpose=transpose):
                matrix, x = node.operands
                rows = self._flatten(x).chunk(finite_size(matrix))
                products = [self.matrices[matrix, f].product(part, transpose) for f, part in enumerate(rows)]
                return self._unflatten(products[0] if len(products) == 1 else torch.cat(products), node)
            case Gaussian():
                raise EvaluationError("a Gaussian scalar outside an ensemble")
            case Contract():
                out = self._execute(node)
                averaged = op.contracted_width(tuple(x.dims for x in node.operands)) is not None
                return out / self.count(next(x for x in node.operands if x.kind == "vector")) if averaged else out
            case Concat() if node in self.plan.histories:
                return self._history(node)
            case _:
                return self._execute(node)

    def _execute(self, node: Node) -> Tensor:
        def length(width: Width) -> int:
            return self.count(node)

        out = None
        if node.kind == "vector" and isinstance(node.op, Map | Sum | Mul | Contract):
            out = self.arena.large(shape(node.dims, length), self.dtype)
        return execute(node.op, [self.values[x] for x in node.operands], node.dims, length, self.dtype, out)

    def _flatten(self, node: Node) -> Tensor:
        """Rows of a vector, shape (finite entries, M)."""
        x = self.values[node]
        axis = next(i for i, d in enumerate(node.dims) if isinstance(d, Width))
        return torch.movedim(x, axis, -1).reshape(-1, self.count(node))

    def _unflatten(self, rows: Tensor, node: Node) -> Tensor:
        axis = next(i for i, d in enumerate(node.dims) if isinstance(d, Width))
        finite = [d for d in node.dims if isinstance(d, int)]
        return torch.movedim(rows.reshape(*finite, self.count(node)), -1, axis)

    def _history(self, node: Node) -> Tensor:
        first, final = self.plan.histories[node]
        before, new = (self.values[x] for x in node.operands)
        buffer = self.buffers.get(first)
        if buffer is None or buffer.shape[0] < final:
            buffer = self.buffers[first] = self.allocate((final, *before.shape[1:]), before.dtype)
        if before.data_ptr() != buffer.data_ptr():
            buffer[: before.shape[0]] = before
        end = before.shape[0] + new.shape[0]
        buffer[before.shape[0] : end] = new
        return buffer[:end]

    # ensembles -----------------------------------------------------------------------------

    def summand(self, node: Node) -> Tensor:
        """Summands over units, divided by sqrt(blocks): what the blocks of one unit have in common counts."""
        assert isinstance(node.op, Gaussian)
        inputs, out = split_spec(node.op.spec)
        width = next(
            letter
            for letters, x in zip(inputs, node.operands, strict=True)
            for letter, dim in zip(letters, x.dims, strict=True)
            if not isinstance(dim, int)
        )
        psi = torch.einsum(",".join(inputs) + "->" + out + width, *(self.values[x] for x in node.operands))
        domain = self.plan.domains.of[next(x for x in node.operands if x.kind == "vector")]
        return psi.reshape(-1, domain.outer, self.particles, domain.inner).sum((1, 3)) / domain.blocks**0.5

    def covariance(self, first: Tensor, second: Tensor, domain: Domain) -> Tensor:
        return first @ second.T / self.particles

    def mark(self) -> tuple[list[tuple[int, Tensor | None]], list[int]]:
        """How many rows and Sobol dimensions are in use."""
        sources = [(span.source.used, span.ready) for span in self.spans]
        return sources, [stack.count for stack in self._stacks()]

    def rewind(self, marks: tuple[list[tuple[int, Tensor | None]], list[int]]) -> None:
        for span, (used, ready) in zip(self.spans, marks[0], strict=True):
            span.source.used, span.ready = used, ready
        for stack, count in zip(self._stacks(), marks[1], strict=True):
            stack.count = count
        self.buffers = {}

    def _stacks(self) -> list[Rows]:
        matrices = self.matrices.values()
        return [rows for m in matrices for side in (m.out, m.into) for rows in (side.basis, side.fresh)]
