"""The moment method by hand: words in random matrices, and the non-crossing pairings that give their traces.

Independent of the Master Theorem: a check of it, and its explanation for small orders.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce
from typing import Any

import torch

from tpcompile.errors import UsageError
from tpcompile.evaluate.exact.numbers import Number, recognised
from tpcompile.spectra.operator import Argument, Operator, Shapes, Variances

Letter = tuple[str, bool]  # a matrix, transposed or not
Pairing = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Word:
    """A product of matrices in the expansion of ``P^k``, with its coefficient and its non-crossing pairings.

    The limit of its normalised trace is the sum of ``values``, one for each pairing: a product of variances, and of a
    ratio for each loop of indices. Times ``coefficient`` these sum to the moment over all words.
    """

    letters: tuple[Letter, ...]
    coefficient: Number
    pairings: tuple[Pairing, ...]
    values: tuple[Fraction, ...]

    @property
    def value(self) -> Number:
        """Its part of the moment."""
        return self.coefficient * sum(self.values, Fraction(0))

    def __str__(self) -> str:
        return " ".join(name + ("ᵀ" if t else "") for name, t in self.letters) or "1"


def words(
    fn: Callable[..., Any], order: int, *, shapes: Shapes | None = None, variances: Variances | None = None
) -> tuple[Word, ...]:
    """The words of ``tr P^order`` that have a non-crossing pairing of each matrix with its transpose.

    ``fn`` may use products and powers of matrices, transposes, sums, and multiples by numbers only: it is run on words
    instead of tensors.
    The number of words grows exponentially in the order.
    """
    operator = Operator.of(fn, shapes, variances)
    matrices = {a.name: a for a in operator.arguments}
    if flat := [name for name, a in matrices.items() if len(a.shape) != 2]:
        raise UsageError(f"'{flat[0]}' is a vector: words are of matrices alone")
    x = _Words({(): 1})
    try:
        for _ in range(order):
            x = fn(*(_Words({((name, False),): 1}) for name in matrices), x)
        terms = x.terms
    except (TypeError, AttributeError) as error:
        raise UsageError(
            f"fn is no polynomial of matrices that can be run on words ({error})",
            where="fn",
            advice="use products and powers of matrices, transposes, sums, and multiples by numbers",
        ) from error
    found = []
    for letters, c in terms.items():
        pairings = tuple(_pairings(letters, 0, len(letters)))
        values = tuple(_value(letters, p, matrices) for p in pairings)
        if pairings and c != 0:
            found.append(Word(letters, c, pairings, values))
    return tuple(found)


def _pairings(letters: tuple[Letter, ...], start: int, stop: int) -> Iterator[Pairing]:
    """Non-crossing pairings of ``letters[start:stop]``."""
    if start == stop:
        yield ()
        return
    name, transposed = letters[start]
    for j in range(start + 1, stop, 2):
        if letters[j] == (name, not transposed):
            for inside in _pairings(letters, start + 1, j):
                for behind in _pairings(letters, j + 1, stop):
                    yield tuple(sorted(((start, j), *inside, *behind)))


def _value(letters: tuple[Letter, ...], pairing: Pairing, matrices: dict[str, Argument]) -> Fraction:
    """Variances, and a ratio for every loop of equal indices, over that of the trace.

    Letter i carries the indices i (its row) and i + 1 (its column), cyclically; a pair identifies them crosswise.
    """
    length = len(letters)
    same = {i: {i} for i in range(length)}
    for i, j in pairing:
        for a, b in ((i, (j + 1) % length), ((i + 1) % length, j)):
            union = same[a] | same[b]
            for k in union:
                same[k] = union
    loops = {min(group): group for group in same.values()}
    ratios = (matrices[letters[i][0]].shape[1 if letters[i][1] else 0] for i in loops)
    variance = math.prod((matrices[letters[i][0]].variance for i, _ in pairing), start=Fraction(1))
    return variance * math.prod(ratios, start=Fraction(1))


@dataclass(frozen=True)
class _Words:
    """A polynomial of matrices: a combination of words. The vector is the empty word."""

    terms: dict[tuple[Letter, ...], Number]

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        own = _FUNCTIONS.get(func)
        return NotImplemented if own is None or kwargs else own(*args)

    @property
    def T(self) -> _Words:  # noqa: N802
        return _Words({tuple((name, not t) for name, t in word[::-1]): c for word, c in self.terms.items()})

    mT = T  # noqa: N815

    def t(self) -> _Words:
        return self.T

    def __matmul__(self, other: _Words) -> _Words:
        total: dict[tuple[Letter, ...], Number] = {}
        for left, a in self.terms.items():
            for right, b in other.terms.items():
                total[left + right] = total.get(left + right, 0) + a * b
        return _Words(total)

    def __add__(self, other: _Words) -> _Words:
        total = dict(self.terms)
        for word, c in other.terms.items():
            total[word] = total.get(word, 0) + c
        return _Words(total)

    def __mul__(self, c: float) -> _Words:
        number = recognised(float(c))
        return _Words({word: b * number for word, b in self.terms.items()})

    __rmul__ = __mul__

    def __neg__(self) -> _Words:
        return self * -1

    def __sub__(self, other: _Words) -> _Words:
        return self + -other

    def __truediv__(self, c: float) -> _Words:
        return self * (1 / c)


def _power(x: _Words, k: int) -> _Words:
    return reduce(operator.matmul, [x] * k, _Words({(): 1}))


_FUNCTIONS: dict[Any, Callable[..., _Words]] = {
    **dict.fromkeys((torch.matmul, torch.mm, torch.mv), operator.matmul),
    torch.linalg.matrix_power: _power,
    torch.linalg.multi_dot: lambda factors: reduce(operator.matmul, factors),
    torch.add: operator.add,
    torch.sub: operator.sub,
}
