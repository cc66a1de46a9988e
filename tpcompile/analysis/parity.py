"""Which moments are exactly zero, decided from the program (theory, section 4).

Flipping the sign of one initial parameter of symmetric law maps the program to itself. A value that
changes sign under a flip is odd in that parameter; a moment of an odd summand is zero. Scalars
count as constants: a moment is conditional on them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import product

from tpcompile import nonlin
from tpcompile.ir import Concat, Contract, Init, Map, MatMul, Mul, Node, Sum, reachable
from tpcompile.laws import is_symmetric

_MOST = 64  # summands of distinct parity that are kept apart; beyond that they are joined


@dataclass(frozen=True)
class Signature:
    """Parameters in which a summand is odd, and those in which it is neither odd nor even."""

    odd: frozenset[str] = frozenset()
    mixed: frozenset[str] = frozenset()

    def __mul__(self, other: Signature) -> Signature:
        mixed = self.mixed | other.mixed
        return Signature((self.odd ^ other.odd) - mixed, mixed)


EVEN = Signature()


@dataclass
class Parity:
    """Signatures of the top-level summands of every node, found once each."""

    _known: dict[Node, frozenset[Signature]] = field(default_factory=dict)

    def signatures(self, node: Node) -> frozenset[Signature]:
        """The distinct signatures of the top-level summands of a value."""
        stack = [node]
        while stack:  # a loop in place of recursion: programs of many steps are deep
            top = stack[-1]
            missing = [x for x in top.operands if x not in self._known] if top.kind != "scalar" else []
            if missing and top not in self._known:
                stack.extend(missing)
                continue
            if top not in self._known:
                self._known[top] = self._find(top)
            stack.pop()
        return self._known[node]

    def vanishes(self, *factors: Node) -> bool:
        """True if the mean over the coordinates of the product of these values is zero for reasons of sign.

        Looks at the pairs of top-level summands only: nothing is multiplied out.
        """
        return all(signature.odd for signature in self.products(factors))

    def products(self, factors: tuple[Node, ...]) -> frozenset[Signature]:
        """The distinct signatures of the products of one summand of each factor."""
        out = frozenset([EVEN])
        for factor in factors:
            out = frozenset(a * b for a, b in product(out, self.signatures(factor)))
            if len(out) > _MOST:
                out = frozenset([_join(out)])
        return out

    def _find(self, node: Node) -> frozenset[Signature]:
        op = node.op
        if isinstance(op, Init):
            odd = node.kind == "matrix" or (node.kind == "vector" and is_symmetric(op.law))
            return frozenset([Signature(frozenset([op.name]))]) if odd else frozenset([EVEN])
        if node.kind == "scalar" or not node.operands:
            return frozenset([EVEN])
        if isinstance(op, Sum | Concat):
            out = frozenset().union(*(self.signatures(x) for x in node.operands))
            return out if len(out) <= _MOST else frozenset([_join(out)])
        if isinstance(op, Mul | MatMul | Contract):
            return self.products(node.operands)
        if isinstance(op, Map):
            joined = _join(self.signatures(node.operands[0]))
            match nonlin.parity(op.fn, op.order, **dict(op.params)):
                case "odd":
                    return frozenset([joined])
                case "even":
                    return frozenset([Signature(frozenset(), joined.mixed)])
                case _:
                    return frozenset([Signature(frozenset(), joined.mixed | joined.odd)])
        return self.signatures(node.operands[0])  # what is left only moves entries


class LocalParity(Parity):
    """Flips of one family of Gaussians on one axis: what a matrix was multiplied with is held fixed.

    A sum whose summand is odd under such a flip has mean zero whatever the Gram matrices of the families are; a
    summand that is odd only through the inputs of its products has not, and sees the fluctuations of their Grams.
    """

    def _find(self, node: Node) -> frozenset[Signature]:
        if not isinstance(node.op, MatMul):
            return super()._find(node)
        matrix, x = node.operands
        transpose = node.op.transpose
        own = Signature(frozenset([f"{getattr(matrix.op, 'name', '')} {'transposed' if transpose else ''}"]))
        out = {own}
        for other in reachable([x]):  # the response: combinations of what the other side was multiplied with
            if isinstance(other.op, MatMul) and other.operands[0] is matrix and other.op.transpose != transpose:
                out |= self.signatures(other.operands[1])
        return frozenset(out)


def _join(signatures: frozenset[Signature]) -> Signature:
    """The parity of a sum as a whole: odd where all summands are odd, even where all are even."""
    if not signatures:
        return EVEN
    odd = frozenset.intersection(*(s.odd for s in signatures))
    some = frozenset.union(*(s.odd for s in signatures))
    mixed = frozenset.union(*(s.mixed for s in signatures))
    mixed |= some - odd
    return Signature(odd - mixed, mixed)
