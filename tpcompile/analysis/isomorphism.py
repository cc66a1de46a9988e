"""Programs that are each other's image when initial values of one law are exchanged, or change their sign.

Initial values of different parameters are independent. Where an injection of the parameters below one value into those
below another keeps laws and axes, and takes the instructions of the one to those of the other, the two are equal in
law. Candidates are found by colours (of a value: its instructions without the names of parameters and without signs)
and then matched node by node; signs are linear equations over two elements, one unknown for each parameter.

Scalars are constants here, as everywhere: they stay what they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

from tpcompile import nonlin
from tpcompile.analysis.blocks import Support
from tpcompile.analysis.colours import Colour, Colours, is_sign, magnitude, opaque, renamed, unsigned
from tpcompile.ir import Concat, Contract, Init, Map, Mul, Node, Sum, split_spec
from tpcompile.laws import is_symmetric

_STEPS = 2_000  # pairs of nodes looked at for one question; beyond that nothing is known
_SOLUTIONS = 16  # ways to match the instructions of which the signs are tried
_NEGATIVE = 1  # the sign -1 in an equation; the other bits are the unknown signs


@dataclass(frozen=True)
class _Pair:
    """x goes to y."""

    x: Node
    y: Node


@dataclass(frozen=True)
class _Down(_Pair):
    """x goes to y because what they are made of does."""


@dataclass(frozen=True)
class _Still:
    """x and everything below it stay as they are."""

    x: Node


@dataclass(frozen=True)
class _Group:
    """Operands to be paired in any order."""

    left: tuple[Node, ...]
    right: tuple[Node, ...]
    moved: bool  # try what moves them first


Goals = tuple["_Pair | _Still | _Group", "Goals"] | None  # a linked list, so that going back is free
Agenda = tuple[Goals, Goals]  # what is certain to be needed, and what leaves a choice


class Matcher:
    """Matches values to values; :meth:`sign` is the question."""

    def __init__(self, colours: Colours, support: Support) -> None:
        self._colours = colours
        self._known = support
        self._to: dict[Node, Node] = {}
        self._from: dict[Node, Node] = {}
        self._trail: list[Node] = []
        self._still: set[Node] = set()
        self._moved: Callable[[Node], bool] = _never
        self._bound_leaves: frozenset[tuple[Node, Node]] = frozenset()
        self._left: dict[Node, Colour] = {}
        self._right: dict[Node, Colour] = {}

    def sign(
        self, pairs: Sequence[tuple[Node, Node]], wanted: int = 0, moved: Callable[[Node], bool] | None = None
    ) -> int:
        """The sign of an exchange that takes the product of the first values to that of the second; 0 if none is found.

        ``wanted`` is 1 or -1 if only one sign is. ``moved`` says of a value that goes to itself that it is better not
        to try first that everything below it stays as it is.
        """
        self._to, self._from, self._trail, self._still = {}, {}, [], set()
        self._moved = moved or _never
        sure: Goals = None
        for x, y in pairs:
            sure = (_Pair(x, y), sure)
        for count, _ in enumerate(self._matchings((sure, None))):
            if count == _SOLUTIONS:
                break
            for sign in (wanted,) if wanted else (1, -1):
                if self._possible(pairs, sign):
                    return sign
        return 0

    def _support(self, node: Node) -> frozenset[Node]:
        return frozenset() if node.kind == "scalar" else self._known.of(node)

    # which value goes to which ------------------------------------------------------------------

    def _matchings(self, agenda: Agenda) -> Iterator[None]:
        """All that are found, one after the other in ``_to``."""
        choices: list[tuple[int, list[Agenda]]] = []
        for _ in range(_STEPS):
            sure, open_ = agenda
            if sure is not None:
                found = self._certain(sure[0], sure[1], open_)
            elif open_ is not None:
                found = self._chosen(open_[0], open_[1])
            else:
                yield
                found = []
            if len(found) > 1:
                choices.append((len(self._trail), found[1:]))
            if found:
                agenda = found[0]
                continue
            while choices and not choices[-1][1]:
                choices.pop()
            if not choices:
                return
            mark, left = choices[-1]
            self._undo(mark)
            agenda = left.pop(0)

    def _undo(self, mark: int) -> None:
        for x in self._trail[mark:]:
            self._still.discard(x)
            del self._from[self._to.pop(x)]
        del self._trail[mark:]

    def _bound(self, x: Node, y: Node) -> bool:
        """Records that x goes to y; False if it cannot."""
        if x in self._to or y in self._from:
            return self._to.get(x) is y
        self._to[x], self._from[y] = y, x
        self._trail.append(x)
        return True

    def _certain(self, goal: _Pair | _Still | _Group, sure: Goals, open_: Goals) -> list[Agenda]:
        """What is left to do for each way to reach a goal; none if there is none."""
        if isinstance(goal, _Still):
            if not self._bound(goal.x, goal.x):
                return []
            self._still.add(goal.x)
            for leaf in self._support(goal.x):
                sure = (_Pair(leaf, leaf), sure)
            return [(sure, open_)]
        assert isinstance(goal, _Pair)
        x, y = unsigned(goal.x), unsigned(goal.y)
        if self._to.get(x) is y:
            return [(sure, open_)]
        if self._colours.of(x) != self._colours.of(y):
            return []
        if x.kind == "scalar":
            return [(sure, open_)]
        leaf = isinstance(x.op, Init) and not opaque(x)
        if x is y and not leaf:
            if opaque(x):
                return [((_Still(x), sure), open_)]
            if not isinstance(goal, _Down):
                return [(sure, (_Pair(x, x), open_))]
        if not self._bound(x, y):
            return []
        if leaf:
            return [(sure, open_)]
        if type(x.op) is not type(y.op) or len(x.operands) != len(y.operands):
            return []
        if isinstance(x.op, Contract):
            return [
                (_chained([_Pair(a, b) for a, b in zip(x.operands, order, strict=True)], sure), open_)
                for order in self.orders(x, y)
            ]
        if isinstance(x.op, Sum | Mul):
            for group in self._groups(x, y):
                single = len(group.left) == 1
                sure = (_Pair(group.left[0], group.right[0]), sure) if single else sure
                open_ = open_ if single else (group, open_)
            return [(sure, open_)]
        return [(_chained([_Pair(a, b) for a, b in zip(x.operands, y.operands, strict=True)], sure), open_)]

    def _chosen(self, goal: _Pair | _Still | _Group, rest: Goals) -> list[Agenda]:
        """As :meth:`_certain`, where there may be several ways."""
        if isinstance(goal, _Group):
            return self._paired(goal, rest)
        assert isinstance(goal, _Pair)
        x = goal.x
        if x in self._to or x in self._from:
            return [(None, rest)] if self._to.get(x) is x else []
        still: Agenda = ((_Still(x), None), rest)
        down: Agenda = ((_Down(x, x), None), rest)
        if any(self._to.get(p, p) is not p or self._from.get(p, p) is not p for p in self._support(x)):
            return [down] if self._fits(x, x) else []
        return [down, still] if self._moved(x) else [still, down]

    def _paired(self, goal: _Group, rest: Goals) -> list[Agenda]:
        """The first operand of a group with each that it may go to, itself first; those that are bound before."""
        x = next((x for x in goal.left if x in self._to), goal.left[0])
        known = self._to.get(x)
        left = _without(goal.left, x)
        fits = [known] if known is not None else [y for y in dict.fromkeys(goal.right) if self._fits(x, y)]
        fits = [y for y in fits if y in goal.right]
        fits.sort(key=lambda y: (y is x) == goal.moved)
        out: list[Agenda] = []
        for y in fits:
            right = _without(goal.right, y)
            more: Goals = rest if not left else (_Group(left, right, goal.moved), rest)
            out.append(((_Pair(x, y), None), more))
        return out

    def _fits(self, x: Node, y: Node) -> bool:
        """False if the initial values that are bound already say that x cannot go to y."""
        if x in self._to or y in self._from:
            return self._to.get(x) is y
        bound = {p: q for p in self._trail if isinstance((q := self._to[p]).op, Init)}
        key = frozenset(bound.items())
        if self._bound_leaves != key:
            self._bound_leaves, self._left, self._right = key, {}, {}
        refined = self._colours.refined
        same = {q: q for q in bound.values()}
        return refined(x, bound, self._left, self._known) == refined(y, same, self._right, self._known)

    def _groups(self, x: Node, y: Node) -> list[_Group]:
        """Operands of sums and products that may go to each other."""
        groups: dict[Any, tuple[list[Node], list[Node]]] = {}
        for side, node in enumerate((x, y)):
            coefficients = node.op.coefficients if isinstance(node.op, Sum) else (1.0,) * len(node.operands)
            for c, operand in zip(coefficients, node.operands, strict=True):
                groups.setdefault((self._colours.of(operand), magnitude(c)), ([], []))[side].append(operand)
        moved = self._moved(x)
        return [_Group(tuple(a), tuple(b), moved) for a, b in groups.values()]

    def orders(self, x: Node, y: Node) -> list[tuple[Node, ...]]:
        """The orders of the operands of y in which its Einstein sum is that of x."""
        assert isinstance(x.op, Contract)
        assert isinstance(y.op, Contract)
        wanted, out = split_spec(x.op.spec)
        want = renamed(wanted, out)
        colours = [self._colours.of(z) for z in x.operands]
        inputs, out = split_spec(y.op.spec)
        found = []
        for order in permutations(range(len(inputs))):
            if renamed([inputs[i] for i in order], out) == want:
                operands = tuple(y.operands[i] for i in order)
                if [self._colours.of(z) for z in operands] == colours:
                    found.append(operands)
        return found

    # with which sign ----------------------------------------------------------------------------

    def _possible(self, pairs: Sequence[tuple[Node, Node]], sign: int) -> bool:
        """True if the matching takes the pairs to each other with that sign for some signs of the parameters."""
        bits: dict[Node, int] = {}
        equations: list[int] = []
        signs: dict[Node, int] = {}
        for x in sorted(self._to, key=lambda z: z.serial):
            y = self._to[x]
            if isinstance(x.op, Init) and not opaque(x):
                free = x.kind == "matrix" or is_symmetric(x.op.law)
                bits[x] = signs[x] = 1 << (len(bits) + 1) if free else 0
            elif x in self._still:
                signs[x] = 0
            else:
                signs[x] = self._sign(x, y, signs, equations)
        for x in self._still:
            equations += [bits[leaf] for leaf in self._support(x) if leaf in bits]
        total = _NEGATIVE if sign < 0 else 0
        for x, y in pairs:
            total ^= signs.get(unsigned(x), 0) ^ _own_sign(x) ^ _own_sign(y)
        return _solvable([*equations, total])

    def _sign(self, x: Node, y: Node, signs: Mapping[Node, int], equations: list[int]) -> int:
        found = [signs.get(unsigned(z), 0) ^ _own_sign(z) for z in x.operands]
        if isinstance(x.op, Sum):
            assert isinstance(y.op, Sum)
            other: dict[Node, int] = {}
            for c, z in zip(y.op.coefficients, y.operands, strict=True):
                own = _own_sign(z) ^ _NEGATIVE * (c < 0)
                if other.setdefault(self._base(z), own) != own:  # equal numbers of different signs
                    equations.append(_NEGATIVE)
            for i, (c, z) in enumerate(zip(x.op.coefficients, x.operands, strict=True)):
                base = self._base(z)
                found[i] ^= other[self._to.get(base, base)] ^ _NEGATIVE * (c < 0)
        else:  # their sum does not depend on the order
            found = [s ^ _own_sign(z) for s, z in zip(found, y.operands, strict=True)]
        if isinstance(x.op, Sum | Concat):
            equations += [s ^ found[0] for s in found[1:]]
            return found[0]
        if isinstance(x.op, Map):
            match nonlin.parity(x.op.fn, x.op.order, **dict(x.op.params)):
                case "odd":
                    return found[0]
                case "even":
                    return 0
            equations.append(found[0])
            return 0
        total = 0
        for s in found:
            total ^= s
        return total

    def _base(self, node: Node) -> Node:
        return self._colours.scalar(node) if node.kind == "scalar" else unsigned(node)


def _own_sign(node: Node) -> int:
    negative = 0
    while is_sign(node):
        assert isinstance(node.op, Sum)
        negative ^= _NEGATIVE * (node.op.coefficients[0] < 0)
        node = node.operands[0]
    return negative


def _solvable(equations: Sequence[int]) -> bool:
    """True if unknown bits exist with which all sums of bits are zero; the lowest bit of an equation is a constant."""
    basis: list[int] = []
    for x in equations:
        for y in basis:
            x = min(x, x ^ y)
        if x == _NEGATIVE:
            return False
        if x:
            basis = sorted([*basis, x], reverse=True)
    return True


def _chained(goals: Sequence[_Pair], rest: Goals) -> Goals:
    for goal in goals:
        rest = (goal, rest)
    return rest


def _without(nodes: tuple[Node, ...], x: Node) -> tuple[Node, ...]:
    i = nodes.index(x)
    return nodes[:i] + nodes[i + 1 :]


def _never(node: Node) -> bool:
    return False
