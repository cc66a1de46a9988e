"""Colours of values: their instructions without the names of parameters and without signs.

Values that an exchange of parameters of one law may take to each other have one colour; so have constants of equal
entries. All other scalars are constants that stay what they are: each has a colour of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import permutations, product

import torch
from torch import Tensor

from tpcompile.analysis.blocks import Support
from tpcompile.analysis.memo import bottom_up
from tpcompile.analysis.semantics import constant_value, execute
from tpcompile.errors import EvaluationError
from tpcompile.ir import Contract, Fluctuation, Gaussian, Init, Mul, Node, Sum, Width, split_spec

_ENTRIES = 4_096  # of constants that are compared by their entries
_LETTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"

Colour = int


@dataclass
class Colours:
    """Colours of values, found once each: equal for values that an exchange may take to each other.

    ``data`` are the tensors of the program: constants of equal entries have one colour.
    """

    data: Mapping[str, Tensor]
    _known: dict[Node, Colour] = field(default_factory=dict)
    _constants: dict[Node, Tensor | None] = field(default_factory=dict)
    _first: dict[Colour, Node] = field(default_factory=dict)  # scalar of a colour
    _numbers: dict[object, int] = field(default_factory=dict)

    def of(self, node: Node) -> Colour:
        """The colour of a value."""
        return bottom_up(node, self._known, below, lambda x: self._find(x, [self._known[y] for y in below(x)]))

    def scalar(self, node: Node) -> Node:
        """The first scalar met that is the same number."""
        return self._first.setdefault(self.of(node), node)

    def of_moment(self, node: Node) -> Colour:
        """The colour of a scalar, an Einstein sum over the width, by what it is the sum of."""
        return self._made(node, [self.of(x) for x in node.operands])

    def refined(self, node: Node, fixed: Mapping[Node, Node], known: dict[Node, Colour], support: Support) -> Colour:
        """The colour of a value where some initial values have the colours of others, each of its own.

        ``known`` remembers the colours for these ``fixed`` ones.
        """

        def find(x: Node) -> Colour:
            if x in fixed:
                return self._number(("fixed", fixed[x]))
            if x.kind == "scalar" or fixed.keys().isdisjoint(support.of(x)):
                return self.of(x)
            return self._find(x, [known[y] for y in below(x)])

        return bottom_up(node, known, below, find)

    def _number(self, key: object) -> int:
        return self._numbers.setdefault(key, len(self._numbers))

    def _find(self, node: Node, colours: Sequence[Colour]) -> Colour:
        op = node.op
        if node.kind == "scalar":
            value = bottom_up(node, self._constants, _finite_operands, self._constant)
            return self._number(node if value is None or value.numel() > _ENTRIES else _content(value))
        if opaque(node):
            return self._number(node)
        if isinstance(op, Init):
            return self._number(("init", op.law, op.dims))
        return colours[0] if is_sign(node) else self._made(node, colours)

    def _made(self, node: Node, colours: Sequence[Colour]) -> Colour:
        op = node.op
        if isinstance(op, Sum):
            sizes = map(magnitude, op.coefficients)
            return self._number(("sum", node.dims, tuple(sorted(zip(colours, sizes, strict=True)))))
        if isinstance(op, Mul):
            return self._number(("mul", node.dims, tuple(sorted(colours))))
        if isinstance(op, Contract):
            inputs, out = split_spec(op.spec)
            orders = _orders(list(zip(colours, inputs, strict=True)))
            spec = min(renamed([word for _, word in order], out) for order in orders)
            return self._number((op.mnemonic, spec, tuple(sorted(colours))))
        return self._number((op, node.dims, tuple(colours)))

    def _constant(self, node: Node) -> Tensor | None:
        if node.operands:
            values = [self._constants[x] if x.kind == "scalar" else None for x in node.operands]
            known = [x for x in values if x is not None]
            if len(known) < len(values) or isinstance(node.op, Gaussian | Fluctuation):
                return None
            return execute(node.op, known, node.dims, _no_width, torch.float64)
        return constant_value(node, self.data)


def _finite_operands(node: Node) -> tuple[Node, ...]:
    return tuple(x for x in node.operands if x.kind == "scalar")


def _no_width(width: Width) -> int:
    raise EvaluationError(f"a constant with the width axis {width}")


def _content(value: Tensor) -> tuple[object, ...]:
    """The entries of a constant, up to rounding."""
    return tuple(value.shape), value.dtype, tuple(f"{x:.10e}" for x in value.reshape(-1).tolist())


def below(node: Node) -> tuple[Node, ...]:
    """What a value is made of, down to what stays as it is."""
    return () if opaque(node) else node.operands


def opaque(node: Node) -> bool:
    """True for what stays as it is: scalars, and sums over pairs that vanish, which are draws and not laws."""
    return node.kind == "scalar" or isinstance(node.op, Gaussian)


def renamed(words: Sequence[str], out: str) -> str:
    """An Einstein sum with letters in the order of their appearance."""
    names = {letter: _LETTERS[i] for i, letter in enumerate(dict.fromkeys("".join(words)))}
    return ",".join("".join(names[x] for x in w) for w in words) + "->" + "".join(names[x] for x in out)


def _orders(pairs: Sequence[tuple[Colour, str]]) -> Iterator[list[tuple[Colour, str]]]:
    """All orders of operands by colour."""
    groups = [[p for p in pairs if p[0] == colour] for colour in sorted({c for c, _ in pairs})]
    for choice in product(*(permutations(g) for g in groups)):
        yield [p for group in choice for p in group]


def magnitude(c: float) -> str:
    """The size of a coefficient, up to rounding."""
    return f"{abs(c):.10e}"


def unsigned(node: Node) -> Node:
    """A value without its sign."""
    while is_sign(node):
        node = node.operands[0]
    return node


def is_sign(node: Node) -> bool:
    op = node.op
    if node.kind == "scalar" or not isinstance(op, Sum) or op.coefficients not in ((1.0,), (-1.0,)):
        return False
    return node.operands[0].dims == node.dims
