"""Fewer passes over memory: numbers and what is small are multiplied first, products go into sums."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

from tpcompile.evaluate.tapes.steps import CONSTANT, INPUT, SNAP, Step

_SMALL = 8  # times smaller than a product are the factors that are joined before


def live(wanted: Iterable[Step]) -> list[Step]:
    """All steps that some need, operands first."""
    order: dict[Step, None] = {}
    stack = [(x, False) for x in reversed(list(wanted))]
    while stack:
        step, ready = stack.pop()
        if ready:
            order[step] = None
        elif step not in order:
            stack.append((step, True))
            stack += [(x, False) for x in reversed(list(step.operands))]
    return list(order)


def simplified(order: Sequence[Step], wanted: Sequence[Step]) -> tuple[list[Step], dict[Step, Step]]:
    """The needed ones of some steps, rewritten and in order, and what stands for each of those before."""
    needed = set(live(wanted))
    found = _Rewriting([x for x in order if x in needed], wanted)
    kept = set(live([found.new[x] for x in wanted]))
    return [x for x in found.known.values() if x in kept], found.new


class _Rewriting:
    def __init__(self, order: Sequence[Step], wanted: Sequence[Step]) -> None:
        reads = Counter(x for step in order for x in step.operands) + Counter(wanted)
        self.inside = {  # products that one other product or sum reads
            x
            for step in order
            for x in self._absorbed(step)
            if x.name == "mul" and reads[x] == 1 and x.shape == step.shape and x.dtype == step.dtype
        }
        self.new: dict[Step, Step] = {}
        self.known: dict[Any, Step] = {}
        for step in order:
            if step not in self.inside:
                self.new[step] = self._rewritten(step)

    @staticmethod
    def _absorbed(step: Step) -> list[Step]:
        candidates = step.args[1:] if step.name == "addcmul" else step.args if step.name in ("mul", "add") else ()
        return [x for x in candidates if isinstance(x, Step)]

    def _rewritten(self, step: Step) -> Step:
        if step.name in ("mul", "add", "addcmul") and all(x.dtype == step.dtype for x in step.operands):
            found = self._joined(step)
            if found.shape == step.shape:
                return found
        snapped = _snapped(step)
        if snapped is not None:
            return self._step(SNAP, (self._at(snapped[0]), snapped[1]), {}, step)
        if step.name in (INPUT, CONSTANT) or step.value is not None:
            return step
        return self._step(step.name, tuple(self._at(x) for x in step.args), dict(step.options), step)

    def _joined(self, step: Step) -> Step:
        options = dict(step.options)
        if step.name == "mul":
            scalar, factors = self._factors(step)
            (first, *rest), scalar = self._few(step, factors, scalar, 2)
            if rest:
                first = self._step("mul", (first, *rest), {}, step)
            return first if scalar == 1 else self._step("mul", (first, scalar), {}, step)
        if step.name == "addcmul":
            scalar, factors = self._product(step.args[1:])
            return self._sum(step, self._at(step.args[0]), factors, scalar * options.get("value", 1))
        first, second = step.args
        alpha = options.get("alpha", 1)
        if alpha == 1 and first in self.inside and second not in self.inside:
            first, second = second, first
        if second in self.inside:
            scalar, factors = self._factors(second)
            return self._sum(step, self._at(first), factors, scalar * alpha)
        return self._step("add", (self._at(first), self._at(second)), options, step)

    def _at(self, x: Any) -> Any:
        if isinstance(x, Step) and x not in self.new:
            self.new[x] = self._rewritten(x)
        return self.new[x] if isinstance(x, Step) else x

    def _sum(self, step: Step, base: Any, factors: list[Step], scalar: float) -> Step:
        """``base + scalar * product``."""
        few, scalar = self._few(step, factors, scalar, 2)
        if len(few) == 2 and isinstance(base, Step):
            return self._step("addcmul", (base, *few), {} if scalar == 1 else {"value": scalar}, step)
        first = few[0] if len(few) == 1 else self._step("mul", tuple(few), {}, step)
        if isinstance(base, Step):
            return self._step("add", (base, first), {} if scalar == 1 else {"alpha": scalar}, step)
        first = first if scalar == 1 else self._step("mul", (first, scalar), {}, step)
        return self._step("add", (first, base), {}, step)

    def _factors(self, step: Step) -> tuple[float, list[Step]]:
        return self._product(step.args)

    def _product(self, args: Iterable[Any]) -> tuple[float, list[Step]]:
        scalar, factors = 1.0, []
        for x in args:
            if not isinstance(x, Step):
                scalar *= x
            elif x.number is not None:
                scalar *= x.number
            elif x in self.inside:
                own, inner = self._factors(x)
                scalar *= own
                factors += inner
            else:
                factors.append(self._at(x))
        return scalar, factors

    def _few(self, step: Step, factors: list[Step], scalar: float, count: int) -> tuple[list[Step], float]:
        """At most ``count`` factors and a number with the same product."""
        small = [x for x in factors if x.size * _SMALL <= step.size]
        large = [x for x in factors if x.size * _SMALL > step.size]
        joined: dict[tuple[int, ...], Step] = {}
        for x in small:
            other = joined.get(x.shape)
            joined[x.shape] = x if other is None else self._step("mul", (other, x), {}, x)
        if joined and scalar != 1:
            least = min(joined, key=math.prod)
            joined[least] = self._step("mul", (joined[least], scalar), {}, joined[least])
            scalar = 1.0
        few = [*large, *joined.values()]
        while len(few) > count:
            first, second, *rest = few
            few = [self._step("mul", (first, second), {}, step), *rest]
        return few, scalar

    def _step(self, name: str, args: tuple[Any, ...], options: dict[str, Any], like: Step) -> Step:
        kept = tuple(sorted(options.items()))
        operands = [x for x in args if isinstance(x, Step)]
        shape = like.shape
        if name in ("mul", "add", "addcmul"):
            shape = tuple(_broadcast([x.shape for x in operands]))
        layout = like.layout if len(like.layout) == len(shape) else ()
        key = (name, args, kept, shape, like.dtype, layout)
        if key not in self.known:
            sides = frozenset[int]().union(*(x.sides for x in operands))
            own = {"shape": shape, "layout": layout, "sides": sides, "value": None}
            self.known[key] = replace(like, name=name, args=args, options=kept, **own)
        return self.known[key]


def _snapped(step: Step) -> tuple[Step, float] | None:
    """``(x, near)`` of ``where(abs(x) < near, x, sign(x))``."""
    if step.name != "where":
        return None
    test, x, sign = step.args
    if (test.name, x.dtype) != ("lt", step.dtype) or sign.name != "sign" or sign.args != (x,) or x.shape != step.shape:
        return None
    size, near = test.args
    return (x, near) if isinstance(near, float) and size.name == "abs" and size.args == (x,) else None


def _broadcast(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    rank = max(map(len, shapes))
    padded = [(1,) * (rank - len(s)) + tuple(s) for s in shapes]
    return tuple(max(sizes) for sizes in zip(*padded, strict=True))
