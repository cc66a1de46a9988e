"""In which order arrays are evaluated, and how often each is read: what decides how many are held at a time."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from tpcompile.evaluate.gaussian.initial import InitialArray
from tpcompile.evaluate.gaussian.radial import TiltArray, TiltedCovariance
from tpcompile.evaluate.gaussian.reads import ReadArray
from tpcompile.evaluate.gaussian.sampled import SampledArray
from tpcompile.evaluate.gaussian.terms import (
    Array,
    DualArray,
    GatherArray,
    IntegralArray,
    OneHotArray,
    ReshapeArray,
    ScalarArray,
    SingleArray,
    SumArray,
    VarianceArray,
)
from tpcompile.ir import Node

PairKey = tuple[Array, Array, Array]


@dataclass(frozen=True)
class Order:
    """What an evaluation of some arrays needs to know beforehand."""

    first: tuple[Array, ...]
    """Arrays by their height above the leaves: layer after layer, so that few are held at a time."""
    reads: dict[Array, int]
    """How often each array is read, the wanted ones once for themselves."""
    duals: dict[PairKey, int]
    """How many expectations each pair of centred variables has."""


def children(array: Array) -> list[Array]:
    """The arrays that one is computed from, as often as they are read."""
    match array:
        case SumArray(terms=terms):
            return [a for term in terms for a, _ in term.uses]
        case DualArray(cov=cov, var_u=u, var_v=v, mean_u=mu, mean_v=mv):
            return [x for x in (cov, u, v, mu, mv) if x is not None]
        case SingleArray(var=var, mean=mean):
            return [x for x in (var, mean) if x is not None]
        case GatherArray(source=source) | ReshapeArray(source=source) | ReadArray(source=source):
            return [source]
        case IntegralArray(covariances=rows, means=means):
            return [x for row in rows for x in row] + [x for x in means if x is not None]
        case SampledArray(covariances=rows, leaves=leaves):
            means = [leaf.mean for leaf in leaves]
            return [x for row in (*rows, means) for x in row if x is not None]
        case TiltArray(inner=inner, tilt=tilt):
            return [inner, *(x for row in tilt.covariances for x in row)]
        case TiltedCovariance(tilt=tilt):
            return [x for row in tilt.covariances for x in row]
    return []


def pair_key(array: DualArray) -> PairKey | None:
    """What expectations of the same centred variables have in common."""
    return (array.cov, array.var_u, array.var_v) if array.mean_u is None and array.mean_v is None else None


def order(wanted: Sequence[Array], known: Collection[Array] = ()) -> Order:
    """The order for some arrays, given the values of others."""
    reads: dict[Array, int] = {}
    duals: dict[PairKey, int] = {}
    heights: dict[Array, int] = {}
    stack = [(array, False) for array in reversed(wanted)]
    for array in wanted:
        reads[array] = reads.get(array, 0) + 1
    while stack:
        array, ready = stack.pop()
        inner = [] if array in known else children(array)
        if ready:
            heights[array] = 1 + max((heights[x] for x in inner), default=0)
            continue
        if array in heights:
            continue
        heights[array] = 0
        stack.append((array, True))
        stack += [(x, False) for x in reversed(inner) if x not in heights]
        key = pair_key(array) if isinstance(array, DualArray) else None
        if key is not None:
            duals[key] = duals.get(key, 0) + 1
            if duals[key] > 1:
                continue  # the pair is read once for all its expectations
        for x in inner:
            reads[x] = reads.get(x, 0) + 1
    first = sorted(
        (x for x in heights if isinstance(x, SumArray | DualArray | ReadArray) and x not in known),
        key=heights.__getitem__,
    )
    return Order(tuple(first), reads, duals)


def one_sided(wanted: Sequence[Array], varies: Collection[Node]) -> list[tuple[Array, int]]:
    """The largest arrays that depend on the inputs of one copy, or of none (as copy 0), with that copy."""
    copies: dict[Array, frozenset[int]] = {}
    found: dict[Array, int] = {}

    def of(array: Array) -> frozenset[int]:
        if array not in copies:
            own: frozenset[int] = frozenset()
            if isinstance(array, ScalarArray | GatherArray | OneHotArray):
                read = array.node if isinstance(array, ScalarArray) else array.index
                own = frozenset([array.copy] if read in varies else [])
            elif isinstance(array, SampledArray):
                own = frozenset([0, 1])
            elif isinstance(array, InitialArray):
                own = frozenset(copy for _, copy in array.variables)
            copies[array] = own.union(*(of(x) for x in children(array)))
        return copies[array]

    seen: set[Array] = set()
    stack = list(wanted)
    while stack:
        array = stack.pop()
        if array in seen:
            continue
        seen.add(array)
        if len(of(array)) < 2:
            if not isinstance(array, VarianceArray):
                found[array] = min(of(array), default=0)
        else:
            stack += children(array)
    return list(found.items())
