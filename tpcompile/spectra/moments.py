"""``tp.moments``: limiting moments of random matrices by the Master Theorem."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, overload

import sympy as sp
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.evaluate.exact.formal import evaluate_formally
from tpcompile.evaluate.exact.numbers import Number, Surd
from tpcompile.evaluate.exact.precise import integral, precise_number
from tpcompile.evaluate.exact.real import Real, precisely
from tpcompile.spectra.operator import OUTPUT, Operator, Shapes, Variances


@dataclass(frozen=True)
class Moments(Sequence[Any]):
    """Limiting moments of an operator: item k is ``lim (1/n) tr P^k``, item 0 is 1.

    A moment is a Fraction, a sympy expression where square roots remain, or a float where a function that is no
    polynomial enters. ``dot`` holds the part of each that comes from the response terms Ż of the Master Theorem:
    without them a matrix and its transpose would count as independent. ``precise`` are the values before they become
    floats: integrals are computed to 50 digits.
    """

    values: tuple[Any, ...]
    dot: tuple[Any, ...]
    precise: tuple[Any, ...] = field(repr=False, compare=False)

    @overload
    def __getitem__(self, k: int) -> Any: ...
    @overload
    def __getitem__(self, k: slice) -> tuple[Any, ...]: ...
    def __getitem__(self, k: int | slice) -> Any:
        return self.values[k]

    def __len__(self) -> int:
        return len(self.values)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.values)

    @property
    def order(self) -> int:
        """The highest order."""
        return len(self.values) - 1

    @property
    def exact(self) -> bool:
        """True if no moment is a float."""
        return not any(isinstance(m, float) for m in self.values)

    def __str__(self) -> str:
        rows = enumerate(zip(self, self.dot, strict=True))
        return "\n".join(f"{k:>3}  {_text(m)}  (response terms: {_text(d)})" for k, (m, d) in rows)


def moments(
    fn: Callable[..., Tensor],
    order: int = 8,
    *,
    shapes: Shapes | None = None,
    variances: Variances | None = None,
) -> Moments:
    """Limiting moments ``lim (1/n) tr P^k``, k = 0, .., order, of the operator ``P: x -> fn(W, .., x)``.

    ``fn`` is ordinary torch code, linear in its last argument x, a vector of length n. Every argument before x is a
    random matrix with independent normal entries, by its name in the signature: n by n with entries of variance 1/n.
    ``shapes`` changes the lengths, as multiples of n (``{"X": (Fraction(1, 2), 1)}`` is n/2 by n), or makes the
    argument a vector of standard normal entries (``{"u": (1,)}``); ``variances`` replaces the 1 in 1/n, or the variance
    of a vector's entries. Functions of vectors are allowed (``torch.tanh(W @ u) * x`` is a diagonal matrix).

    The moments are ``E[Z^g Z^{P^k g}]`` for a standard normal vector g (Tensor Programs III, 2009.10685), evaluated
    without sampling, and exactly where everything is polynomial with rational coefficients. Universality: the limits
    are those of any matrices with independent centred entries of these variances.
    Raises UsageError for a function that is not linear in x or arguments that do not fit, EvaluationError where an
    expectation has no exact evaluation.
    """
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise UsageError(f"order must be a positive integer, found {order!r}")
    operator = Operator.of(fn, shapes, variances)
    operator.check_linear(order)
    return operator_moments(operator, order)


def operator_moments(operator: Operator, order: int) -> Moments:
    """The moments of an operator that is known to be linear."""
    program = operator.trace(order)
    with precisely():
        full = evaluate_formally(program, variances=operator.variances, number=precise_number, integral=integral)
        bare = evaluate_formally(program, variances=operator.variances, dot=False)
        both = [found.values[OUTPUT][0] for found in (full, bare)]
        values = (Fraction(1), *both[0])
        dot = (Fraction(0), *(m - k for m, k in zip(*both, strict=True)))
    shown = tuple(map(_shown, values))
    precise = tuple(x if isinstance(x, Real) else y for x, y in zip(values, shown, strict=True))
    return Moments(shown, tuple(map(_shown, dot)), precise)


def _shown(x: Number) -> Any:
    """The number as the user gets it."""
    if isinstance(x, Surd):
        return sp.Add(*(sp.Rational(c.numerator, c.denominator) * sp.sqrt(d) for d, c in x.parts))
    return float(x) if isinstance(x, float | Real) else Fraction(x)


def _text(x: Any) -> str:
    return f"{x:.12g}" if isinstance(x, float) else str(x)
