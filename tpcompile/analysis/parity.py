"""Which moments are exactly zero, decided from the program (theory, section 4).

Flipping the sign of one initial parameter of symmetric law maps the program to itself. A value that
changes sign under a flip is odd in that parameter; a moment of an odd summand is zero. Scalars
count as constants: a moment is conditional on them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product

from tpcompile import nonlin
from tpcompile.analysis.memo import bottom_up
from tpcompile.ir import (
    Concat,
    Contract,
    Dims,
    Entries,
    Expand,
    Init,
    Map,
    MatMul,
    Mul,
    Node,
    Outer,
    Permute,
    Sum,
    Width,
    reachable,
    split_spec,
    width_positions,
)
from tpcompile.laws import is_symmetric

_SIDES = (" of rows", " of columns")  # marks of the two independent copies in a value on pairs
_SWAP = {_SIDES[0]: _SIDES[1], _SIDES[1]: _SIDES[0]}
_ENTRIES = " of entries"  # mark of the third copy: the entries of an initial matrix themselves
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
        return bottom_up(node, self._known, lambda x: x.operands if x.kind != "scalar" else (), self._find)

    def vanishes(self, *factors: Node) -> bool:
        """True if the mean over the coordinates of the product of these values is zero for reasons of sign.

        Looks at the pairs of top-level summands only: nothing is multiplied out.
        """
        return all(signature.odd for signature in self.products(factors))

    def vanishing_axes(self, spec: str, nodes: Sequence[Node]) -> int:
        """How many of the width axes that a sum of values on pairs averages over have mean zero for reasons of sign.

        The coordinates of the two axes are independent copies: the signs of each may be flipped with the other's fixed.
        """
        inputs, out = split_spec(spec)
        pairs = next((x, word) for x, word in zip(nodes, inputs, strict=True) if x.kind == "matrix")
        letters = [letter for letter, d in zip(pairs[1], pairs[0].dims, strict=True) if isinstance(d, Width)]
        found = frozenset([EVEN])
        for node, word in zip(nodes, inputs, strict=True):
            found = self._together([found, self._on_pairs(node, word, letters)])
        summed = [i for i, letter in enumerate(letters) if letter not in out]

        def vanishes(side: str) -> bool:
            return all(any(_side(name) == side or name.endswith(_ENTRIES) for name in s.odd) for s in found)

        return sum(vanishes(_SIDES[i]) for i in summed)

    def _on_pairs(self, node: Node, word: str, letters: Sequence[str]) -> frozenset[Signature]:
        """Signatures in terms of the copies that the letters name."""
        at = [letters.index(letter) for letter, d in zip(word, node.dims, strict=True) if isinstance(d, Width)]
        if node.kind == "matrix":
            return self.signatures(node) if at == [0, 1] else _renamed(self.signatures(node), _SWAP)
        return _renamed(self.signatures(node), {"": _SIDES[at[0]]}) if at else frozenset([EVEN])

    def products(self, factors: tuple[Node, ...]) -> frozenset[Signature]:
        """The distinct signatures of the products of one summand of each factor."""
        return self._together([self.signatures(factor) for factor in factors])

    def _together(self, lists: Sequence[frozenset[Signature]]) -> frozenset[Signature]:
        out = frozenset([EVEN])
        for signatures in lists:
            out = frozenset(a * b for a, b in product(out, signatures))
            if len(out) > _MOST:
                out = frozenset([_join(out)])
        return out

    def _broadcast(self, x: Node, dims: Dims) -> frozenset[Signature]:
        """Signatures of an operand of a pointwise operation on pairs."""
        if x.kind != "vector":
            return self.signatures(x)
        (place,) = width_positions(x.dims)
        at = width_positions(dims).index(place + len(dims) - len(x.dims))
        return _renamed(self.signatures(x), {"": _SIDES[at]})

    def _pointwise_pairs(self, node: Node) -> frozenset[Signature]:
        lists = [self._broadcast(x, node.dims) for x in node.operands]
        if isinstance(node.op, Mul):
            return self._together(lists)
        out = frozenset().union(*lists)
        return out if len(out) <= _MOST else frozenset([_join(out)])

    def _contracted_pairs(self, node: Node, spec: str) -> frozenset[Signature]:
        """What is left of a sum over one axis of pairs: the signs of the other axis, if it stays."""
        inputs, out = split_spec(spec)
        pairs = next((x, word) for x, word in zip(node.operands, inputs, strict=True) if x.kind == "matrix")
        letters = [letter for letter, d in zip(pairs[1], pairs[0].dims, strict=True) if isinstance(d, Width)]
        found = self._together(
            [self._on_pairs(x, word, letters) for x, word in zip(node.operands, inputs, strict=True)]
        )
        kept = [letter for letter in out if letter in letters]
        if len(kept) == 2:
            return found if kept == letters else _renamed(found, _SWAP)
        if not kept:
            return frozenset([EVEN])
        side = _SIDES[letters.index(kept[0])]
        return frozenset(_one_side(x, side) for x in found)

    def _find(self, node: Node) -> frozenset[Signature]:
        op = node.op
        if isinstance(op, Init):
            odd = node.kind == "matrix" or (node.kind == "vector" and is_symmetric(op.law))
            return frozenset([Signature(frozenset([op.name]))]) if odd else frozenset([EVEN])
        if node.kind == "scalar" or not node.operands:
            return frozenset([EVEN])
        if isinstance(op, Sum | Concat) and node.kind != "matrix":
            out = frozenset().union(*(self.signatures(x) for x in node.operands))
            return out if len(out) <= _MOST else frozenset([_join(out)])
        if isinstance(op, Entries):
            return frozenset([Signature(frozenset([f"{getattr(node.operands[0].op, 'name', '')}{_ENTRIES}"]))])
        if isinstance(op, Outer):
            u, v = (self.signatures(x) for x in node.operands)
            return self._together([_renamed(u, {"": _SIDES[0]}), _renamed(v, {"": _SIDES[1]})])
        if isinstance(op, Mul | Sum) and node.kind == "matrix":
            return self._pointwise_pairs(node)
        if isinstance(op, Contract) and any(x.kind == "matrix" for x in node.operands):
            return self._contracted_pairs(node, op.spec)
        if isinstance(op, Permute) and node.kind == "matrix":
            (x,) = node.operands
            growing = [i for i in op.order if isinstance(x.dims[i], Width)]
            return self.signatures(x) if growing == sorted(growing) else _renamed(self.signatures(x), _SWAP)
        if isinstance(op, Expand) and node.kind == "matrix" and node.operands[0].kind == "vector":
            return self._broadcast(node.operands[0], node.dims)
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


def _side(name: str) -> str:
    return next((side for side in _SIDES if name.endswith(side)), "")


def _one_side(x: Signature, side: str) -> Signature:
    """What is odd or mixed in one of the copies, as a vector on that copy alone.

    A sum of entries of an initial matrix goes with the products with it: it changes sign with the matrix where what it
    is summed with does not.
    """
    odd, mixed = (frozenset(n.removesuffix(side) for n in names if _side(n) == side) for names in (x.odd, x.mixed))
    flips, unclear = (
        frozenset(n.removesuffix(_ENTRIES) for n in names if n.endswith(_ENTRIES)) for names in (x.odd, x.mixed)
    )
    (other,) = (s for s in _SIDES if s != side)
    unclear |= frozenset(n for n in flips if n + other in x.odd | x.mixed)
    return Signature(odd, mixed) * Signature(flips - unclear, unclear)


def _renamed(signatures: frozenset[Signature], marks: Mapping[str, str]) -> frozenset[Signature]:
    """Signatures with the marks of their parameters' names exchanged."""

    def moved(names: frozenset[str]) -> frozenset[str]:
        return frozenset(n.removesuffix(_side(n)) + marks.get(_side(n), _side(n)) for n in names)

    return frozenset(Signature(moved(s.odd), moved(s.mixed)) for s in signatures)


def _join(signatures: frozenset[Signature]) -> Signature:
    """The parity of a sum as a whole: odd where all summands are odd, even where all are even."""
    if not signatures:
        return EVEN
    odd = frozenset.intersection(*(s.odd for s in signatures))
    some = frozenset.union(*(s.odd for s in signatures))
    mixed = frozenset.union(*(s.mixed for s in signatures))
    mixed |= some - odd
    return Signature(odd - mixed, mixed)
