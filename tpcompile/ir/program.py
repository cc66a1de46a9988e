"""Hash-consed nodes, the builder that makes them, and the finished program."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import torch

from tpcompile.errors import ProgramError
from tpcompile.ir.op import Op
from tpcompile.ir.ops import Data
from tpcompile.ir.types import Dims, dims_text, kind

if TYPE_CHECKING:
    import networkx as nx


class Node:
    """One value: an instruction and its operands. Equal instruction and operands: the same object."""

    __slots__ = ("dims", "kind", "op", "operands", "serial")

    def __init__(self, op: Op, operands: tuple[Node, ...], dims: Dims, serial: int) -> None:
        self.op = op
        self.operands = operands
        self.dims = dims
        self.kind = kind(dims)  # "scalar", "vector" or "matrix"
        self.serial = serial  # order of creation: operands come before users

    def __repr__(self) -> str:
        return f"<{self.op.mnemonic} {dims_text(self.dims)}>"


class Builder:
    """Makes nodes, each only once, and keeps the data tensors and the place where each node was first made."""

    def __init__(self) -> None:
        self._nodes: dict[Any, Node] = {}
        self.data: dict[str, torch.Tensor] = {}
        self.origins: dict[Node, str] = {}
        self.origin: str = ""

    def node(self, op: Op, *operands: Node) -> Node:
        """The node of this instruction on these operands; ProgramError if they do not fit."""
        key = (op, tuple(map(id, operands)))
        found = self._nodes.get(key)
        if found is None:
            dims = op.infer(tuple(x.dims for x in operands))
            found = self._nodes[key] = Node(op, operands, dims, len(self._nodes))
            if self.origin:
                self.origins[found] = self.origin
        return found

    def constant(self, tensor: torch.Tensor, name: str | None = None) -> Node:
        """A finite constant; tensors of equal content are one node."""
        tensor = tensor.detach().contiguous()
        if tensor.dtype == torch.bfloat16:  # which NumPy does not have
            tensor = tensor.float()
        digest = hashlib.sha256(
            tensor.cpu().numpy().tobytes() + str((tensor.dtype, tuple(tensor.shape))).encode()
        ).hexdigest()[:10]
        for known, other in self.data.items():
            if known.endswith(digest):
                name = known
                tensor = other
                break
        else:
            name = f"{name or 'constant'}#{digest}"
        self.data[name] = tensor
        return self.node(Data(name, tuple(tensor.shape)))


@dataclass(frozen=True)
class Output:
    """A requested quantity as an asymptotic series ``sum_k n**e_k node_k + O(n**remainder)``.

    Exponents descend. ``remainder`` None means that nothing was dropped. ``shape`` is that of the
    limit. The limit of the quantity is the node of exponent 0, or zero if there is none.
    """

    terms: tuple[tuple[Fraction, Node], ...]
    remainder: Fraction | None
    shape: Dims

    @property
    def limit(self) -> Node | None:
        """The node of exponent 0; None where the limit is exactly zero."""
        for exponent, node in self.terms:
            if exponent == 0:
                return node
        return None


@dataclass(frozen=True)
class Program:
    """A tensor program: nodes in order of execution, named outputs, finite data.

    ``str(program)`` is its text, which :func:`tpcompile.ir.parse` reads back to an equal program.
    """

    nodes: tuple[Node, ...]
    outputs: Mapping[str, Output]
    data: Mapping[str, torch.Tensor]
    origins: Mapping[Node, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __str__(self) -> str:
        from tpcompile.ir.text import format_program

        return format_program(self)

    def names(self) -> dict[Node, str]:
        """``%0``, ``%1``, ... in order of execution."""
        return {node: f"%{i}" for i, node in enumerate(self.nodes)}

    def graph(self) -> nx.MultiDiGraph:
        """The program as a networkx graph: an edge from each operand to its user.

        Nodes are the names of the text form, with attributes ``op`` (mnemonic), ``instruction``, ``dims``,
        ``kind`` and ``origin``; edges carry ``operand``, the position. Outputs are nodes of ``op="output"``.
        """
        import networkx as nx

        graph = nx.MultiDiGraph()
        names = self.names()
        for node in self.nodes:
            graph.add_node(
                names[node],
                op=node.op.mnemonic,
                instruction=node.op,
                dims=dims_text(node.dims),
                kind=node.kind,
                origin=self.origins.get(node, ""),
            )
            for i, operand in enumerate(node.operands):
                graph.add_edge(names[operand], names[node], operand=i)
        for name, output in self.outputs.items():
            graph.add_node(
                name, op="output", instruction=None, dims=dims_text(output.shape), kind=kind(output.shape), origin=""
            )
            for exponent, node in output.terms:
                graph.add_edge(names[node], name, operand=0, exponent=str(exponent))
        return graph


def finish(builder: Builder, outputs: Mapping[str, Output]) -> Program:
    """The program of these outputs: the nodes they need, in order, and the data those read."""
    nodes = reachable(node for output in outputs.values() for _, node in output.terms)
    names = [node.op.name for node in nodes if isinstance(node.op, Data)]
    return Program(
        nodes,
        dict(outputs),
        {name: builder.data[name] for name in names},
        {node: builder.origins[node] for node in nodes if node in builder.origins},
    )


def restrict(program: Program, wanted: Callable[[str], bool]) -> Program:
    """The program of those outputs only: without the nodes that no other needs."""
    outputs = {name: output for name, output in program.outputs.items() if wanted(name)}
    needed = set(reachable(node for output in outputs.values() for _, node in output.terms))
    return Program(
        tuple(node for node in program.nodes if node in needed),
        outputs,
        {node.op.name: program.data[node.op.name] for node in needed if isinstance(node.op, Data)},
        {node: origin for node, origin in program.origins.items() if node in needed},
    )


def reachable(roots: Iterable[Node]) -> tuple[Node, ...]:
    """Every node that the roots need, operands before users."""
    seen: set[Node] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(node.operands)
    return tuple(sorted(seen, key=lambda node: node.serial))


def verify(program: Program) -> None:
    """Check that a program is well formed; ProgramError says what is not.

    Operands come before users, every node infers the axes it has, data and initial values are present
    and named once, and outputs are scalars or vectors of the program.
    """
    seen: set[Node] = set()
    names = program.names()
    laws: dict[str, Node] = {}
    keys: set[Any] = set()
    for node in program.nodes:
        for operand in node.operands:
            if operand not in seen:
                raise ProgramError(f"{names[node]} uses a value that is not defined before it")
        if node.op.infer(tuple(x.dims for x in node.operands)) != node.dims:
            raise ProgramError(f"{names[node]} = {node.op.mnemonic} does not have the axes {dims_text(node.dims)}")
        key = (node.op, tuple(map(id, node.operands)))
        if key in keys:
            raise ProgramError(f"{names[node]} stands twice: the program is not hash-consed")
        keys.add(key)
        if isinstance(node.op, Data):
            tensor = program.data.get(node.op.name)
            if tensor is None or tuple(tensor.shape) != node.op.shape:
                raise ProgramError(f"data '{node.op.name}' is missing or does not have the shape {node.op.shape}")
        name = getattr(node.op, "name", None)
        if name is not None and laws.setdefault(name, node) is not node:
            raise ProgramError(f"two values are named '{name}'")
        seen.add(node)
    for name, output in program.outputs.items():
        for _, node in output.terms:
            if node not in seen or node.kind == "matrix":
                raise ProgramError(f"output '{name}' is not a scalar or vector of the program")
