"""Values during lowering: asymptotic series of IR nodes, and matrices as initial parts plus outer products.

Theory, section 3. Axes are torch axes, each a tuple of atoms: ``()`` for length 1, ``(k,)`` for a
finite axis, a tuple with one width atom for an axis that grows.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

from tpcompile.ir import Dim, Dims, Node, Width

Axis = tuple[Dim, ...]
Axes = tuple[Axis, ...]
Term = tuple[Fraction, Node]

HALF = Fraction(1, 2)


@dataclass(frozen=True)
class Multiple:
    """A remainder as a multiple of one of these nodes, by what touches no parameters but ``beside``, and of a rest."""

    nodes: tuple[Node, ...]
    beside: frozenset[str]
    rest: Fraction | None


@dataclass(frozen=True)
class Rows:
    """Rows of a parameter, one for each entry of a value: of a product with it, or of itself, times a power of n."""

    parameter: str
    source: str  # the product
    power: Fraction = Fraction(0)

    def scaled(self, power: Fraction) -> Rows:
        """Of the value times a power of n."""
        return Rows(self.parameter, self.source, self.power + power)


@dataclass(frozen=True)
class Value:
    """A scalar or vector ``sum_k n**e_k node_k + O(n**remainder)``; exponents descend.

    Every node has the dims ``flat(axes)``. No terms and remainder None: exactly zero. ``touches`` names the parameters
    that the value was computed from, the remainder included; None where that is not known. ``rows`` are parameters of
    which an entry touches no more than one row. ``multiples`` are ways to say that the remainder is a multiple of
    something, in a product of one of its factors.
    """

    axes: Axes
    terms: tuple[Term, ...]
    remainder: Fraction | None = None
    touches: frozenset[str] | None = field(default=None, compare=False)
    multiples: tuple[Multiple, ...] = field(default=(), compare=False)
    rows: frozenset[Rows] = field(default=frozenset(), compare=False)

    @property
    def lead(self) -> Fraction | None:
        """The largest exponent the value can have; None if it is exactly zero."""
        return self.terms[0][0] if self.terms else self.remainder

    @property
    def is_zero(self) -> bool:
        """True if the value is exactly zero."""
        return self.lead is None


@dataclass(frozen=True)
class Part:
    """Blocks ``start:stop`` of the ``parts`` blocks of a growing axis, each of width ``unit``.

    A block is a run of neighbours, or every ``parts``-th coordinate where ``inner`` (then one block only).
    """

    parts: int
    start: int
    stop: int
    unit: Width
    inner: bool = False

    @property
    def whole(self) -> Axis:
        """Atoms of the whole axis."""
        if self.parts == 1:
            return (self.unit,)
        return (self.unit, self.parts) if self.inner else (self.parts, self.unit)

    @property
    def piece(self) -> Axis:
        """Atoms of the part."""
        count = self.stop - self.start
        return (self.unit,) if count == 1 else (count, self.unit)


@dataclass(frozen=True)
class Fixed:
    """An index of a finite atom that an initial matrix does not have: it stands there, zeros at all others."""

    index: int


@dataclass(frozen=True)
class InitTerm:
    """``coefficient * n**exponent * W`` (or its transpose) of an initial matrix W of entries Θ(n^(-1/2)).

    ``finite`` says which of the finite axes of W, or which index, stands at each finite atom of the value; ``rows``
    and ``columns`` are the part of it that the value has, in the value's orientation; None is all.
    """

    exponent: Fraction
    coefficient: float
    matrix: Node
    transpose: bool
    finite: tuple[int | Fixed, ...] = ()
    rows: Part | None = None
    columns: Part | None = None


@dataclass(frozen=True)
class Block:
    """``coefficient * sum_k u_k v_k^T``; u of dims ``(*finite, K, rows)``, v ``(*finite, K, columns)``."""

    coefficient: float
    u: Node
    v: Node


@dataclass(frozen=True)
class OuterTerm:
    """``n**exponent`` times a sum of outer products."""

    exponent: Fraction
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Composed:
    """``coefficient * n**exponent * F_1 F_2 ..``, never multiplied out; without factors the identity.

    A factor is a matrix of two growing axes and no other, a vector that stands for a diagonal matrix, or a scalar.
    """

    exponent: Fraction
    coefficient: float
    factors: tuple[MatrixValue | Value, ...]

    @property
    def action(self) -> Fraction | None:
        """Exponent of the largest effect on a Θ(1) vector."""
        return plus(self.exponent, *(f.action if isinstance(f, MatrixValue) else f.lead for f in self.factors))


@dataclass(frozen=True)
class MatrixValue:
    """A value with two width axes, never formed: initial matrices, outer products, and products of matrices.

    The first axis that grows holds the rows, the second the columns; ``finite`` atoms, wherever they stand, count
    an independent matrix each.

    ``entries`` is a series of values on pairs of coordinates, of dims ``flat(axes)``: entrywise functions of outer
    products, which adaptive optimizers make. ``composed`` are products of matrices that are no sums of outer ones.
    ``remainder`` is the size of the entries of what was dropped, in the worst case an outer product.
    """

    axes: Axes
    inits: tuple[InitTerm, ...] = ()
    outers: tuple[OuterTerm, ...] = ()
    remainder: Fraction | None = None
    entries: tuple[Term, ...] = ()
    composed: tuple[Composed, ...] = ()

    @property
    def finite(self) -> tuple[int, ...]:
        """The finite atoms of all axes, in order."""
        return tuple(d for d in flat(self.axes) if isinstance(d, int))

    @property
    def widths(self) -> tuple[Width, Width]:
        """Rows and columns."""
        rows, columns = (d for d in flat(self.axes) if isinstance(d, Width))
        return rows, columns

    @property
    def is_zero(self) -> bool:
        """True if the value is exactly zero."""
        return self.low_rank and not self.outers and self.remainder is None

    @property
    def low_rank(self) -> bool:
        """True if it is outer products alone, and what was dropped."""
        return not self.inits and not self.entries and not self.composed

    @property
    def action(self) -> Fraction | None:
        """Exponent of the largest effect on a Θ(1) vector: initial parts Θ(n^e), all else Θ(n^(e+1))."""
        sizes = [t.exponent for t in self.inits] + [t.exponent + 1 for t in self.outers]
        sizes += [e + 1 for e, _ in self.entries]
        sizes += [e for c in self.composed if (e := c.action) is not None]
        if self.remainder is not None:
            sizes.append(self.remainder + 1)
        return max(sizes, default=None)


AnyValue = Value | MatrixValue


def flat(axes: Axes) -> Dims:
    """IR dims of these torch axes."""
    return tuple(d for axis in axes for d in axis)


def is_width(axis: Axis) -> bool:
    """True if the axis grows with n."""
    return any(isinstance(d, Width) for d in axis)


def extent(axis: Axis) -> tuple[Fraction, int]:
    """Length of an axis as ``(coefficient, power of n)``."""
    size, power = Fraction(1), 0
    for d in axis:
        size *= d.ratio if isinstance(d, Width) else d
        power += isinstance(d, Width)
    return size, power


def has_width(axes: Axes) -> int:
    """Number of axes that grow."""
    return sum(map(is_width, axes))


def largest(*exponents: Fraction | None) -> Fraction | None:
    """The largest of these exponents; None stands for minus infinity."""
    known = [e for e in exponents if e is not None]
    return max(known) if known else None


def plus(*exponents: Fraction | None) -> Fraction | None:
    """Exponent of a product; None (exactly zero) absorbs."""
    total = Fraction(0)
    for e in exponents:
        if e is None:
            return None
        total += e
    return total
