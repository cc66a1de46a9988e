"""Which evaluator a program gets: the most exact one that applies, with the reason in words."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tpcompile.errors import UsageError
from tpcompile.evaluate.exact.cost import LARGEST, SMALL, pairs
from tpcompile.evaluate.exact.degrees import Degrees, beyond_moments, degrees
from tpcompile.ir import Node, Program

EVALUATORS = ("auto", "exact", "particles")

_SAMPLED = "an ensemble of draws of the random outputs is asked for"


@dataclass(frozen=True)
class Choice:
    """The evaluator and why; ``degrees`` are what the exact one needs, None for the particles.

    ``formal`` says that it is the one over polynomials, not the one of linear algebra.
    """

    evaluator: str
    why: str
    degrees: Degrees | None = None
    formal: bool = False


def choose(
    program: Program,
    asked: str,
    covariances: tuple[str, ...] = (),
    zero: frozenset[Node] = frozenset(),
    sampled: bool = False,
) -> Choice:
    """The evaluator of a program. ``sampled`` says that an ensemble of so many draws is wanted.

    Raises UsageError if the exact evaluator is asked for and does not apply.
    """
    if asked == "particles":
        return Choice("particles", "asked for")
    found = degrees(program, zero)
    against = f"{found.linear} is not linear" if found.linear else _against_linear(program, found, covariances, sampled)
    if against is None:
        return Choice("exact", "every vector is linear in its Gaussian generators: no sampling", found)
    beyond = _against_polynomial(program, found, zero, sampled)
    if beyond is None:
        size = pairs(program, found)
        if size <= (LARGEST if asked == "exact" else SMALL):
            why = "every vector is a polynomial in its Gaussian generators: no sampling"
            return Choice("exact", why, found, formal=True)
        beyond = f"its polynomials have up to {size:.0e} pairs of monomials"
    reason = beyond if found.linear or against == beyond else f"{against}, and {beyond}"
    if asked == "exact":
        raise UsageError(f"evaluator 'exact' does not apply: {reason}", advice="use 'auto' or 'particles'")
    return Choice("particles", f"exact evaluation does not apply: {reason}")


def _against_polynomial(program: Program, found: Degrees, zero: frozenset[Node], sampled: bool) -> str | None:
    if found.polynomial is not None:
        return f"{found.polynomial} is not polynomial"
    if not any(found.scalars.values()):
        return None
    if sampled:
        return _SAMPLED
    if zero:
        return f"{found.linear} is not linear, and of its random numbers only some are taken to be zero"
    names = [n for n, out in program.outputs.items() if out.limit is not None and math.isinf(found.scalars[out.limit])]
    return f"'{names[0]}' is not a polynomial in the random outputs at initialisation" if names else None


def _against_linear(program: Program, found: Degrees, covariances: tuple[str, ...], sampled: bool) -> str | None:
    if sampled and any(found.scalars[out.limit] for out in program.outputs.values() if out.limit is not None):
        return _SAMPLED
    name = beyond_moments(program, found, covariances)
    return None if name is None else f"'{name}' is not linear in the random outputs at initialisation"
