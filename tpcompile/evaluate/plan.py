"""What evaluators that keep a tensor for every value have in common: the plan of a program, and the walk over it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from tpcompile.errors import EvaluationError
from tpcompile.evaluate.axes import principal_axes
from tpcompile.evaluate.buffers import Arena
from tpcompile.evaluate.domains import Domain, Domains, find_domains
from tpcompile.ir import Concat, Gaussian, Init, MatMul, Node, Program

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
    axes: dict[Node, Tensor]  # of Gaussian parameters: in which directions they are drawn
    arenas: list[Arena] = field(default_factory=list)  # that no run uses now

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
        program = replace(program, nodes=_early_sums(program))
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
        return Plan(
            program,
            domains,
            last,
            frozenset(random),
            tuple(scalars),
            _histories(program),
            done,
            principal_axes(program),
        )


def _early_sums(program: Program) -> tuple[Node, ...]:
    """The nodes in an order where scalars, and vectors that only scalars are made of, come as early as they can.

    Otherwise the vectors that a kernel at the end of a program is made of would be kept until then. Draws keep their
    order.
    """
    users: dict[Node, list[Node]] = {}
    for node in program.nodes:
        for x in dict.fromkeys(node.operands):
            users.setdefault(x, []).append(node)
    early: set[Node] = set()
    for node in reversed(program.nodes):
        used = users.get(node, [])
        sinks = node.kind == "scalar" or (bool(used) and all(x in early for x in used))
        if sinks and node.operands and not isinstance(node.op, MatMul | Gaussian | Concat):
            early.add(node)
    missing = {node: len(set(node.operands)) for node in early}
    out: list[Node] = []
    for node in program.nodes:
        ready = [] if node in early else [node]
        for x in ready:
            out.append(x)
            for user in users.get(x, []):
                if user in early:
                    missing[user] -= 1
                    if missing[user] == 0:
                        ready.append(user)
    return tuple(out)


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


class Evaluation(ABC):
    """A walk over a program; evaluators say what an instruction computes and how Gaussian scalars are correlated."""

    def __init__(self, plan: Plan, dtype: torch.dtype, seed: int) -> None:
        self.plan = plan
        self.dtype = dtype
        self.seed = seed
        self.values: dict[Node, Tensor] = {}

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

    @abstractmethod
    def value(self, node: Node) -> Tensor:
        """The value of one node from those of its operands."""

    @abstractmethod
    def summand(self, node: Node) -> Tensor:
        """What a Gaussian scalar is a sum of, a row for each of its entries."""

    @abstractmethod
    def covariance(self, first: Tensor, second: Tensor, domain: Domain) -> Tensor:
        """``E[psi psi']`` of two summands on the same axis, shape (entries, entries)."""

    @abstractmethod
    def mark(self) -> Any:
        """The state of the random sources and matrices: where every member of an ensemble starts from."""

    @abstractmethod
    def rewind(self, marks: Any) -> None:
        """Back to a state from :meth:`mark`."""


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
                advice="the training diverges there (lower the learning rate or the number of steps), or a function is "
                "infinite or undefined, be it in the branch that a where() does not take: clamp its argument",
            )
        out[name] = value.reshape(shape).clone()
    return out
