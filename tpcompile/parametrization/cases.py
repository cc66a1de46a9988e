"""Both cases of what is not decided: the verdict where it is as large as it can be, and where it vanishes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from fractions import Fraction

from tpcompile.parametrization.measure import Sizes
from tpcompile.parametrization.report import ParameterReport
from tpcompile.parametrization.sizes import Exponent, Size
from tpcompile.parametrization.verdict import verdict

_SMALL = Fraction(-1, 2)  # stands for any power that vanishes
_CASES: dict[str, Callable[[Exponent], Exponent]] = {
    "if what is open is as large as its bounds": lambda bound: bound,
    "if it is of order one at most": lambda bound: min(bound, Fraction(0)),
    "if it vanishes": lambda bound: min(bound, _SMALL),
}


def cases(
    sizes: Sizes, activations: tuple[str, ...], steps: int, parameters: Mapping[str, ParameterReport]
) -> dict[str, str]:
    """The verdict for each size that undecided values can have; empty if nothing is open, or nothing known of it."""
    matter = _open(sizes, activations)
    if not matter or any(size.bound == math.inf for size in matter.values()):
        return {}
    found: dict[str, str] = {}
    for words, of in _CASES.items():
        if "order one" in words and all(size.bound <= 0 for size in matter.values()):
            continue  # the same as the bounds
        settled = replace(sizes, found={key: _settled(size, of) for key, size in sizes.found.items()})
        reports = {name: _settled_parameter(p, of) for name, p in parameters.items()}
        found[words] = verdict(settled, activations, steps, reports).name
    return found


def open_values(sizes: Sizes, activations: tuple[str, ...]) -> tuple[str, ...]:
    """Every value of which it is not decided whether it is below order one, in words."""
    out = []
    for (quantity, name, step), size in _open(sizes, activations).items():
        what = f"the {quantity} of {name if name in ('outputs', 'loss') else repr(name)} at step {step}"
        if size.bound == math.inf:
            out.append(f"{what}: nothing is known ({size.reason})")
        else:
            out.append(f"{what}: n^{size.bound} if what its series leaves out does not vanish, smaller if it does")
    return tuple(out)


def _open(sizes: Sizes, activations: tuple[str, ...]) -> dict[tuple[str, str, int], Size]:
    names = {*activations, "outputs"}
    return {
        key: size
        for key, size in sizes.found.items()
        if not size.exact and size.bound >= 0 and key[0] in ("value", "change") and key[1] in names
    }


def _settled(size: Size, of: Callable[[Exponent], Exponent]) -> Size:
    if size.exact or size.bound == math.inf:
        return size
    exponent = of(size.bound)
    return Size(exponent, exponent)


def _settled_parameter(p: ParameterReport, of: Callable[[Exponent], Exponent]) -> ParameterReport:
    lists = {
        name: tuple(_settled(size, of) for size in getattr(p, name))
        for name in ("gradient", "update", "effect", "propagated")
    }
    return replace(p, start=_settled(p.start, of), **lists)
