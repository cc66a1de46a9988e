"""Arithmetic of asymptotic series: sums, products, Taylor expansion, reshaping. Once, for all rules.

Theory, section 3. ``depth`` says how far below its leading exponent a value is kept; what falls below is
remembered as its remainder.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any

from tpcompile.analysis.blocks import Support
from tpcompile.analysis.exchange import Exchange
from tpcompile.analysis.parity import Parity
from tpcompile.errors import UnstableError, UnsupportedOperationError
from tpcompile.ir import Builder, Const, Dims, Node, Width
from tpcompile.lowering.axes import refactored
from tpcompile.lowering.nodes import Nodes, Weighted
from tpcompile.lowering.remainders import of_product, of_sum
from tpcompile.lowering.value import Axes, Axis, Term, Value, extent, flat, largest, plus


@dataclass
class Algebra:
    """Operations on :class:`Value`. With ``width`` a number, n is that number and nothing is expanded or dropped."""

    depth: Fraction
    width: int | None = None
    builder: Builder = field(default_factory=Builder)
    parity: Parity = field(default_factory=Parity)
    support: Support = field(default_factory=Support)
    vanishing: dict[tuple[str, tuple[Node, ...]], bool] = field(
        default_factory=dict
    )  # moments met, whether they vanish
    doubt: Callable[[Builder, str, Node], bool] | None = None  # if a mean that is in doubt counts as zero
    exchange: Exchange | None = None  # where zeros by exchanges of parameters count: in verdicts
    place: str = ""  # of the operation at hand, for errors

    def __post_init__(self) -> None:
        self.nodes = Nodes(self.builder)

    # numbers -------------------------------------------------------------------------------

    def power(self, coefficient: float, exponent: Fraction) -> tuple[float, Fraction]:
        """``coefficient * n**exponent`` as it is kept: at a concrete width the power becomes a number."""
        if self.width is None:
            return coefficient, exponent
        return coefficient * float(self.width) ** float(exponent), Fraction(0)

    def number(self, coefficient: float, exponent: Fraction = Fraction(0), axes: Axes = ()) -> Value:
        """A constant value."""
        if coefficient == 0.0:
            return self.zeros(axes)
        coefficient, exponent = self.power(coefficient, exponent)
        node = self.nodes.expand(self.builder.node(Const(coefficient)), flat(axes))
        return Value(axes, ((exponent, node),), touches=frozenset())

    def zeros(self, axes: Axes) -> Value:
        """Exactly zero."""
        return Value(axes, (), touches=frozenset())

    # assembling ----------------------------------------------------------------------------

    def collect(self, axes: Axes, items: Sequence[tuple[Fraction, float, Node]], remainder: Fraction | None) -> Value:
        """Series of ``coefficient * n**exponent * node``: equal exponents merged, the tail cut."""
        groups: dict[Fraction, list[Weighted]] = defaultdict(list)
        for exponent, coefficient, node in items:
            groups[exponent].append((coefficient, node))
        dims = flat(axes)
        terms: list[Term] = []
        lead: Fraction | None = None
        for exponent in sorted(groups, reverse=True):
            below = (lead is not None and exponent <= lead - self.depth) or (
                remainder is not None and exponent <= remainder
            )
            if below and self.width is None:
                remainder = largest(remainder, exponent)
                break
            node = self.nodes.sum(groups[exponent], dims)
            if node is not None:
                terms.append((exponent, node))
                lead = exponent if lead is None else lead
        return Value(axes, tuple(terms), remainder)

    # linear --------------------------------------------------------------------------------

    def add(self, *summands: tuple[float, Value]) -> Value:
        """``sum_i c_i x_i`` with broadcasting."""
        axes = self.common_axes(*(v.axes for _, v in summands))
        items = [(e, c, node) for c, v in summands for e, node in self.fit(v, axes).terms]
        out = self.collect(axes, items, largest(*(v.remainder for c, v in summands if c != 0.0)))
        values = [v for c, v in summands if c != 0.0]
        return replace(out, touches=_touched(values), multiples=of_sum(values, out.remainder, self.parity))

    def scale(self, value: Value, coefficient: float, exponent: Fraction = Fraction(0)) -> Value:
        """``coefficient * n**exponent * value``."""
        if coefficient == 0.0:
            return self.zeros(value.axes)
        coefficient, exponent = self.power(coefficient, exponent)
        items = [(e + exponent, coefficient, node) for e, node in value.terms]
        scaled = self.collect(value.axes, items, plus(value.remainder, exponent))
        multiples = tuple(replace(m, rest=plus(m.rest, exponent)) for m in value.multiples)
        return replace(scaled, touches=value.touches, multiples=multiples)

    def common_axes(self, *all_axes: Axes) -> Axes:
        """Right-aligned broadcasting of torch axes."""
        rank = max(map(len, all_axes), default=0)
        out: list[Axis] = []
        for i in range(rank):
            axis: Axis = ()
            for axes in all_axes:
                j = i - (rank - len(axes))
                if j < 0 or axes[j] in ((), axis):
                    continue
                axis = axes[j] if axis == () else self._joint(axis, axes[j])
            out.append(axis)
        return tuple(out)

    def _joint(self, a: Axis, b: Axis) -> Axis:
        """One width atom in place of two factorisations of the same growing axis."""
        (size, power), other = extent(a), extent(b)
        if power != 1 or other != (size, power):
            raise UnsupportedOperationError(f"axes {a} and {b} do not broadcast", where=self.place)
        return (Width(size),)

    def fit(self, value: Value, axes: Axes) -> Value:
        """Insert axes of length 1 so that the nodes broadcast against nodes of the given axes."""
        padded = ((),) * (len(axes) - len(value.axes)) + value.axes
        if value.axes == axes:
            return value
        padded = tuple(want if have != () else () for have, want in zip(padded, axes, strict=True))
        value = self.reshape(value, padded[len(axes) - len(value.axes) :])
        dims: list[Any] = []
        for have, want in zip(padded, axes, strict=True):
            dims += list(have) if have == want else [1] * len(want)
        while dims and dims[0] == 1 and len(dims) > 0:  # leading ones are implied
            dims.pop(0)
        return self.over_nodes(value, value.axes, lambda node: self.nodes.view(node, tuple(dims)))

    def over_nodes(self, value: Value, axes: Axes, f: Any) -> Value:
        """Apply a linear function of nodes to every term."""
        return replace(value, axes=axes, terms=tuple((e, f(node)) for e, node in value.terms))

    # products ------------------------------------------------------------------------------

    def mul(self, a: Value, b: Value) -> Value:
        """Pointwise product with broadcasting."""
        axes = self.common_axes(a.axes, b.axes)
        if a.is_zero or b.is_zero:
            return self.zeros(axes)
        a, b = self.fit(a, axes), self.fit(b, axes)
        dims = flat(axes)
        items = []
        for ea, x in a.terms:
            for eb, y in b.terms:
                node = self.nodes.mul([x, y], dims)
                if node is not None:
                    items.append((ea + eb, 1.0, node))
        out = self.collect(axes, items, largest(plus(a.remainder, b.lead), plus(a.lead, b.remainder)))
        return replace(out, touches=_touched((a, b)), multiples=of_product(a, b, out.remainder, self.parity))

    def cut(self, value: Value, remainder: Fraction) -> Value:
        """Forget everything at or below this exponent."""
        shorter = self.collect(value.axes, [(e, 1.0, x) for e, x in value.terms], largest(value.remainder, remainder))
        return replace(shorter, touches=value.touches)

    # limits --------------------------------------------------------------------------------

    def limit(self, value: Value) -> Node:
        """The node of exponent 0 (zeros if there is none); UnstableError if the value grows.

        Where the remainder hides it, the caller has to carry the remainder on.
        """
        if value.terms and value.terms[0][0] > 0:
            lead = value.terms[0][0]
            raise UnstableError(
                f"a value of size n^{lead} where a finite one is needed",
                value="scalar",
                step=None,
                exponent=lead,
                where=self.place,
            )
        for e, node in value.terms:
            if e == 0:
                return node
        return self.nodes.expand(self.builder.node(Const(0.0)), flat(value.axes))

    # axes ----------------------------------------------------------------------------------

    def permute(self, value: Value, order: Sequence[int]) -> Value:
        """Reorder torch axes."""
        axes = tuple(value.axes[i] for i in order)
        start = [sum(len(a) for a in value.axes[:i]) for i in range(len(value.axes))]
        moved = [start[i] + k for i in order for k in range(len(value.axes[i]))]
        return self.over_nodes(value, axes, lambda node: self.nodes.permute(node, moved))

    def reshape(self, value: Value, axes: Axes) -> Value:
        """Reshape to axes that hold the same entries in the same order."""
        have, want = flat(value.axes), flat(axes)
        if have == want:
            return replace(value, axes=axes)
        if any(extent(a)[1] > 1 for a in (have, want)):
            raise UnsupportedOperationError("a view of a value with two growing axes", where=self.place)
        return self.over_nodes(value, axes, lambda node: refactored(self.nodes, node, have, want))

    def expand(self, value: Value, axes: Axes) -> Value:
        """Broadcast to larger axes."""
        dims = flat(axes)
        fitted = self.fit(value, axes)
        return self.over_nodes(fitted, axes, lambda node: self._expanded(node, dims))

    def _expanded(self, node: Node, dims: Dims) -> Node:
        number, base = self.nodes.split(node)
        scaled = self.nodes.scale(number, self.nodes.expand(base, dims))
        assert scaled is not None
        return scaled


def _touched(values: Iterable[Value]) -> frozenset[str] | None:
    """Parameters that any of the values touches; None if one of them does not say."""
    sets = [v.touches for v in values]
    return None if None in sets else frozenset().union(*(s for s in sets if s is not None))
