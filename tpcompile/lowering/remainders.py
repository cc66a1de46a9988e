"""What a series leaves out, where it is a multiple of something that has signs of its own.

A remainder is a bound on the size of coordinates. In a sum over the width it adds up like n of them, unless it is known
to be odd in a parameter that nothing beside it was computed from: then it adds up as a random sum, like n^(1/2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

from tpcompile.analysis.blocks import Support
from tpcompile.analysis.parity import Parity
from tpcompile.lowering.value import HALF, Multiple, Value, has_width, largest, plus

_MOST_MULTIPLES, _MOST_NODES = 4, 32  # that are kept of a value


def of_product(a: Value, b: Value, remainder: Fraction | None, parity: Parity) -> tuple[Multiple, ...]:
    """What a product leaves out, as multiples of one factor's nodes, or of what its own remainder is one of."""
    return _useful((*_multiples(a, b), *_multiples(b, a)), remainder, parity)


def of_sum(values: Sequence[Value], remainder: Fraction | None, parity: Parity) -> tuple[Multiple, ...]:
    """What a sum leaves out: every summand's remainder as one of its multiples, or as a rest."""
    if remainder is None or not any(v.multiples for v in values):
        return ()
    found = [Multiple((), frozenset(), None)]
    for v in values:
        own = v.multiples or (Multiple((), frozenset(), v.remainder),)
        whole = [
            Multiple((*a.nodes, *b.nodes), a.beside | b.beside, largest(a.rest, b.rest))
            for a, b in itertools.product(found, own)
        ]
        found = sorted(whole, key=_rest)[:_MOST_MULTIPLES]
    return _useful(found, remainder, parity)


def parts_of(
    value: Value, others: Sequence[Value], summed: int, parity: Parity, support: Support
) -> tuple[tuple[Fraction | None, Fraction], ...]:
    """Parts of a remainder in a sum over so many growing axes: the exponent, and the power of n that the sum adds."""
    whole = (value.remainder, Fraction(summed))
    if value.remainder is None or summed != 1:
        return (whole,)
    for other in others:
        if _unmet(value, other, parity) or _other_rows(
            value, other, support
        ):  # its terms; beside what it leaves out itself all adds up
            below = None if other.remainder is None or other.lead is None else other.remainder - other.lead
            return (value.remainder, HALF), (plus(value.remainder, below), Fraction(1))
    touched = [v.touches for v in others]
    known = frozenset().union(*(t for t in touched if t is not None))
    for m in value.multiples if None not in touched else ():
        if _is_odd(m, known, parity):
            return (value.remainder, HALF), (m.rest, Fraction(1))
    return (whole,)


def _unmet(value: Value, other: Value, parity: Parity) -> bool:
    """True if the other factor's terms are odd in a parameter that the value was not computed from."""
    if value.touches is None or not other.terms:
        return False
    return all(parity.odd_beyond(node, value.touches) for _, node in other.terms)


def _other_rows(value: Value, other: Value, support: Support) -> bool:
    """True if the other factor's terms are odd in rows of parameters that the value does not touch."""
    names = frozenset(r.parameter for r in value.rows)
    names &= frozenset(r.parameter for r in other.rows)
    if not names or not other.terms:
        return False
    kept, turned = (tuple(node for _, node in v.terms) for v in (value, other))
    return support.apart(names, kept, turned)


def _multiples(a: Value, b: Value) -> tuple[Multiple, ...]:
    beside = b.touches if has_width(b.axes) else frozenset()  # a number comes out of a sum over the width
    if beside is None:
        return ()
    leading = Multiple(tuple(node for _, node in a.terms), beside, plus(a.remainder, b.lead))
    further = (Multiple(m.nodes, m.beside | beside, plus(m.rest, b.lead)) for m in a.multiples)
    return (leading, *further) if a.terms else tuple(further)


def _useful(multiples: Iterable[Multiple], remainder: Fraction | None, parity: Parity) -> tuple[Multiple, ...]:
    """Those of odd nodes whose rest is smaller than the whole, the smallest first."""
    if remainder is None:
        return ()
    smaller = (m for m in multiples if (m.rest is None or m.rest < remainder) and len(m.nodes) <= _MOST_NODES)
    odd = (m for m in sorted(smaller, key=_rest) if _is_odd(m, frozenset(), parity))
    return tuple(itertools.islice(odd, _MOST_MULTIPLES))


def _is_odd(m: Multiple, known: frozenset[str], parity: Parity) -> bool:
    return all(parity.odd_beyond(node, m.beside | known) for node in m.nodes)


def _rest(m: Multiple) -> float:
    return -math.inf if m.rest is None else float(m.rest)
