"""Which moments are zero, and which are equal, because parameters of one law are exchangeable (theory, section 4).

The mean of ``relu(A x) - relu(B x)`` is zero though nothing in it is odd: its summands have equal means, since A and B
have one law. So a moment is a sum over products of one top-level summand of each factor; products that are equal in law
up to sign (:mod:`~tpcompile.analysis.isomorphism`) count as one, with the sum of their coefficients, and those that are
equal in law to their own negative count as zero.

Two moments that are equal in law are one number: the first that was met stands for both.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product

from torch import Tensor

from tpcompile import nonlin
from tpcompile.analysis.blocks import Support
from tpcompile.analysis.colours import Colour, Colours, below, opaque
from tpcompile.analysis.isomorphism import Matcher
from tpcompile.analysis.memo import bottom_up
from tpcompile.analysis.parity import Parity
from tpcompile.ir import Concat, Contract, Expand, Map, Mul, Node, Permute, Sum, View

_MOST = 256  # products of summands
_MOST_FAILURES = 4  # moments of one colour that are no match, before no more are tried
_ROUNDING = 1e-9  # of coefficients
_LAST = 1 << 40  # serial numbers of what is no node of the program: after all that is

Summand = tuple[float, Node]


class Exchange:
    """Remembers colours and moments from one question to the next."""

    def __init__(self, parity: Parity, support: Support, data: Mapping[str, Tensor]) -> None:
        self._parity = parity
        self._colours = Colours(data)
        self._support = support
        self._signs: dict[Node, int] = {}
        self._parts: dict[tuple[Node, tuple[Node, ...]], Node] = {}
        self._representatives: dict[int, list[Node]] = defaultdict(list)

    def vanishes(self, nodes: Sequence[Node]) -> bool:
        """True if the product of these values has mean zero over the width, by exchanges and signs of parameters."""
        lists = [self._summands(x) for x in nodes]
        if math.prod(map(len, lists)) > _MOST:
            return False
        alike: dict[tuple[Colour, ...], list[tuple[float, tuple[Node, ...]]]] = defaultdict(list)
        for choice in product(*lists):
            factors = tuple(x for _, x in choice)
            alike[tuple(map(self._colours.of, factors))].append((math.prod(c for c, _ in choice), factors))
        return all(self._cancel(group) for group in alike.values())

    def _cancel(self, products: Sequence[tuple[float, tuple[Node, ...]]]) -> bool:
        """True if the means of products of equal colours add up to zero."""
        left = [(c, factors) for c, factors in products if not self._parity.vanishes(*factors)]
        if not _is_zero([c * self._at_rest(factors) for c, factors in left]):
            return False
        classes: list[tuple[tuple[Node, ...], list[float]]] = []
        for c, factors in left:
            for known, coefficients in classes:
                sign = self._sign(factors, known)
                if sign:
                    coefficients.append(sign * c)
                    break
            else:
                classes.append((factors, [c]))
        return all(
            _is_zero(coefficients) or self._sign(factors, factors, wanted=-1) == -1 for factors, coefficients in classes
        )

    def representative(self, moment: Node) -> tuple[float, Node]:
        """The first moment met that is equal in law, and the sign with which it is; itself if there is none."""
        assert isinstance(moment.op, Contract)
        known = self._representatives[self._colours.of_moment(moment)]
        if moment in known:
            return 1.0, moment
        for other in known[:_MOST_FAILURES]:
            sign = self._matched(moment, other)
            if sign:
                return float(sign), other
        known.append(moment)
        return 1.0, moment

    def _matched(self, a: Node, b: Node) -> int:
        matcher = Matcher(self._colours, self._support)
        for order in matcher.orders(a, b):
            sign = matcher.sign(list(zip(a.operands, order, strict=True)))
            if sign:
                return sign
        return 0

    def _sign(self, a: tuple[Node, ...], b: tuple[Node, ...], wanted: int = 0) -> int:
        """The sign with which two products of summands of the same factors are equal in law; 0 for none."""
        if any(self._colours.of(x) != self._colours.of(y) for x, y in zip(a, b, strict=True)):
            return 0
        matcher = Matcher(self._colours, self._support)
        return matcher.sign(list(zip(a, b, strict=True)), wanted, lambda x: self._sign_at_rest(x) == 0)

    # summands ----------------------------------------------------------------------------------

    def _summands(self, node: Node) -> list[Summand]:
        """The top-level summands of a value, in whatever shape, and those of the factors of a product."""
        op = node.op
        if node.kind == "scalar":
            return [(1.0, node)]
        if isinstance(op, Sum):
            items = zip(op.coefficients, node.operands, strict=True)
            return [(c * own, y) for c, x in items for own, y in self._summands(x)]
        if isinstance(op, View | Permute | Expand):
            found = self._summands(node.operands[0])
            return [(c, self._formal(node, (x,))) for c, x in found] if len(found) > 1 else [(1.0, node)]
        if isinstance(op, Mul):
            lists = [_alone(x) if self._sign_at_rest(x) == 0 else [(1.0, x)] for x in node.operands]
            if 1 < math.prod(map(len, lists)) <= _MOST:
                return [
                    (math.prod(c for c, _ in choice), self._formal(node, tuple(x for _, x in choice)))
                    for choice in product(*lists)
                ]
        return [(1.0, node)]

    def _formal(self, node: Node, operands: tuple[Node, ...]) -> Node:
        """The instruction of a node on summands of its operands: a part of its value that is no node of the program."""
        key = node, operands
        if key not in self._parts:
            self._parts[key] = Node(node.op, operands, node.dims, _LAST + len(self._parts))
        return self._parts[key]

    # a quick test ------------------------------------------------------------------------------

    def _sign_at_rest(self, node: Node) -> int:
        """The sign of the program's value where all parameters of a law are one number; 0 if it is zero there.

        An exchange moves nothing there: what it turns into its negative is zero. Never the reason for a verdict.
        """
        return bottom_up(node, self._signs, below, self._find)

    def _at_rest(self, factors: Sequence[Node]) -> float:
        return math.prod(self._sign_at_rest(x) * _number(self._colours.of(x)) for x in factors)

    def _find(self, node: Node) -> int:
        op = node.op
        if opaque(node) or not node.operands:
            return 1
        if isinstance(op, Sum | Concat):
            coefficients = op.coefficients if isinstance(op, Sum) else (1.0,) * len(node.operands)
            terms = [c * self._at_rest([x]) for c, x in zip(coefficients, node.operands, strict=True)]
            total = math.fsum(terms)
            return 0 if _is_zero(terms) else int(math.copysign(1, total))
        if isinstance(op, Map) and nonlin.parity(op.fn, op.order, **dict(op.params)) != "odd":
            return 1
        return math.prod(map(self._sign_at_rest, node.operands))


def _alone(node: Node) -> list[Summand]:
    if node.kind == "scalar" or not isinstance(node.op, Sum):
        return [(1.0, node)]
    return list(zip(node.op.coefficients, node.operands, strict=True))


def _is_zero(terms: Sequence[float]) -> bool:
    return abs(math.fsum(terms)) <= _ROUNDING * math.fsum(map(abs, terms))


def _number(colour: int) -> float:
    """A number between 1 and 2 that stands for a colour."""
    return 1 + (colour * 0.6180339887498949) % 1
