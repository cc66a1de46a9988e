"""Which moments are zero because their factors are different blocks of one parameter.

The sign of one block of rows of an initial matrix (or of one block of an initial vector of symmetric law) may be
flipped as well as that of the whole: the law stays. So queries and keys that are two blocks of one product W x are
orthogonal at leading order, as those of two matrices are. Signs are followed entry by entry at a small width, where
splits, merges, slices and views are what they are at any width: an entry changes sign under a flip, keeps it, does
neither for certain, or is exactly zero. What is not known for certain never makes a zero.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from tpcompile import nonlin
from tpcompile.analysis.memo import bottom_up
from tpcompile.analysis.parity import Parity, init_name
from tpcompile.ir import (
    Concat,
    Contract,
    Expand,
    Init,
    Map,
    MatMul,
    MergeWidth,
    Mul,
    Node,
    Permute,
    Scatter,
    Slice,
    SplitWidth,
    Sum,
    Unslice,
    View,
    Width,
    reachable,
    split_spec,
    width_positions,
)
from tpcompile.laws import is_symmetric

Signs = np.ndarray  # (flips, *entries): +1 even, -1 odd, 0 not known, 2 exactly zero

_ZERO = 2
_UNITS = 4  # coordinates of the narrowest axis; more than one, so that blocks taken in two orders do not look alike
_MOST_SUMMANDS = 16
_MOST_ENTRIES = 2_000_000


@dataclass(frozen=True)
class _Flip:
    """A change of sign of the coordinates ``signs`` of one growing axis of an initial value."""

    node: Node
    axis: int
    signs: tuple[int, ...]


@dataclass
class Support:
    """Which initial values a vector depends on, not through scalars; found once for each."""

    _known: dict[Node, frozenset[Node]] = field(default_factory=dict)
    _uses_below: dict[Node, frozenset[tuple[Node, int]]] = field(default_factory=dict)
    _signs: dict[tuple[Node, Node, int, tuple[int, ...], int], int] = field(default_factory=dict)
    _apart: dict[tuple[frozenset[str], tuple[Node, ...], tuple[Node, ...]], bool] = field(default_factory=dict)

    def of(self, node: Node) -> frozenset[Node]:
        """The initial vectors and matrices below a vector."""
        return bottom_up(node, self._known, _vector_operands, self._find)

    def sign(self, node: Node, flip: _Flip, width: int) -> int:
        """The sign that a flip of rows gives a whole vector that depends on the same matrix; 0: not known.

        Where the matrix is met transposed too, as by gradients, rows and columns mix: not known.
        """
        uses = bottom_up(node, self._uses_below, _vector_operands, self._uses)
        if any(m is flip.node and out != flip.axis for m, out in uses):
            return 0
        key = (node, flip.node, flip.axis, flip.signs, width)
        if key not in self._signs:
            walk = _Walk(_vectors([node]), False, self, [flip], width)
            found = np.zeros(1) if walk.too_large else _joined(walk.summands(node))
            found = found[found != _ZERO]
            self._signs[key] = int(found.flat[0]) if found.size and bool((found == found.flat[0]).all()) else 0
        return self._signs[key]

    def apart(self, names: frozenset[str], kept: tuple[Node, ...], turned: tuple[Node, ...]) -> bool:
        """True if flips of rows of these parameters turn all of some vectors, and leave all rows that others have.

        These are ``kept``, which have entries of a single row each: their signs show which.
        """
        key = names, kept, turned
        if key not in self._apart:
            self._apart[key] = self._are_apart(names, kept, turned)
        return self._apart[key]

    def _are_apart(self, names: frozenset[str], kept: tuple[Node, ...], turned: tuple[Node, ...]) -> bool:
        vectors = _vectors([*kept, *turned])
        if not any(isinstance(x.op, SplitWidth) for x in vectors):
            return False
        walk = _Walk(vectors, False, self)
        met = {init_name(x) for x in _vectors(kept) if isinstance(x.op, Init)}
        flips = [(i, flip) for i, flip in enumerate(walk.flips) if init_name(flip.node) in names & met]

        def signs(nodes: tuple[Node, ...], pattern: tuple[int, ...]) -> set[int]:
            together = [i for i, flip in flips if flip.signs == pattern]
            return {int(s) for x in nodes for y in walk.summands(x) for s in np.unique(_all(y[together]))} - {_ZERO}

        patterns = {flip.signs for _, flip in flips}
        return not walk.too_large and any(signs(kept, p) == {1} and signs(turned, p) == {-1} for p in patterns)

    def _uses(self, node: Node) -> frozenset[tuple[Node, int]]:
        own = frozenset([(node.operands[0], _out_axis(node))]) if isinstance(node.op, MatMul) else frozenset()
        return own.union(*(self._uses_below[x] for x in _vector_operands(node)))

    def _find(self, node: Node) -> frozenset[Node]:
        own = frozenset([node]) if isinstance(node.op, Init) else frozenset()
        return own.union(*(self._known[x] for x in _vector_operands(node)))


def _all(signs: Signs) -> Signs:
    """The sign under all of these flips together."""
    zero = (signs == _ZERO).any(0)
    return np.where(zero, _ZERO, np.where(signs == _ZERO, 1, signs).prod(0)).astype(np.int8)


def _vector_operands(node: Node) -> list[Node]:
    return [x for x in node.operands if x.kind != "scalar"]


def hopeless(nodes: Sequence[Node], parity: Parity) -> bool:
    """True if the sign of some product of summands is plainly even or unknown: a square, or not odd and made without
    parts of an axis, or of sums over pairs.

    Quick, and spares most sums over the width the walk of :func:`vanishes`.
    """
    lists = [_tops(x) for x in nodes if x.kind == "vector"]
    if math.prod(map(len, lists)) > _MOST_SUMMANDS**2:
        return False
    for choice in product(*lists):
        if parity.vanishes(*choice):
            continue
        factors = [y for x in choice for y in _factors(x)]
        if len(lists) == 1 and all(n % 2 == 0 for n in Counter(factors).values()):
            return True
        if len(choice) == 2 and choice[0] is choice[1] and nodes[0] is nodes[1]:
            return True
        if not any(isinstance(x.op, SplitWidth) for x in _vectors(choice)):
            return True
        # nothing is known of the signs of a sum over pairs, and only an exact zero beside it could take it away
        open_ = [i for i, x in enumerate(factors) if _over_pairs(x)]
        beside = _vectors([x for i, x in enumerate(factors) if i not in open_[:1]])
        if open_ and not any(isinstance(x.op, Unslice | Scatter) for x in beside):
            return True
    return False


def _tops(node: Node) -> list[Node]:
    """The top-level summands of a vector, in whatever shape."""
    while isinstance(node.op, View | Permute | Expand):
        (node,) = node.operands
    if not isinstance(node.op, Sum):
        return [node]
    return [y for x in node.operands if x.kind != "scalar" for y in _tops(x)] + [
        x for x in node.operands if x.kind == "scalar"
    ]


def _factors(node: Node) -> list[Node]:
    while isinstance(node.op, View | Permute | Expand):
        (node,) = node.operands
    if not isinstance(node.op, Mul):
        return [node]
    return [y for x in node.operands if x.kind != "scalar" for y in _factors(x)]


def _over_pairs(node: Node) -> bool:
    return isinstance(node.op, Contract) and any(x.kind == "matrix" for x in node.operands)


def vanishes(spec: str, nodes: Sequence[Node], local: bool = False, support: Support | None = None) -> bool:
    """True if every entry of this Einstein sum over the width is zero for reasons of sign, block by block.

    Looks at what stands above the last products with initial matrices: signs below them mix. ``local`` holds fixed
    what matrices were multiplied with, as :class:`~tpcompile.analysis.parity.LocalParity` does. ``support`` remembers
    from one question to the next what values depend on.
    """
    vectors = _vectors(nodes)
    if not any(isinstance(x.op, SplitWidth) for x in vectors):
        return False
    walk = _Walk(vectors, local, support or Support())
    inputs, _ = split_spec(spec)
    operands = [(walk.summands(x), word) for x, word in zip(nodes, inputs, strict=True) if x.kind == "vector"]
    if not walk.flips or walk.too_large or math.prod(len(s) for s, _ in operands) > _MOST_SUMMANDS**2:
        return False
    for choice in product(*(s for s, _ in operands)):
        signs, _ = _together(choice, [word for _, word in operands])
        if not bool(((signs == -1) | (signs == _ZERO)).any(0).all()):
            return False
    return True


def _vectors(nodes: Sequence[Node]) -> list[Node]:
    """The vectors that values are made of down to products with initial matrices, and these matrices; operands first.

    Not through scalars, which are constants here, nor through sums over pairs, of whose signs nothing is known.
    """
    seen: set[Node] = set()
    stack = [x for x in nodes if x.kind != "scalar"]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            below = () if _over_pairs(node) else node.operands[:1] if isinstance(node.op, MatMul) else node.operands
            stack.extend(x for x in below if x.kind != "scalar")
    return sorted(seen, key=lambda x: x.serial)


class _Walk:
    """Signs of the top-level summands of every vector that some values are made of."""

    def __init__(
        self,
        vectors: list[Node],
        local: bool,
        support: Support,
        flips: list[_Flip] | None = None,
        width: int | None = None,
    ) -> None:
        widths = [d for x in vectors for d in x.dims if isinstance(d, Width)]
        self._width = _UNITS * math.lcm(*(d.ratio.denominator for d in widths)) if width is None else width
        self._local = local
        self._support = support
        self.flips = self._all_flips(vectors) if flips is None else flips
        sizes = (math.prod(self._shape(x)) for x in vectors if x.kind == "vector")
        self.too_large = len(self.flips) * max(sizes, default=0) > _MOST_ENTRIES
        self._known: dict[Node, list[Signs]] = {}
        for x in vectors if not self.too_large else []:
            if x.kind == "vector":
                self._known[x] = self._find(x)

    def summands(self, node: Node) -> list[Signs]:
        """One array of signs for each top-level summand."""
        found = self._known.get(node)
        return [np.ones((len(self.flips), *self._shape(node)), np.int8)] if found is None else found

    def _shape(self, node: Node) -> tuple[int, ...]:
        return tuple(int(d.ratio * self._width) if isinstance(d, Width) else d for d in node.dims)

    def _all_flips(self, vectors: list[Node]) -> list[_Flip]:
        splits = {
            (x.operands[0].dims[x.op.axis], x.op.parts, x.op.inner) for x in vectors if isinstance(x.op, SplitWidth)
        }
        out: list[_Flip] = []
        rows = {(x.operands[0], _out_axis(x)) for x in vectors if isinstance(x.op, MatMul)}
        for node in vectors:
            if not isinstance(node.op, Init) or (node.kind == "vector" and not is_symmetric(node.op.law)):
                continue
            for axis in width_positions(node.dims):
                if node.kind == "matrix" and (node, axis) not in rows:
                    continue  # blocks of what is contracted mix
                size = self._shape(node)[axis]
                patterns = {(-1,) * size}
                for width, parts, inner in splits:
                    if width == node.dims[axis]:
                        index = np.arange(size)
                        of = index % parts if inner else index // (size // parts)
                        patterns |= {tuple(np.where(of == b, -1, 1).tolist()) for b in range(parts)}
                out += [_Flip(node, axis, signs) for signs in sorted(patterns)]
        return out

    def _find(self, node: Node) -> list[Signs]:
        op, shape = node.op, self._shape(node)
        match op:
            case Init():
                return [self._start(node, shape)]
            case MatMul():
                return [self._product(node)]
            case Sum():
                found = [self._spread(x, shape) for y in node.operands for x in self.summands(y)]
                return found if len(found) <= _MOST_SUMMANDS else [_joined(found)]
            case Mul():
                lists = [
                    [self._spread(x, shape) for x in self.summands(y)] for y in node.operands if y.kind == "vector"
                ]
                return self._products(lists)
            case Contract() if _over_pairs(node):  # nothing is known
                return [np.zeros((len(self.flips), *shape), np.int8)]
            case Contract(spec=spec):
                inputs, out = split_spec(spec)
                pairs = [(y, word) for y, word in zip(node.operands, inputs, strict=True)]
                lists = [self.summands(y) for y, _ in pairs]
                if math.prod(map(len, lists)) > _MOST_SUMMANDS:
                    lists = [[_joined(x)] for x in lists]
                return [_summed(*_together(c, [word for _, word in pairs]), out) for c in product(*lists)]
            case Map(fn=fn, order=order, params=params):
                x = _joined(self.summands(node.operands[0]))
                match nonlin.parity(fn, order, **dict(params)):
                    case "odd":
                        return [x]
                    case "even":
                        return [np.where(x == _ZERO, 1, np.abs(x)).astype(np.int8)]
                    case _:
                        return [np.where(x == _ZERO, 1, np.where(x == 1, 1, 0)).astype(np.int8)]
            case Concat(axis=axis):
                starts = np.cumsum([0, *(self._shape(y)[axis] for y in node.operands)])
                return [
                    self._placed(x, shape, axis, slice(int(a), int(b)))
                    for y, a, b in zip(node.operands, starts[:-1], starts[1:], strict=True)
                    for x in self.summands(y)
                ]
        return [self._moved(node, x, shape) for x in self.summands(node.operands[0])]

    def _moved(self, node: Node, x: Signs, shape: tuple[int, ...]) -> Signs:
        """Operations that move entries; one that is not known mixes all of them."""
        match node.op:
            case View() | SplitWidth() | MergeWidth():
                return x.reshape(len(x), *shape)
            case Permute(order=order):
                return x.transpose(0, *(i + 1 for i in order))
            case Expand():
                return self._spread(x, shape)
            case Slice(axis=axis, start=start, stop=stop, step=step):
                return x[(slice(None),) * (axis + 1) + (slice(start, stop, step),)]
            case Unslice(axis=axis, start=start, stop=stop, step=step):
                return self._placed(x, shape, axis, slice(start, stop, step))
        flat = x.reshape(len(x), -1)
        same = np.where((flat == flat[:, :1]).all(1), flat[:, 0], 0)
        return np.broadcast_to(same.reshape(-1, *(1,) * len(shape)), (len(x), *shape))

    def _start(self, node: Node, shape: tuple[int, ...]) -> Signs:
        out = np.ones((len(self.flips), *shape), np.int8)
        for i, flip in enumerate(self.flips):
            if flip.node is node:
                out[i] *= _along(flip.signs, flip.axis, len(shape))
        return out

    def _product(self, node: Node) -> Signs:
        """Blocks of the rows of the matrix change sign; the signs of what it is multiplied with are not known."""
        assert isinstance(node.op, MatMul)
        matrix, x = node.operands
        out_axis = _out_axis(node)
        (axis,) = width_positions(node.dims)
        shape = self._shape(node)
        below = frozenset() if self._local else self._support.of(x)
        responds = self._local and any(
            isinstance(y.op, MatMul) and y.operands[0] is matrix and y.op.transpose != node.op.transpose
            for y in reachable([x])
        )
        out = np.full((len(self.flips), *shape), 0 if responds else 1, np.int8)
        for i, flip in enumerate(self.flips):
            if flip.node in below and flip.node.kind == "matrix" and (flip.node is not matrix or flip.axis == out_axis):
                out[i] *= self._support.sign(x, flip, self._width)
                if flip.node is matrix:
                    out[i] *= _along(flip.signs, axis, len(shape))
            elif flip.node in below or (flip.node is matrix and flip.axis != out_axis and not self._local):
                out[i] = 0
            elif flip.node is matrix and flip.axis == out_axis:
                out[i] *= _along(flip.signs, axis, len(shape))
        return out

    def _products(self, lists: list[list[Signs]]) -> list[Signs]:
        if math.prod(map(len, lists)) > _MOST_SUMMANDS:
            lists = [[_joined(x)] for x in lists]
        out = []
        for choice in product(*lists):
            total = choice[0]
            for x in choice[1:]:
                total = _times(total, x)
            out.append(total)
        return out

    def _placed(self, x: Signs, shape: tuple[int, ...], axis: int, at: slice) -> Signs:
        out = np.full((len(x), *shape), _ZERO, np.int8)
        out[(slice(None),) * (axis + 1) + (at,)] = x
        return out

    def _spread(self, x: Signs, shape: tuple[int, ...]) -> Signs:
        padded = x.reshape(len(x), *(1,) * (len(shape) + 1 - x.ndim), *x.shape[1:])
        return np.broadcast_to(padded, (len(x), *shape))


def _out_axis(product_: Node) -> int:
    """The axis of an initial matrix that a product with it keeps."""
    assert isinstance(product_.op, MatMul)
    rows, columns = width_positions(product_.operands[0].dims)
    return columns if product_.op.transpose else rows


def _along(signs: tuple[int, ...], axis: int, rank: int) -> Signs:
    return np.array(signs, np.int8).reshape([-1 if i == axis else 1 for i in range(rank)])


def _times(a: Signs, b: Signs) -> Signs:
    return np.where((a == _ZERO) | (b == _ZERO), _ZERO, a * b).astype(np.int8)


def _joined(summands: Sequence[Signs]) -> Signs:
    """Signs of a sum as a whole: where all summands that are not zero agree."""
    out = summands[0]
    for x in summands[1:]:
        out = np.where(out == _ZERO, x, np.where((x == _ZERO) | (x == out), out, 0)).astype(np.int8)
    return out


def _uniform(x: Signs, axis: int) -> Signs:
    """The sign of a sum along an axis, which stays with length 1."""
    even, odd, none = ((x == s).any(axis, keepdims=True) for s in (1, -1, 0))
    out = np.where(even & ~odd, 1, np.where(odd & ~even, -1, np.where(even & odd, 0, _ZERO)))
    return np.where(none, 0, out).astype(np.int8)


def _together(choice: Sequence[Signs], words: Sequence[str]) -> tuple[Signs, str]:
    """The product of factors with named axes, over all names."""
    names = "".join(dict.fromkeys("".join(words)))
    total: Signs | None = None
    for x, word in zip(choice, words, strict=True):
        distinct = "".join(dict.fromkeys(word))
        for letter in distinct:
            while word.count(letter) > 1:  # a diagonal
                first, second = (i for i, w in enumerate(word) if w == letter)
                x = np.moveaxis(np.diagonal(x, axis1=first + 1, axis2=second + 1), -1, first + 1)
                word = word[:second] + word[second + 1 :]
        order = [word.index(letter) + 1 for letter in names if letter in word]
        x = x.transpose(0, *order)
        x = x.reshape(
            len(x), *(x.shape[1 + [n for n in names if n in word].index(n)] if n in word else 1 for n in names)
        )
        total = x if total is None else _times(total, x)
    assert total is not None
    return total, names


def _summed(x: Signs, names: str, out: str) -> Signs:
    for letter in names:
        if letter not in out:
            x = _uniform(x, names.index(letter) + 1)
    kept = [i for i, letter in enumerate(names) if letter in out]
    x = x.reshape(len(x), *(x.shape[i + 1] for i in kept))
    have = [names[i] for i in kept]
    return x.transpose(0, *(have.index(letter) + 1 for letter in out))
