"""Which parameters a node of the graph was computed from, its remainder included, and which rows of them.

An entry of ``W x + b`` depends on one row of W and of b, if x depends on neither, and so does an entry of what only
moves, scales or adds such entries: queries and keys that are two blocks of one product touch different rows.
"""

from __future__ import annotations

from collections.abc import Iterable

from tpcompile.capture.graph import Capture, GraphNode, Ref, Scaled, references
from tpcompile.lowering.value import Rows

_FACTORS = {  # positions of the factors of products, and of what is added
    **{f"aten.{name}.default": ((0, 1), None) for name in ("mm", "bmm", "mv")},
    **{f"aten.{name}.default": ((1, 2), 0) for name in ("addmm", "addmv", "baddbmm")},
}
_MOVES = frozenset(
    f"aten.{name}"
    for name in (
        *(f"{x}.default" for x in ("view", "_unsafe_view", "reshape", "permute", "squeeze", "unsqueeze", "clone", "t")),
        *(f"{x}.default" for x in ("expand", "alias", "detach", "_to_copy", "split_with_sizes", "neg")),
        *("transpose.int", "select.int", "slice.Tensor", "split.Tensor", "unbind.int", "squeeze.dim", "squeeze.dims"),
    )
)
_SUMS = frozenset(("aten.add.Tensor", "aten.sub.Tensor", "aten.cat.default", "aten.stack.default"))
_SCALED = frozenset(("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar"))
_NONE: frozenset[Rows] = frozenset()


class Touches:
    """Parameters that nodes are computed from, and rows of parameters; nodes are asked for in order."""

    def __init__(self, capture: Capture) -> None:
        self._copies = capture.copies
        self._computed = capture.computed
        self._parameters = {self._start(x) for x in capture.nodes if x.kind in ("parameter", "direction")}
        self.of: dict[str, frozenset[str]] = {}
        self.rows: dict[str, frozenset[Rows]] = {}
        self._moved: dict[str, str] = {}  # nodes that hold the entries of one initial matrix, moved

    def find(self, node: GraphNode, initial: frozenset[str]) -> None:
        """What a node is computed from, once all that it reads is known; a parameter from ``initial`` values."""
        own = [] if node.kind == "call" else [self._start(node), *initial]
        self.of[node.name] = frozenset(own).union(*(self.of[x] for x in node.operands))
        if node.kind == "parameter":
            growing = sum(size.power for size in node.shape or ())
            if growing == 2:
                self._moved[node.name] = self._start(node)
            self.rows[node.name] = frozenset([Rows(self._start(node), node.name)]) if growing == 1 else _NONE
            return
        inner = next(iter(node.operands), "")
        if _moves(node) and inner in self._moved:
            self._moved[node.name] = self._moved[inner]
        self.rows[node.name] = self._rows(node) if node.kind == "call" else _NONE

    def _start(self, node: GraphNode) -> str:
        name = str(node.target)
        if node.kind == "direction":
            return f"direction/{name}"
        return self._copies[name][0] if name in self._copies else name

    def _rows(self, node: GraphNode) -> frozenset[Rows]:
        target = str(node.target)
        if target in _FACTORS:
            return self._product(node, *_FACTORS[target])
        if _moves(node):
            return self.rows[node.operands[0]]
        if target in _SUMS and not any(isinstance(x, Scaled) for x in node.args):
            return self._together(node.operands)
        if target in _SCALED:
            first, other = node.args[0], node.args[1]
            if isinstance(other, Scaled):
                power = -other.exponent if "div" in target else other.exponent
                return frozenset(r.scaled(power) for r in self._of([first]))
            for x, beside in ((first, other), (other, first)):
                free = not any(self.of[name] & self._parameters for name in references(beside))
                if free and (x is first or "mul" in target):
                    return self._of([x])
        return _NONE

    def _product(self, node: GraphNode, factors: tuple[int, int], added: int | None) -> frozenset[Rows]:
        names = [x.name if isinstance(x := node.args[i], Ref) else "" for i in factors]
        for matrix, other in (names, reversed(names)):
            whole = self._moved.get(matrix)
            if whole is None or other not in self._computed or whole in self.of[other]:
                continue
            own = frozenset([Rows(whole, node.name)])
            beside = [] if added is None else [x.name for x in (node.args[added],) if isinstance(x, Ref)]
            if any(whole in self.of[x] for x in beside):
                return _NONE
            return own.union(*(self._apart(self.rows[x], self.of[other]) for x in beside))
        return _NONE

    def _together(self, names: Iterable[str]) -> frozenset[Rows]:
        """Rows that a sum of values touches, where none depends on more of the same parameter, nor at another scale."""
        found = frozenset().union(*(self.rows[x] for x in names))
        whole = frozenset().union(*(self.of[x] - {r.parameter for r in self.rows[x]} for x in names))
        several = [r.parameter for r in found]
        return frozenset(r for r in found if several.count(r.parameter) == 1 and r.parameter not in whole)

    @staticmethod
    def _apart(rows: frozenset[Rows], touched: frozenset[str]) -> frozenset[Rows]:
        return frozenset(r for r in rows if r.parameter not in touched)

    def _of(self, args: Iterable[object]) -> frozenset[Rows]:
        return frozenset().union(*(self.rows[name] for name in references(list(args))))


def _moves(node: GraphNode) -> bool:
    """True for an operation of one operand that only moves entries, or takes one of several results."""
    return len(node.operands) == 1 and (str(node.target) in _MOVES or getattr(node.target, "__name__", "") == "getitem")
