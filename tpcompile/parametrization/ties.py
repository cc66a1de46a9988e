"""Multipliers of parameters that stand in several operations which ask for different scales, as tied ones do."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

from torch import Tensor

from tpcompile.capture import Capture
from tpcompile.parametrization.changes import Run
from tpcompile.parametrization.effects import uses
from tpcompile.parametrization.measure import Sizes, parameter_names, trained
from tpcompile.parametrization.multipliers import count_uses
from tpcompile.parametrization.sizes import Exponent
from tpcompile.schedule import split


def shared(run: Run, setup: Capture) -> dict[str, int]:
    """Trained parameters that several functions of the model take, and how many; not those inside of one function."""
    counts = {name: len(uses(setup, name, 0)) for name in parameter_names(setup) if trained(setup, name)}
    several = {name: count for name, count in counts.items() if count > 1}
    if not several:
        return {}
    model, _, _ = split(run.make(setup.widths[0]))
    inputs = run.inputs if isinstance(run.inputs, Tensor) else run.inputs[0]
    counted = count_uses(model, inputs)
    return {name: count for name, count in several.items() if counted.get(name) == count}


def excess(several: Mapping[str, int], sizes: Sizes, steps: int) -> dict[str, tuple[Fraction, ...]]:
    """How much more, in powers of n, some operations feel the updates of a parameter than others that use it.

    No rescaling of initial values or of the learning rate changes the ratio of two uses of one parameter. By the
    effects of the updates, and where these are not decided because values have grown before, by what the initial
    values make of growing ones.
    """
    found = {name: _excess(sizes, name, count, steps) for name, count in several.items()}
    return {name: more for name, more in found.items() if any(more)}


def _excess(sizes: Sizes, name: str, count: int, steps: int) -> tuple[Fraction, ...]:
    """How much larger each use's share of its output is than the first one's, as a power of n."""
    for step in range(1, steps + 1):
        effects = [_decided(sizes, "effect", name, step, use) for use in range(count)]
        if any(e is None for e in effects):
            break
        finite = [Fraction(e) for e in effects if e is not None and e != -math.inf]
        if len(finite) > 1:
            return tuple(Fraction(e) - finite[0] if e is not None and e != -math.inf else Fraction(0) for e in effects)
    else:
        return (Fraction(0),) * count
    starts = [_decided(sizes, "start", name, 0, use) for use in range(count)]
    return tuple(Fraction(e) if use and e is not None and e > 0 else Fraction(0) for use, e in enumerate(starts))


def _decided(sizes: Sizes, quantity: str, name: str, step: int, use: int) -> Exponent | None:
    size = sizes.by_use.get((quantity, name, step, use))
    return None if size is None else size.exponent


def grown_uses(setup: Capture, name: str) -> list[int]:
    """Which of the operations that use a parameter have an output that grows with the width."""
    return [
        i
        for i, use in enumerate(uses(setup, name, 0))
        if any(size.power for size in (use.then or (use.node,))[-1].shape or ())
    ]
