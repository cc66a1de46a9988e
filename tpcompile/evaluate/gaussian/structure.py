"""Facts about the nodes of a program that the factorisation of expectations needs."""

from __future__ import annotations

from tpcompile.ir import (
    Concat,
    Contract,
    Data,
    Expand,
    Gather,
    Gaussian,
    Init,
    Map,
    MatMul,
    Mul,
    Node,
    Op,
    Permute,
    Program,
    Scatter,
    Slice,
    SplitWidth,
    Sum,
    Unslice,
    View,
    reachable,
)
from tpcompile.laws import Normal

_MOVES = (View, Permute, Slice, Unslice, Concat, Gather, Scatter)


def is_linear_move(op: Op) -> bool:
    """True if an instruction only moves, drops, repeats or adds entries along finite axes."""
    return isinstance(op, _MOVES)


class Structure:
    """Randomness, Gaussianity and reach of nodes, found once each."""

    def __init__(self, program: Program) -> None:
        self.random: set[Node] = set()
        for node in program.nodes:
            if self._is_random(node):
                self.random.add(node)
        self._gaussian: dict[Node, bool] = {}
        self._reach: dict[Node, frozenset[Node]] = {}
        self._families: dict[Node, frozenset[object]] = {}
        self._splits: dict[Node, bool] = {}
        self._responds: dict[Node, bool] = {}
        self._hat: dict[Node, Node] = {}
        self.hats: set[Node] = set()

    def _is_random(self, node: Node) -> bool:
        if node.kind != "scalar" or isinstance(node.op, Gaussian | Init):
            return True
        if self.width(node) is None:
            return any(x in self.random for x in node.operands)
        return any(x.kind == "scalar" and x in self.random for x in reachable(node.operands))  # a moment given them

    @staticmethod
    def width(node: Node) -> object | None:
        """The width axis that a contraction averages over."""
        op = node.op
        return op.contracted_width(tuple(x.dims for x in node.operands)) if isinstance(op, Contract) else None

    def deterministic(self, node: Node) -> bool:
        """True for a scalar that is a number in the limit, given the inputs."""
        return node not in self.random

    def reach(self, node: Node) -> frozenset[Node]:
        """Everything random that a value is made of, itself included; numbers are not looked through."""
        if node not in self._reach:
            parts = [self.reach(x) for x in node.operands if x in self.random]
            self._reach[node] = frozenset([node]).union(*parts)
        return self._reach[node]

    def gaussian(self, node: Node) -> bool:
        """True if the value is jointly Gaussian with all other such values: linear in Gaussian generators."""
        if node not in self._gaussian:
            self._gaussian[node] = self._is_gaussian(node)
        return self._gaussian[node]

    def declare_gaussian(self, node: Node, family: object) -> None:
        """Take a value that is made while planning as a Gaussian generator of its own family."""
        self.random.add(node)
        self._gaussian[node] = True
        self._families[node] = frozenset([family])

    def _is_gaussian(self, node: Node) -> bool:
        op = node.op
        if self.deterministic(node) or isinstance(op, Gaussian):
            return True
        if isinstance(op, MatMul):
            if any(x.kind == "scalar" for x in self.reach(node)):
                return False  # Gaussian only given random scalars
            return not self.responds(node) or all(self.gaussian(y.operands[1]) for y in self.opposite(node))
        if isinstance(op, Init):
            return isinstance(op.law, Normal)
        moving = [x for x in node.operands if x in self.random]
        if isinstance(op, Sum | Expand | SplitWidth) or is_linear_move(op):
            return all(self.gaussian(x) for x in moving)
        if isinstance(op, Mul) or (isinstance(op, Contract) and self.width(node) is None):
            return len(moving) == 1 and self.gaussian(moving[0])
        return False

    def pointwise(self, node: Node) -> bool:
        """True for functions that a grid of values of the Gaussian variables can be put through."""
        return isinstance(node.op, Map | Sum | Mul | Expand)

    def splits(self, node: Node) -> bool:
        """True if a value on this axis is made of parts of a split width."""
        if node not in self._splits:
            inner = not isinstance(node.op, MatMul) and any(self.splits(x) for x in node.operands if x in self.random)
            self._splits[node] = isinstance(node.op, SplitWidth) or inner
        return self._splits[node]

    def families(self, node: Node) -> frozenset[object]:
        """The families of generators that a value is made of on its own axis: initial values, products by a matrix."""
        if node not in self._families:
            op = node.op
            if isinstance(op, Init):
                found = frozenset([op.name])
            elif isinstance(op, MatMul):
                found = frozenset([(node.operands[0], op.transpose)])
                if self.responds(node):
                    found |= frozenset().union(*(self.families(y.operands[1]) for y in self.opposite(node)))
            elif isinstance(op, Gaussian):
                found = frozenset(["gaussian"])
            else:
                found = frozenset().union(*(self.families(x) for x in node.operands if x in self.random))
            self._families[node] = found
        return self._families[node]

    def responds(self, node: Node) -> bool:
        """True if a product has a response term: its operand depends on a product with the transposed matrix."""
        if node not in self._responds:
            self._responds[node] = node not in self.hats and bool(self.opposite(node))
        return self._responds[node]

    def opposite(self, node: Node) -> list[Node]:
        """Products with the transposed matrix on which the operand of a product depends."""
        assert isinstance(node.op, MatMul)
        matrix, x = node.operands
        found = [
            y
            for y in self.reach(x)
            if isinstance(y.op, MatMul) and y.operands[0] is matrix and y.op.transpose != node.op.transpose
        ]
        return sorted(found, key=lambda y: y.serial)

    def hat(self, node: Node) -> Node:
        """The Gaussian part of a product that has a response term."""
        if node not in self._hat:
            hat = self._hat[node] = Node(node.op, node.operands, node.dims, node.serial)
            self.hats.add(hat)
            self.random.add(hat)
        return self._hat[node]


def input_nodes(program: Program, data: str) -> set[Node]:
    """All nodes that depend on the named data."""
    found: set[Node] = set()
    for node in program.nodes:
        if (isinstance(node.op, Data) and node.op.name == data) or any(x in found for x in node.operands):
            found.add(node)
    return found
