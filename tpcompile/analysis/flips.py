"""Groups of changes of sign, and the sign that a value takes under each: linear algebra over two elements.

A flip changes the sign of some generators. A set of generators is an int, one bit each; so is a character, the sign
``(-1)**(number of flipped generators in the set)``. The flips under which a value changes by a sign alone are a
subgroup: those on which the characters of a :class:`Space` are 1.

Every name owns a byte of bits. The lower half stands for the parameter of that name, whose flip goes through every
product with it; the upper half for a generator of the limit by itself (the coordinates of an initial vector, the
Gaussians of one side of an initial matrix), flipped with all others held fixed. Within a half there is one bit for
vectors and three for values on pairs of coordinates: their rows, their columns, and entries of a matrix.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from functools import cache, lru_cache

OWN, ROWS, COLUMNS, ENTRIES = 0x11, 0x22, 0x44, 0x88
GLOBAL, LOCAL = 0x0F, 0xF0
_MOST_SUMS = 12  # deep networks join many summands: more relations than that cost time and decide nothing
_SHIFTS = {OWN: 0, ROWS: 1, COLUMNS: 2, ENTRIES: 3}


@cache
def _repeated(byte: int, length: int) -> int:
    return int.from_bytes(bytes([byte]) * length, "little")


def only(byte: int, bits: int) -> int:
    """The bits of these kinds."""
    return bits & _repeated(byte, (bits.bit_length() + 7) // 8)


def moved(bits: int, source: int, target: int) -> int:
    """The bits of one kind, as those of another."""
    shift = _SHIFTS[target] - _SHIFTS[source]
    found = only(source, bits)
    return found << shift if shift >= 0 else found >> -shift


@dataclass(frozen=True)
class Space:
    """A space of characters: the span of single generators (``units``) and of a reduced basis of sums of several."""

    units: int = 0
    sums: tuple[int, ...] = ()

    def reduced(self, character: int) -> int:
        """The character up to members of the space; 0 for a member."""
        character &= ~self.units
        for x in self.sums:
            if character >> (x.bit_length() - 1) & 1:
                character ^= x
        return character

    def members(self) -> Iterable[int]:
        """A basis, single generators taken together where only their kind matters."""
        return (self.units, *self.sums)


NOTHING = Space()


@lru_cache(maxsize=1 << 16)
def spanned(units: int, *characters: int) -> Space:
    """The space that generators and characters span; a larger one, of single generators, where it is of many sums."""
    basis: list[int] = []
    for x in characters:
        x &= ~units
        for y in basis:
            x = min(x, x ^ y)
        if x:
            top = 1 << (x.bit_length() - 1)
            basis = [y ^ x if y & top else y for y in basis] + [x]
    sums = [x for x in basis if x & (x - 1)]
    alone = basis if len(sums) > _MOST_SUMS else set(basis) - set(sums)
    for x in alone:
        units |= x
    return Space(units, () if len(sums) > _MOST_SUMS else tuple(sorted(sums, reverse=True)))


def united(a: Space, b: Space) -> Space:
    """The span of two spaces."""
    if a is b or a == b or not (b.units or b.sums):
        return a
    if not (a.units or a.sums):
        return b
    return spanned(a.units | b.units, *a.sums, *b.sums)


@dataclass(frozen=True)
class Signature:
    """The character ``odd`` that a summand takes under the flips on which all of ``mixed`` is 1; no sign under others.

    ``odd`` is reduced by ``mixed``: if it is not 0, a flip changes the summand's sign, and its mean is zero.
    """

    odd: int = 0
    mixed: Space = NOTHING

    def __mul__(self, other: Signature) -> Signature:
        mixed = united(self.mixed, other.mixed)
        return Signature(mixed.reduced(self.odd ^ other.odd), mixed)

    def forgotten(self) -> Signature:
        """What is known of a function that is neither odd nor even: it stays where its argument does."""
        return Signature(0, united(self.mixed, apart(self.odd)))

    def restricted(self, byte: int) -> Signature:
        """Under flips of generators of these kinds alone."""
        units, *sums = (only(byte, x) for x in self.mixed.members())
        space = spanned(units, *sums)
        return Signature(space.reduced(only(byte, self.odd)), space)

    def mapped(self, f: Callable[[int], int]) -> Signature:
        """With the generators renamed."""
        return Signature(f(self.odd), spanned(f(self.mixed.units), *map(f, self.mixed.sums)))


EVEN = Signature()


def apart(*characters: int) -> Space:
    """A space with these characters, flips of parameters and of generators by themselves kept apart."""
    return spanned(0, *(part for x in characters for part in (only(GLOBAL, x), only(LOCAL, x))))


def joined(signatures: Collection[Signature]) -> Signature:
    """The signature of a sum as a whole: under flips under which all summands change alike."""
    first, *rest = signatures or [EVEN]
    mixed = first.mixed
    for x in rest:
        mixed = united(united(mixed, x.mixed), apart(first.odd ^ x.odd))
    return Signature(mixed.reduced(first.odd), mixed)


def averaged(x: Signature, gone: int) -> Signature:
    """Of the mean of a value on pairs over one of its axes, whose generators are of the kind ``gone``.

    A flip of the other axis counts if some flip of the one that is gone completes it: the law there stays the same.
    """
    # characters of what is gone first, so that the reduced basis has them as the leading bits of its first members
    high = max(x.odd.bit_length(), x.mixed.units.bit_length(), *(y.bit_length() for y in x.mixed.sums), 0)

    def lifted(y: int) -> int:
        return y | only(gone, y) << high

    space = spanned(lifted(x.mixed.units) | only(gone, x.mixed.units), *(lifted(y) for y in x.mixed.sums))
    odd = space.reduced(lifted(x.odd))
    if odd >> high:  # its mean is zero: nothing else is known
        return x.restricted(0xFF & ~gone)
    low = (1 << high) - 1
    kept = spanned(space.units & low & ~only(gone, space.units), *(y for y in space.sums if not y >> high))
    return Signature(kept.reduced(odd), kept)
