"""Which evaluator a program gets: the most exact one that applies, with the reason in words."""

from __future__ import annotations

from dataclasses import dataclass

from tpcompile.errors import UsageError
from tpcompile.evaluate.exact.cost import LARGEST, SMALL, pairs
from tpcompile.evaluate.exact.degrees import Degrees, beyond_moments, degrees
from tpcompile.ir import Node, Program

EVALUATORS = ("auto", "exact", "particles")


@dataclass(frozen=True)
class Choice:
    """The evaluator and why; ``degrees`` are what the exact one needs, None for the particles."""

    evaluator: str
    why: str
    degrees: Degrees | None = None


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
    linear = found.linear is None
    against = _against_linear(program, found, covariances, sampled) if linear else _against_polynomial(program, found)
    if against is None and not linear:
        size = pairs(program, found)
        if size > (LARGEST if asked == "exact" else SMALL):
            against = f"its polynomials have up to {size:.0e} pairs of monomials"
    if against is None:
        kind = "linear" if linear else "a polynomial"
        return Choice("exact", f"every vector is {kind} in its Gaussian generators: no sampling", found)
    if asked == "exact":
        raise UsageError(f"evaluator 'exact' does not apply: {against}", advice="use 'auto' or 'particles'")
    return Choice("particles", f"exact evaluation does not apply: {against}")


def _against_polynomial(program: Program, found: Degrees) -> str | None:
    if found.polynomial is not None:
        return f"{found.polynomial} is not polynomial"
    if any(found.scalars.values()):
        return f"{found.linear} is not linear, and outputs at initialisation are random"
    return None


def _against_linear(program: Program, found: Degrees, covariances: tuple[str, ...], sampled: bool) -> str | None:
    if sampled and any(found.scalars[out.limit] for out in program.outputs.values() if out.limit is not None):
        return "an ensemble of draws of the random outputs is asked for"
    name = beyond_moments(program, found, covariances)
    return None if name is None else f"'{name}' is not linear in the random outputs at initialisation"
