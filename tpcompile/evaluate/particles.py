"""The particle evaluator: a program on M particles in place of coordinates (theory, section 6)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tpcompile.analysis.semantics import execute
from tpcompile.errors import EvaluationError
from tpcompile.evaluate.domains import Domain, Domains, find_domains, finite_size
from tpcompile.evaluate.frames import Frame, Layout, LazyMatrix, Rows, Side, Source, Span
from tpcompile.ir import Concat, Contract, Data, Gaussian, Init, MatMul, Node, Op, Program, Width
from tpcompile.laws import Normal

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Plan:
    """What is known of a program before a particle is drawn."""

    program: Program
    domains: Domains
    last_use: dict[Node, int]
    random: frozenset[Node]  # values that depend on a random scalar
    scalars: tuple[Node, ...]  # the random scalars
    histories: dict[Node, tuple[Node, int]]  # chains of concatenations: their first node and final length
    done: tuple[tuple[Node, ...], ...]  # by position: operands used there for the last time

    @staticmethod
    def of(program: Program) -> Plan:
        """Analyse a program for evaluation, once: the plan stays with the program."""
        known = vars(program).get("_plan")
        if known is None:
            known = Plan._make(program)
            object.__setattr__(program, "_plan", known)  # no field: takes no part in equality
        return known

    @staticmethod
    def _make(program: Program) -> Plan:
        last: dict[Node, int] = {}
        random: set[Node] = set()
        scalars: list[Node] = []
        for i, node in enumerate(program.nodes):
            for x in node.operands:
                last[x] = i
            if isinstance(node.op, Gaussian) or (isinstance(node.op, Init) and node.kind == "scalar"):
                scalars.append(node)
                random.add(node)
            elif any(x in random for x in node.operands):
                random.add(node)
        for output in program.outputs.values():
            for _, node in output.terms:
                last[node] = len(program.nodes)
        done = tuple(
            tuple(x for x in dict.fromkeys(node.operands) if last[x] == i) for i, node in enumerate(program.nodes)
        )
        domains = find_domains(program)
        return Plan(program, domains, last, frozenset(random), tuple(scalars), _histories(program), done)


def _histories(program: Program) -> dict[Node, tuple[Node, int]]:
    """Chains of concatenations along the first axis share one buffer of their final length."""
    chain: dict[Node, Node] = {}
    tail: dict[Node, Node] = {}
    final: dict[Node, int] = {}
    for node in program.nodes:
        if isinstance(node.op, Concat) and node.op.axis == 0 and len(node.operands) == 2:
            before = node.operands[0]
            first = chain.get(before)
            if first is None or tail[first] is not before:
                first = node  # a new history, or a branch of one: its own buffer
            size = node.dims[0]
            assert isinstance(size, int)
            chain[node], tail[first], final[first] = first, node, size
    return {node: (first, final[first]) for node, first in chain.items()}


@dataclass
class Run:
    """One evaluation on one set of particles.

    ``particles`` is the number of each domain that is no block of another and has none; in a group of domains the
    unit axis has as many.
    """

    plan: Plan
    particles: int
    dtype: torch.dtype
    seed: int
    part: int = 0
    parts: int = 1
    dot: bool = True
    values: dict[Node, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
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
            spans = {d: Span(layout, self.dtype, source) for d, layout in layouts.items()}
            self.spans += spans.values()
            return {d: Frame(Layout(layouts[d].particles), span) for d, span in spans.items()}
        span = Span(Layout(self.particles), self.dtype, source)
        self.spans.append(span)
        return {d: Frame(layout, span) for d, layout in layouts.items()}

    def count(self, node: Node) -> int:
        """Number of particles of a vector."""
        return self.frames[self.plan.domains.of[node]].particles

    def _matrix(self, node: Node) -> LazyMatrix:
        assert isinstance(node.op, Init)
        assert isinstance(node.op.law, Normal)
        out, into = (self.frames[d] for d in self.plan.domains.sides[node])
        forward = self.plan.domains.columns.get((node, False), 0) // finite_size(node)
        backward = self.plan.domains.columns.get((node, True), 0) // finite_size(node)

        def rows(n: int, frame: Frame) -> Rows:
            return Rows(min(max(n, 1), frame.particles), frame.particles, self.dtype)

        out_side = Side(out, rows(backward, out), out.segment(min(forward, into.particles)))
        in_side = Side(into, rows(forward, into), into.segment(min(backward, out.particles)))
        ratios = [d.ratio for d in node.dims if isinstance(d, Width)]
        return LazyMatrix(node.op.law.std, out_side, in_side, float(ratios[0]), float(ratios[1]), self.dot)

    # walking -------------------------------------------------------------------------------

    def execute(self, nodes: Iterable[tuple[int, Node]], keep: Callable[[Node, int], bool], progress: Progress) -> None:
        """Evaluate nodes in order; a value is dropped after its last use unless ``keep`` says otherwise."""
        for i, node in nodes:
            if node.kind == "matrix":
                continue
            if node not in self.values:
                self.values[node] = self.value(node)
            for x in self.plan.done[i]:
                if not keep(x, i):
                    self.values.pop(x, None)
            progress(i)

    def value(self, node: Node) -> Tensor:
        """The value of one node from those of its operands."""
        op: Op = node.op
        match op:
            case Data(name=name):
                tensor = self.plan.program.data[name]
                return tensor.to(self.dtype) if tensor.is_floating_point() else tensor
            case Init(law=law):
                drawn = self.frames[self.plan.domains.of[node]].draw(law, finite_size(node))
                return self._unflatten(drawn, node)
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

        return execute(node.op, [self.values[x] for x in node.operands], node.dims, length, self.dtype)

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
            buffer = self.buffers[first] = before.new_empty((final, *before.shape[1:]))
        if before.data_ptr() != buffer.data_ptr():
            buffer[: before.shape[0]] = before
        end = before.shape[0] + new.shape[0]
        buffer[before.shape[0] : end] = new
        return buffer[:end]


def limits(plan: Plan, values: Mapping[Node, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The limit of every output: the node of exponent 0, or zeros."""
    out: dict[str, Tensor] = {}
    for name, output in plan.program.outputs.items():
        node = output.limit
        shape = tuple(d for d in output.shape if isinstance(d, int))
        value = torch.zeros((), dtype=dtype).expand(shape) if node is None else values[node]
        if not bool(torch.isfinite(value).all()):
            raise EvaluationError(
                f"'{name}' is not finite in the limit",
                advice="the training diverges or divides by zero there; lower the learning rate or the number of steps",
            )
        out[name] = value.reshape(shape).clone()
    return out
