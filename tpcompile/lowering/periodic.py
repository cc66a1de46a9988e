"""Long training runs from short ones: the instructions of one step, repeated.

From some step on, training with constant hyperparameters adds the same instructions at every step: on values of the
same step, of the steps before at the same distance, and on values that all steps share. A program of few steps in
which the last ones are seen to be such repetitions is continued to any number of steps. Nothing is assumed: numbers,
instructions, operands and exponents of consecutive steps are compared, lengths may grow by a constant (the history of
updates), and what does not repeat is :class:`NotPeriodicError`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from tpcompile.errors import TpcompileError
from tpcompile.ir import Builder, Node, Op, Output, Program, Sum, finish
from tpcompile.lowering.request import name_at, split_name

SHORT = 8
"""Steps of the program that is continued."""
_COMPARED = 4
_ROUNDING = 1e-12
_TOGETHER = 3  # summands of a sum that is not yet long


class NotPeriodicError(TpcompileError):
    """The steps of a program do not repeat."""


@dataclass(frozen=True)
class _Place:
    """The node number ``position`` among those that step ``step`` adds."""

    step: int
    position: int


def continued(program: Program, total: int) -> Program:
    """A program of ``total`` training steps from one of few; NotPeriodicError if its last steps are not alike.

    Values are the same as those of the program of all steps to rounding; sums over all steps are written as the sum
    so far plus what a step adds.
    """
    bodies = _Bodies(incremental(program))
    last = bodies.last
    for step in range(last - _COMPARED + 2, last + 1):
        if bodies.template(step) != bodies.template(last):
            raise NotPeriodicError(f"steps {step} and {last} differ")
    return bodies.continued(total)


def incremental(program: Program) -> Program:
    """The same program with long sums written summand by summand, so that sums that begin alike share that part.

    A sum that begins with a multiple of an earlier one (weight decay) stands on top of that one.
    """
    builder = Builder()
    builder.data = dict(program.data)
    new: dict[Node, Node] = {}
    known: dict[tuple[Node, ...], list[Node]] = {}  # sums by operands
    for node in program.nodes:
        builder.origin = program.origins.get(node, "")
        operands = tuple(new[x] for x in node.operands)
        if isinstance(node.op, Sum):
            start, coefficients = 0, node.op.coefficients
            found = _beginning(node, known)
            known.setdefault(node.operands, []).append(node)
            if found is not None:
                before, ratio = found
                start = len(before.operands)
                total = builder.node(Sum((ratio, coefficients[start])), new[before], operands[start])
                start += 1
            else:
                start = min(_TOGETHER, len(operands))
                total = builder.node(Sum(coefficients[:start]), *operands[:start])
            for c, x in zip(coefficients[start:], operands[start:], strict=True):
                total = builder.node(Sum((1.0, c)), total, x)
            new[node] = total
        else:
            new[node] = builder.node(node.op, *operands)
    outputs = {
        name: replace(out, terms=tuple((e, new[x]) for e, x in out.terms)) for name, out in program.outputs.items()
    }
    return finish(builder, outputs)


def _beginning(node: Node, known: Mapping[tuple[Node, ...], list[Node]]) -> tuple[Node, float] | None:
    """The longest earlier sum that is no plain part of this one but a multiple of whose terms it begins with."""
    assert isinstance(node.op, Sum)
    for length in range(len(node.operands) - 1, 1, -1):
        for before in known.get(node.operands[:length], ()):
            assert isinstance(before.op, Sum)
            ratio = node.op.coefficients[0] / before.op.coefficients[0]
            pairs = zip(node.op.coefficients, before.op.coefficients, strict=False)
            alike = all(math.isclose(a, ratio * b, rel_tol=_ROUNDING) for a, b in pairs)
            if ratio != 1.0 and before.dims == node.dims and alike:
                return before, ratio
    return None


class _Bodies:
    """What every step adds to a program, in an order that is the same for steps that are alike."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.names: dict[int, dict[str, str]] = {}  # of the outputs of a step, by their names without it
        for name in program.outputs:
            key, step = split_name(name)
            self.names.setdefault(step, {})[key] = name
        self.last = max(self.names)
        self.places: dict[Node, _Place] = {}
        self.nodes = [self._added(step) for step in range(self.last + 1)]

    def _outputs(self, step: int) -> list[tuple[str, Output]]:
        return [(key, self.program.outputs[name]) for key, name in sorted(self.names[step].items())]

    def _added(self, step: int) -> list[Node]:
        """New nodes of a step, depth first from its outputs."""
        order: list[Node] = []
        for _, output in self._outputs(step):
            for _, root in output.terms:
                stack = [root]
                while stack:
                    top = stack[-1]
                    waiting = [x for x in top.operands if x not in self.places]
                    if top not in self.places and waiting:
                        stack.append(waiting[0])
                        continue
                    stack.pop()
                    if top not in self.places:
                        self.places[top] = _Place(step, len(order))
                        order.append(top)
        return order

    # comparing -----------------------------------------------------------------------------

    def template(self, step: int) -> tuple[Any, ...]:
        """How a step follows from the one before: equal for steps that are alike."""
        before, after = self.nodes[step - 1], self.nodes[step]
        if len(before) != len(after):
            raise NotPeriodicError(f"step {step} adds {len(after)} instructions, step {step - 1} {len(before)}")
        entries = [
            (_increment(a.op, b.op), tuple(self._reference(x, y, step) for x, y in _pairs(a.operands, b.operands)))
            for a, b in zip(before, after, strict=True)
        ]
        results = []
        for (key, a), (other, b) in _pairs(self._outputs(step - 1), self._outputs(step)):
            if key != other or a.remainder != b.remainder:
                raise NotPeriodicError(f"the outputs of step {step} are not those of the step before")
            terms = []
            for (e, x), (f, y) in _pairs(a.terms, b.terms):
                if e != f:
                    raise NotPeriodicError(f"'{key}' changes its exponents at step {step}")
                terms.append((e, self._reference(x, y, step)))
            results.append((key, tuple(terms), _increment(a.shape, b.shape)))
        return tuple(entries), tuple(results)

    def _reference(self, a: Node, b: Node, step: int) -> _Place:
        """What an operand is relative to its step: a value of all steps, or one a number of steps before (negative)."""
        p, q = self.places[a], self.places[b]
        if a is b:
            return p
        if q != _Place(p.step + 1, p.position):
            raise NotPeriodicError(f"step {step} reads values that the step before has no counterpart of")
        return _Place(q.step - step - 1, q.position)

    # continuing ----------------------------------------------------------------------------

    def continued(self, total: int) -> Program:
        """The program of that many steps, instructions ordered by step."""
        builder = Builder()
        builder.data = dict(self.program.data)
        made: list[list[Node]] = []
        outputs: dict[str, Output] = {}
        new: dict[Node, Node] = {}
        for step in range(self.last + 1):
            for node in sorted(self.nodes[step], key=lambda x: x.serial):
                builder.origin = self.program.origins.get(node, "")
                new[node] = builder.node(node.op, *(new[x] for x in node.operands))
            made.append([new[node] for node in self.nodes[step]])
            for key, out in self._outputs(step):
                outputs[name_at(key, step)] = replace(out, terms=tuple((e, new[x]) for e, x in out.terms))
        entries, results = self.template(self.last)
        body = self.nodes[self.last]
        order = sorted(range(len(body)), key=lambda i: body[i].serial)
        origins = [self.program.origins.get(x, "") for x in body]
        for step in range(self.last + 1, total + 1):
            ahead = step - self.last
            nodes: dict[int, Node] = {}

            def at(place: _Place, nodes: dict[int, Node] = nodes, step: int = step) -> Node:
                if place.step >= 0:
                    return made[place.step][place.position]
                back = -1 - place.step
                return nodes[place.position] if back == 0 else made[step - back][place.position]

            for i in order:
                change, references = entries[i]
                builder.origin = _later(origins[i], ahead)
                nodes[i] = builder.node(_moved(body[i].op, change, ahead), *(at(x) for x in references))
            made.append([nodes[i] for i in range(len(body))])
            for key, terms, change in results:
                known = self.program.outputs[self.names[self.last][key]]
                shape = _moved(known.shape, change, ahead)
                outputs[name_at(key, step)] = Output(tuple((e, at(x)) for e, x in terms), known.remainder, shape)
        return finish(builder, outputs)


def _pairs(a: Iterable[Any], b: Iterable[Any]) -> list[tuple[Any, Any]]:
    first, second = list(a), list(b)
    if len(first) != len(second):
        raise NotPeriodicError("the number of operands or outputs changes with the step")
    return list(zip(first, second, strict=True))


def _increment(a: Any, b: Any) -> Any:
    """What a step adds to the numbers of an instruction: None where nothing, integers by a constant."""
    if a == b:
        return None
    if type(a) is type(b) is int:
        return b - a
    if type(a) is type(b) is float and math.isclose(a, b, rel_tol=_ROUNDING):
        return None
    if type(a) is type(b) is tuple or (type(a) is type(b) and isinstance(a, Op)):
        first, second = (x if isinstance(x, tuple) else [getattr(x, f.name) for f in fields(x)] for x in (a, b))
        changes = tuple(_increment(x, y) for x, y in _pairs(first, second))
        return None if all(c is None for c in changes) else changes
    raise NotPeriodicError(f"{a!r} becomes {b!r} in the next step")


def _moved(value: Any, change: Any, steps: int) -> Any:
    """A value after that many more steps."""
    if change is None:
        return value
    if isinstance(value, int):
        return value + steps * change
    if isinstance(value, tuple):
        return tuple(_moved(x, c, steps) for x, c in zip(value, change, strict=True))
    moved = {f.name: _moved(getattr(value, f.name), c, steps) for f, c in zip(fields(value), change, strict=True)}
    return replace(value, **moved)


def _later(origin: str, steps: int) -> str:
    return re.sub(r"(?<=step )\d+", lambda found: str(int(found.group()) + steps), origin, count=1)
