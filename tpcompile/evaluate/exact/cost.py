"""What an exact evaluation over polynomials costs: pairs of monomials in all moments of a program, at most."""

from __future__ import annotations

import math
from collections import Counter

from tpcompile.evaluate.domains import find_domains, finite_size
from tpcompile.evaluate.exact.degrees import Degrees
from tpcompile.ir import Contract, Gaussian, Init, MatMul, Program

SMALL = 2e6
"""Pairs below which the exact evaluation takes seconds, and is chosen by itself."""

LARGEST = 1e10
"""Pairs above which it is refused."""


def pairs(program: Program, degrees: Degrees) -> float:
    """Upper bound: every vector as a full polynomial of its degree in the generators of its axis before it."""
    domains = find_domains(program)
    generators: Counter[int] = Counter()
    monomials = {}
    total = 0.0
    numbers = sum(finite_size(x) for x in program.nodes if x.kind == "scalar" and isinstance(x.op, Gaussian | Init))
    for node in program.nodes:
        drawn = degrees.scalars.get(node, 0)  # a value is a polynomial in the random scalars beside
        monomials_of_scalars = math.comb(numbers + int(drawn), int(drawn)) if drawn < 64 else math.inf
        if node.kind == "scalar" and drawn:
            total += finite_size(node) * monomials_of_scalars
        if node.kind == "vector":
            axis = domains.of[node].index
            if isinstance(node.op, Init | MatMul):
                generators[axis] += finite_size(node)
            degree = degrees.vectors[node]
            own = math.comb(generators[axis] + int(degree), int(degree)) if degree < 64 else math.inf
            monomials[node] = own * monomials_of_scalars
        elif isinstance(node.op, Contract):
            moving = [monomials[x] for x in node.operands if x.kind == "vector"]
            total += finite_size(node) * math.prod(moving)
    return total
