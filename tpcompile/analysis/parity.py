"""Which moments are exactly zero, decided from the program (theory, section 4).

Two kinds of flips leave the law of everything as it is: an initial parameter of symmetric law changes its sign, and
all that is computed from it follows; or, in the limit, one generator by itself does (the coordinates of an initial
vector, the Gaussians Ẑ of the products with one side of an initial matrix), since generators are independent and their
laws symmetric. Any number of them may be flipped together. A moment of a summand that some of these flips turn into its
negative is zero. Scalars count as constants: a moment is conditional on them.

The Gaussians of the products with one side of a matrix are as many generators as there are parts of them that are
uncorrelated for reasons of sign. A moment that vanishes under flips of all of these together does so whatever their
Gram matrices are; one that vanishes only under others sees the fluctuations of their Grams.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import product
from operator import or_, xor

from tpcompile import nonlin
from tpcompile.analysis.flips import (
    COLUMNS,
    ENTRIES,
    EVEN,
    GLOBAL,
    LOCAL,
    OWN,
    ROWS,
    Signature,
    averaged,
    joined,
    moved,
    only,
    spanned,
)
from tpcompile.analysis.memo import bottom_up
from tpcompile.ir import (
    Concat,
    Contract,
    Dims,
    Entries,
    Expand,
    Gaussian,
    Init,
    Map,
    MatMul,
    Mul,
    Node,
    Outer,
    Permute,
    Sum,
    Width,
    split_spec,
    width_positions,
)
from tpcompile.laws import is_symmetric

_SIDES = (ROWS, COLUMNS)
_MOST = 64  # summands of distinct parity that are kept apart; beyond that they are joined

Signatures = frozenset[Signature]


@dataclass
class Parity:
    """Signatures of the top-level summands of every node, found once each."""

    _known: dict[Node, Signatures] = field(default_factory=dict)
    _vanishing: dict[tuple[Node, ...], bool] = field(default_factory=dict)
    _bytes: dict[str, int] = field(default_factory=dict)  # of every name
    _products: dict[tuple[Node, bool], list[Node]] = field(default_factory=dict)  # met so far, by matrix and side
    _below: dict[Node, int] = field(default_factory=dict)  # products that a vector is a function of, a bit each
    _bits: dict[Node, int] = field(default_factory=dict)
    _generators: dict[Node, frozenset[int]] = field(default_factory=dict)  # of the Ẑ of products

    def signatures(self, node: Node) -> Signatures:
        """The distinct signatures of the top-level summands of a value."""
        return bottom_up(node, self._known, _operands, self._find)

    def vanishes(self, *factors: Node) -> bool:
        """True if the mean over the coordinates of the product of these values is zero for reasons of sign.

        Looks at the pairs of top-level summands only: nothing is multiplied out.
        """
        if factors not in self._vanishing:
            *most, last = (self.signatures(x) for x in factors)
            found = _together(most)
            self._vanishing[factors] = found.isdisjoint(last) and all((a * b).odd for a, b in product(found, last))
        return self._vanishing[factors]

    def centred(self, *factors: Node) -> bool:
        """True if that mean is zero whatever the Gram matrices of the Gaussians are.

        By flips of generators alone, those of all Gaussians of one side of a matrix together.
        """
        found = self.products(factors)
        families = [frozenset().union(*(self._generators[g] for g in family)) for family in self._products.values()]

        def together(y: int, add: Callable[[int, int], int]) -> int:
            for first, *others in map(sorted, families):
                for x in others:
                    y = add(y & ~x, first) if y & x else y
            return only(LOCAL, y)

        def odd(x: Signature) -> bool:
            space = spanned(together(x.mixed.units, or_), *(together(y, xor) for y in x.mixed.sums))
            return space.reduced(together(x.odd, xor)) != 0

        return all(map(odd, found))

    def orthogonal(self, a: Sequence[Node], b: Sequence[Node]) -> bool:
        """True if flips of parameters make two sums over different axes uncorrelated, each of a product of values."""
        found = [self.products(x) for x in (a, b)]
        return all((x * y).restricted(GLOBAL).odd for x, y in product(*found))

    def odd_beyond(self, node: Node, touched: frozenset[str]) -> bool:
        """True if flips of parameters that are not among these change the sign of every summand."""
        beyond = sum(only(GLOBAL, 0xFF << at) for name, at in self._bytes.items() if name not in touched)

        def odd(x: Signature) -> bool:
            units, *sums = (y & beyond for y in x.mixed.members())
            return spanned(units, *sums).reduced(x.odd & beyond) != 0

        return all(odd(x) for x in self.signatures(node))

    def gaussian(self, node: Node) -> Signatures:
        """Signatures of Ẑ of a product with an initial matrix, for the summands of what the matrix is multiplied with.

        Its sign follows that of the vector under flips of parameters; what the matrix was multiplied with is held
        fixed where generators are flipped by themselves.
        """
        self.signatures(node)
        return self._gaussian(node)

    def _gaussian(self, node: Node) -> Signatures:
        matrix, x = node.operands
        own = self._bit(init_name(matrix), GLOBAL)
        kept = {s.restricted(GLOBAL) for s in self.signatures(x)}
        return frozenset(
            Signature(s.mixed.reduced(s.odd ^ own ^ y), s.mixed) for s, y in product(kept, self._generators[node])
        )

    def derivative_vanishes(self, gaussian: Node, x: Node) -> bool:
        """True if signs make ``E[dZ^x / dẐ]`` zero for the Gaussian Ẑ of a product.

        By Stein's lemma: if ``E[Ẑ' Z^x]`` is zero for it and all that are correlated with it and that x is a function
        of.
        """
        self.signatures(x)
        below = self._products_of(x)
        assert isinstance(gaussian.op, MatMul)
        family = self._products[gaussian.operands[0], gaussian.op.transpose]
        generators, size = self._generators[gaussian], 0
        while len(generators) > size:  # with all that is correlated with one that is correlated, and so on
            size = len(generators)
            linked = [self._generators[g] for g in family if self._generators[g] & generators]
            generators = generators.union(*linked)
        near = [g for g in family if self._generators[g] & generators and (below & self._bits[g] or g is gaussian)]
        return all((a * b).odd for g in near for a, b in product(self._gaussian(g), self.signatures(x)))

    def names(self, signature: Signature) -> frozenset[str]:
        """Parameters and generators of which the sign of an odd summand is the product of signs."""
        found = only(GLOBAL, signature.odd) or signature.odd
        return frozenset(name for name, at in self._bytes.items() if found >> at & 0xFF)

    def vanishing_axes(self, spec: str, nodes: Sequence[Node]) -> int:
        """How many of the width axes that a sum of values on pairs averages over have mean zero for reasons of sign.

        The coordinates of the two axes are independent copies: the signs of each may be flipped with the other's fixed.
        A mean over both that is zero where that over either is not leaves a sum over one axis of mean zero.
        """
        inputs, out = split_spec(spec)
        pairs = next((x, word) for x, word in zip(nodes, inputs, strict=True) if x.kind == "matrix")
        letters = [letter for letter, d in zip(pairs[1], pairs[0].dims, strict=True) if isinstance(d, Width)]
        found = _together([self._on_pairs(x, word, letters) for x, word in zip(nodes, inputs, strict=True)])
        summed = [side for side, letter in zip(_SIDES, letters, strict=True) if letter not in out]
        alone = sum(all(s.restricted(side | ENTRIES).odd for s in found) for side in summed)
        return max(alone, len(summed) == 2 and all(s.odd for s in found))

    def products(self, factors: Sequence[Node]) -> Signatures:
        """The distinct signatures of the products of one summand of each factor."""
        return _together([self.signatures(factor) for factor in factors])

    # one node from its operands ------------------------------------------------------------

    def _bit(self, name: str, half: int = 0xFF) -> int:
        return only(OWN & half, 0xFF << self._bytes.setdefault(name, 8 * len(self._bytes)))

    def _find(self, node: Node) -> Signatures:
        op = node.op
        if isinstance(op, Init):
            odd = node.kind == "vector" and is_symmetric(op.law)
            return frozenset([Signature(self._bit(op.name))]) if odd else frozenset([EVEN])
        if node.kind == "scalar" or not node.operands:
            return frozenset([EVEN])
        if isinstance(op, MatMul):
            return self._product(node)
        if isinstance(op, Sum | Concat) and node.kind != "matrix":
            return _bounded(frozenset().union(*(self.signatures(x) for x in node.operands)))
        if isinstance(op, Entries):
            flip = self._bit(init_name(node.operands[0]), GLOBAL)
            return frozenset([Signature(moved(flip, OWN, ENTRIES))])
        if isinstance(op, Outer):
            u, v = (self.signatures(x) for x in node.operands)
            return _together([_renamed(u, OWN, ROWS), _renamed(v, OWN, COLUMNS)])
        if isinstance(op, Mul | Sum) and node.kind == "matrix":
            lists = [self._broadcast(x, node.dims) for x in node.operands]
            return _together(lists) if isinstance(op, Mul) else _bounded(frozenset().union(*lists))
        if isinstance(op, Contract) and any(x.kind == "matrix" for x in node.operands):
            return self._contracted_pairs(node, op)
        if isinstance(op, Permute) and node.kind == "matrix":
            (x,) = node.operands
            growing = [i for i in op.order if isinstance(x.dims[i], Width)]
            return self.signatures(x) if growing == sorted(growing) else _swapped(self.signatures(x))
        if isinstance(op, Expand) and node.kind == "matrix" and node.operands[0].kind == "vector":
            return self._broadcast(node.operands[0], node.dims)
        if isinstance(op, Mul | Contract):
            return self.products(node.operands)
        if isinstance(op, Map):
            whole = joined(self.signatures(node.operands[0]))
            match nonlin.parity(op.fn, op.order, **dict(op.params)):
                case "odd":
                    return frozenset([whole])
                case "even":
                    return frozenset([Signature(0, whole.mixed)])
                case _:
                    return frozenset([whole.forgotten()])
        return self.signatures(node.operands[0])  # what is left only moves entries

    def _product(self, node: Node) -> Signatures:
        """Of ``Ẑ + Ż``: under flips of parameters Ż has the sign of Ẑ, under those of generators that of what it is of.

        ``Ż^{Wx}`` is a sum of what the other side of W was multiplied with (theory, section 2).
        """
        assert isinstance(node.op, MatMul)
        matrix, x = node.operands
        transpose = node.op.transpose
        family = self._products.setdefault((matrix, transpose), [])
        self._bits[node] = 1 << len(self._bits)
        self._generators[node] = self._drawn(node, family)
        family.append(node)
        gaussian = _bounded(self._gaussian(node))
        out = set(gaussian)
        below = self._products_of(x)
        for other in self._products.get((matrix, not transpose), ()):
            if below & self._bits[other] and not self.derivative_vanishes(other, x):
                responses = {s.restricted(LOCAL) for s in self.signatures(other.operands[1])}
                out |= {g.restricted(GLOBAL) * y for g, y in product(gaussian, responses)}
        return _bounded(frozenset(out))

    def _drawn(self, node: Node, family: Sequence[Node]) -> frozenset[int]:
        """What Ẑ of a product is a sum of: independent families of Gaussians.

        Those of earlier products of the same side that it is correlated with; where these are none, one of its own.
        """
        matrix, x = node.operands
        assert isinstance(node.op, MatMul)
        met = frozenset().union(*(self._generators[g] for g in family if not self.vanishes(g.operands[1], x)))
        count = len(frozenset().union(*(self._generators[g] for g in family)))
        side = "transposed " * node.op.transpose
        return met or frozenset([self._bit(f"{init_name(matrix)} {side}{count}", LOCAL)])

    def _products_of(self, x: Node) -> int:
        """The products with initial matrices that a vector is a function of, a bit each."""
        return bottom_up(x, self._below, _operands, self._products_below)

    def _products_below(self, node: Node) -> int:
        found = self._bits.get(node, 0)
        for x in _operands(node):
            found |= self._below[x]
        return found

    def _on_pairs(self, node: Node, word: str, letters: Sequence[str]) -> Signatures:
        """Signatures in terms of the copies that the letters name."""
        at = [letters.index(letter) for letter, d in zip(word, node.dims, strict=True) if isinstance(d, Width)]
        found = self.signatures(node)
        if node.kind == "matrix":
            return found if at == [0, 1] else _swapped(found)
        return _renamed(found, OWN, _SIDES[at[0]]) if at else frozenset([EVEN])

    def _broadcast(self, x: Node, dims: Dims) -> Signatures:
        """Signatures of an operand of a pointwise operation on pairs."""
        if x.kind != "vector":
            return self.signatures(x)
        (place,) = width_positions(x.dims)
        at = width_positions(dims).index(place + len(dims) - len(x.dims))
        return _renamed(self.signatures(x), OWN, _SIDES[at])

    def _contracted_pairs(self, node: Node, op: Contract) -> Signatures:
        """What is left of a sum over one axis of pairs: the signs of the other axis, if it stays."""
        inputs, out = split_spec(op.spec)
        pairs = next((x, word) for x, word in zip(node.operands, inputs, strict=True) if x.kind == "matrix")
        letters = [letter for letter, d in zip(pairs[1], pairs[0].dims, strict=True) if isinstance(d, Width)]
        found = _together([self._on_pairs(x, word, letters) for x, word in zip(node.operands, inputs, strict=True)])
        kept = [letter for letter in out if letter in letters]
        if len(kept) == 2:
            return found if kept == letters else _swapped(found)
        if not kept:
            return frozenset([EVEN])
        at = letters.index(kept[0])
        gone = _SIDES[1 - at]
        fixed = isinstance(op, Gaussian)  # then what is gone is a draw, not a law
        return frozenset(self._one_side(x, _SIDES[at], gone, fixed) for x in found)

    def _one_side(self, x: Signature, side: int, gone: int, fixed: bool) -> Signature:
        """What is left of pairs on one copy alone.

        A sum of entries of an initial matrix goes with the products with it: it changes sign with the matrix where what
        it is summed with does not. What it is of other generators is not followed.
        """
        characters = (x.odd, *x.mixed.members())
        entries = 0
        for y in characters:
            entries |= moved(y, ENTRIES, OWN)
        if not entries:
            left = x.restricted(0xFF & ~gone) if fixed else averaged(x, gone)
            return left.mapped(lambda y: moved(y, side, OWN))
        unclear = sum(self._bit(name, LOCAL) for name in self._bytes)
        for y in characters:
            unclear |= entries & moved(y, gone, OWN)
        units = unclear | moved(x.mixed.units, side, OWN) | moved(x.mixed.units, ENTRIES, OWN)
        space = spanned(units, *(moved(y, side, OWN) ^ moved(y, ENTRIES, OWN) for y in x.mixed.sums))
        return Signature(space.reduced(moved(x.odd, side, OWN) ^ moved(x.odd, ENTRIES, OWN)), space)


def _operands(node: Node) -> Sequence[Node]:
    """What a vector is a function of: scalars are constants here, and an initial matrix has no variable of its own."""
    if node.kind == "scalar":
        return ()
    below = node.operands[1:] if isinstance(node.op, MatMul) else node.operands
    return [x for x in below if x.kind != "scalar"]


def init_name(matrix: Node) -> str:
    """The parameter whose initial value a node is."""
    assert isinstance(matrix.op, Init)
    return matrix.op.name


def _together(lists: Sequence[Signatures]) -> Signatures:
    out = frozenset([EVEN])
    for signatures in lists:
        out = signatures if out == {EVEN} else _times(out, signatures)
    return out


@lru_cache(maxsize=1 << 14)
def _times(a: Signatures, b: Signatures) -> Signatures:
    """The signatures of products of one summand of each; joined as soon as there are too many."""
    out: set[Signature] = set()
    for x, y in product(a, b):
        out.add(x * y)
        if len(out) > _MOST:
            return frozenset([joined(a) * joined(b)])
    return frozenset(out)


def _bounded(signatures: Signatures) -> Signatures:
    return signatures if len(signatures) <= _MOST else frozenset([joined(signatures)])


def _renamed(signatures: Signatures, source: int, target: int) -> Signatures:
    """Signatures of a vector as one of the copies of a value on pairs."""
    return frozenset(s.mapped(lambda y: moved(y, source, target)) for s in signatures)


def _swapped(signatures: Signatures) -> Signatures:
    """Signatures of a value on pairs with rows and columns exchanged."""

    def swap(y: int) -> int:
        return moved(y, ROWS, COLUMNS) | moved(y, COLUMNS, ROWS) | only(ENTRIES, y)

    return frozenset(s.mapped(swap) for s in signatures)
