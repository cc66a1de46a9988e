"""The classes of parametrizations, from sizes (theory, section 9; Tensor Programs IV, 2011.14522, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from tpcompile.capture import Capture
from tpcompile.errors import UnstableError
from tpcompile.parametrization.effects import adjoints, products
from tpcompile.parametrization.measure import Sizes
from tpcompile.parametrization.report import ParameterReport, largest_exponent
from tpcompile.parametrization.sizes import Exponent, Size


@dataclass(frozen=True)
class Verdict:
    """A class, and the first value that blows up, vanishes or cannot be decided."""

    name: str
    stable: bool
    problem: str | None


@dataclass(frozen=True)
class Aligned:
    """A product of two activations, such as attention logits: a random sum at first, an aligned one later."""

    index: int  # among the products of a forward pass
    place: str
    start: Exponent
    step: int
    later: Exponent


def aligned(sizes: Sizes, steps: int) -> list[Aligned]:
    """Products that are O(1) at initialisation and grow later, behind the multipliers that follow them."""
    found = []
    for i, place in enumerate(sizes.products):
        start = sizes["product", str(i), 0].exponent
        later = ((t, sizes["product", str(i), t].exponent) for t in range(1, steps + 1))
        step, grown = next(((t, e) for t, e in later if e is not None and e > 0), (0, None))
        if start is not None and start <= 0 and grown is not None:
            found.append(Aligned(i, place, start, step, grown))
    return found


def too_large(capture: Capture, sizes: Sizes) -> dict[int, Fraction]:
    """Products of two activations that grow, by how much at the most; those that a factor can be put behind."""
    found = {}
    for i, node in enumerate(products(capture, 0)):
        exponents = [sizes["product", str(i), t].exponent for t in range(capture.steps + 1)]
        largest = max((e for e in exponents if e is not None), default=-math.inf)
        if largest > 0 and adjoints(capture, node):
            found[i] = Fraction(largest)
    return found


def hidden_products(capture: Capture, sizes: Sizes) -> set[int]:
    """Products of two activations of which it is not known at all steps whether they grow; as in :func:`too_large`."""
    open_sizes = {key for key, size in sizes.found.items() if size.exponent is None and size.bound > 0}
    steps = range(capture.steps + 1)
    found = [i for i, _ in enumerate(products(capture, 0)) if any(("product", str(i), t) in open_sizes for t in steps)]
    return {i for i in found if adjoints(capture, products(capture, 0)[i])}


def largest_product(capture: Capture, sizes: Sizes, index: int) -> Exponent | None:
    """The largest exponent that a product of two activations has at any step; None where one is not decided."""
    return largest_exponent(tuple(sizes["product", str(index), t] for t in range(capture.steps + 1)))


def verdict(
    sizes: Sizes, activations: tuple[str, ...], steps: int, parameters: Mapping[str, ParameterReport]
) -> Verdict:
    """The class of a parametrization.

    Stable: activations of growing width Θ(1) at initialisation (or exactly zero), finite ones O(1), every change O(1),
    those of products of two activations (attention logits) included.
    Behind an interior readout, which is small before training, they may be small at initialisation if training makes
    them Θ(1).
    Trivial: the outputs' change vanishes. Feature learning: an activation of growing width changes by Θ(1); maximal
    update: every trained parameter's does its share. Kernel regime: the outputs change and no feature does.
    """
    problem, open_question = _first_problem(sizes, activations, steps)
    if problem is not None:
        return Verdict("unstable", False, problem)
    if open_question is not None:
        return Verdict("undecided", False, open_question)
    outputs = [sizes["change", "outputs", t] for t in range(1, steps + 1)]
    if all(s.bound < 0 for s in outputs):
        return Verdict("trivial", True, None)
    if not any(s.exponent == 0 for s in outputs):
        return Verdict("undecided", True, f"whether the outputs change: {_reason(outputs)}")
    hidden = [a for a in activations if a not in sizes.finite]
    moved = [size("change", a, t) for size in (sizes.used, sizes.own) for a in hidden for t in range(1, steps + 1)]
    if any(s.exponent == 0 for s in moved):
        trained = [p for p in parameters.values() if p.lr_exponent is not None and p.used]
        full = all(p.maximal and _starts_maximal(p) for p in trained)
        return Verdict("maximal update" if full else "feature learning", True, None)
    if all(s.bound < 0 for s in moved):
        return Verdict("kernel regime", True, None)
    return Verdict("undecided", True, f"whether features change: {_reason(moved)}")


def _starts_maximal(p: ParameterReport) -> bool:
    """True unless a readout is smaller at initialisation than it could be; exactly zero is allowed."""
    if not p.readout or p.init_exponent == -math.inf:
        return True
    return any(s.exponent == 0 for s in (p.start, *p.propagated))


def _reason(sizes: list[Size]) -> str:
    open_sizes = [s for s in sizes if not s.exact]
    return f"{open_sizes[0]} ({open_sizes[0].reason})" if open_sizes else "unknown"


def _grows(sizes: Sizes, activations: tuple[str, ...], step: int) -> bool:
    """True if the change of an activation (its value, at initialisation) is known to grow."""
    exponents = (sizes.used("change" if step else "value", name, step).exponent for name in activations)
    return any(e is not None and e > 0 for e in exponents)


def _first_problem(sizes: Sizes, activations: tuple[str, ...], steps: int) -> tuple[str | None, str | None]:
    """The first value that blows up or vanishes, and the first that is not decided before it."""
    undecided: str | None = None
    transient = False  # a finite value has been small, as readouts are before training: what follows inherits it
    for step in range(steps + 1):
        grown = next((p for p in aligned(sizes, steps) if p.step == step), None)
        if grown is not None and undecided is None:
            return f"a product of two activations in {grown.place} grows like n^{grown.later} at step {step}", None
        saturated = next((e for e in sizes.undecided.values() if isinstance(e, UnstableError) and e.step == step), None)
        if saturated is not None and undecided is None and not _grows(sizes, activations, step):
            return str(saturated), None
        for name in (*activations, "outputs"):
            quantity = "change" if step else "value"
            size = sizes.used(quantity, name, step)
            what = f"the {'change of ' if step else ''}{'outputs' if name == 'outputs' else repr(name)}"
            when = f"at step {step}" if step else "at initialisation"
            if size.exponent is None and not size.at_most(0):
                undecided = undecided or f"{what} {when} is not decided: {size} ({size.reason})"
            elif size.exponent is not None and size.exponent > 0:
                return (f"{what} {when} grows like n^{size.exponent}", None) if not undecided else (None, undecided)
            wide = name not in sizes.finite and name != "outputs"
            own = sizes[quantity, name, step].exponent
            small = not step and size.exponent is not None and -math.inf < size.exponent < 0
            small = small and own is not None and own < 0  # else a factor of a product, such as a scaled query
            grows_up = any(sizes.used("change", name, t).exponent == 0 for t in range(1, steps + 1))
            transient = transient or (small and not wide and grows_up)
            if small and wide and not (transient and grows_up):
                return f"{what} {when} vanishes like n^{size.exponent}", None
    return None, undecided
