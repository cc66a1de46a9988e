"""What a parameter does in the operation that uses it, at its present value or any other.

A parameter meets the data in some operation of the forward pass (a matrix product, a bias added, a lookup): found from
the graph, where what is made of parameters only (a transpose, a rescaling) is followed. Nearly all of these operations
are linear in the parameter: then its share of their output is the operation itself with all that is added put to zero.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from heapq import heapify, heappop, heappush
from typing import Any, cast

from tpcompile.capture.graph import Capture, GraphNode, Ref, Scaled, references
from tpcompile.errors import TpcompileError
from tpcompile.lowering.lower import Lowered, interpret, unknown
from tpcompile.lowering.value import AnyValue, MatrixValue, Value

# Positions of the operands that add to what an operation makes of the operand at a position in which it is linear.
_ADDED: dict[str, dict[int, tuple[int, ...]]] = {
    **{f"aten.{name}": {0: (), 1: ()} for name in ("mm.default", "bmm.default", "mv.default", "dot.default")},
    **{f"aten.{name}": {0: (), 1: ()} for name in ("mul.Tensor", "mul.Scalar")},
    **{f"aten.{name}": {0: (1,), 1: (0,)} for name in ("add.Tensor", "sub.Tensor")},
    **{f"aten.{name}": {0: (1,), 1: (0,), 2: (0,)} for name in ("addmm.default", "addmv.default", "baddbmm.default")},
    **{f"aten.{name}": {0: ()} for name in ("div.Tensor", "embedding.default", "index.Tensor", "index_select.default")},
    "aten.convolution.default": {1: (2,), 2: (0,)},
    "aten.native_layer_norm.default": {2: (3,), 3: (2,)},
    **{
        f"aten.{name}.default": {1: (2,), 2: (1,)}
        for name in ("native_group_norm", "native_batch_norm", "_native_batch_norm_legit_functional")
    },
}


_SCALED = frozenset(("aten.mul.Tensor", "aten.mul.Scalar", "aten.div.Tensor", "aten.div.Scalar"))
_PRODUCTS = frozenset(f"aten.{name}.default" for name in ("mm", "bmm", "mv", "dot"))
_SUMS = frozenset(("aten.add.Tensor", "aten.sub.Tensor"))
_VIEWS = frozenset(
    f"aten.{name}.default" for name in ("view", "_unsafe_view", "reshape", "permute", "squeeze", "unsqueeze", "clone")
) | {"aten.transpose.int", "aten.t.default"}
_MOVES = frozenset(
    f"aten.{name}"
    for name in (
        *("neg.default", "expand.default", "_to_copy.default", "detach.default", "alias.default", "repeat.default"),
        *("select.int", "slice.Tensor", "split.Tensor", "unbind.int", "sum.dim_IntList", "mean.dim"),
        *("embedding.default", "index.Tensor", "index_select.default"),
    )
)


@dataclass(frozen=True)
class Use:
    """An operation in which a parameter meets the data, and the operand that is the parameter or made of it."""

    node: GraphNode
    operand: str
    made_of: tuple[GraphNode, ...]  # operations on parameters only on the way
    then: tuple[GraphNode, ...] = ()  # multipliers, sums and views behind it, each the only reader of the one before
    beside: tuple[str, ...] = ()  # what it is multiplied with that depends on the data

    @property
    def factor(self) -> Fraction:
        """The power of n by which what follows multiplies."""
        return sum((_factor(node) for node in self.then), Fraction(0))


def parameter_node(capture: Capture, parameter: str, step: int) -> str:
    """The node of a parameter's value before a step; its initial one where it is not trained."""
    ref = capture.outputs.get(f"parameter/{parameter}/{step}")
    if ref is not None:
        return ref.name
    return next(node.name for node in capture.nodes if node.kind == "parameter" and str(node.target) == parameter)


def uses(capture: Capture, parameter: str, step: int) -> list[Use]:
    """Where a parameter is used in the forward pass of a step."""
    start = parameter_node(capture, parameter, step)
    way: dict[str, tuple[GraphNode, ...]] = {start: ()}
    data = capture.computed
    found = []
    pending = [capture.positions[node.name] for node in _readers(capture, start, step)]
    heapify(pending)
    while pending:
        position = heappop(pending)
        if pending and pending[0] == position:  # reached twice
            continue
        node = capture.nodes[position]
        for operand in sorted(way.keys() & set(node.operands)):
            if node.name not in data:
                way[node.name] = (*way[operand], node)
            else:
                beside = tuple(sorted(data.intersection(node.operands) - _added(node, operand)))
                found.append(Use(node, operand, way[operand], _behind(capture, node), beside))
        for reader in _readers(capture, node.name, step) if node.name in way else ():
            heappush(pending, capture.positions[reader.name])
    return found


def products(capture: Capture, step: int) -> list[GraphNode]:
    """Products of two values that depend on the data, summed over a growing axis, in the forward pass of a step."""
    return [node for node in capture.nodes if node.is_forward(step) and _is_product(capture, node)]


def adjoints(capture: Capture, node: GraphNode) -> list[str]:
    """The products in the gradient of a product, each proportional to the gradient of what it makes."""
    number = node.origin.product
    found = (x for x in capture.nodes if x.origin.phase == "backward" and str(x.target) in _PRODUCTS)
    return [x.name for x in found if number is not None and x.origin.product == number]


def _is_product(capture: Capture, node: GraphNode) -> bool:
    if str(node.target) not in _PRODUCTS or not capture.computed.issuperset(node.operands):
        return False
    shape = capture.named[node.operands[0]].shape
    return bool(shape and shape[-1].power)


def _readers(capture: Capture, name: str, step: int) -> list[GraphNode]:
    return [node for node in capture.readers.get(name, ()) if node.is_forward(step)]


def _added(node: GraphNode, operand: str) -> set[str]:
    """Operands that add to what an operation makes of one."""
    at = [i for i, x in enumerate(node.args) if isinstance(x, Ref) and x.name == operand]
    positions = _ADDED.get(str(node.target), {}).get(at[0], ()) if at else ()
    return {name for i in positions if i < len(node.args) for name in references(node.args[i])}


def _behind(capture: Capture, node: GraphNode) -> tuple[GraphNode, ...]:
    """What is linear behind an operation, up to the first other one or one that is read twice: its layer's output.

    Numbers in front of a factor of a product of two activations, as of a query, belong to the product.
    """
    step = node.origin.step
    chain: list[GraphNode] = []
    while len(following := _readers(capture, node.name, step)) == 1 and _is_linear(following[0], node.name):
        node = following[0]
        chain.append(node)
    if chain and any(_is_product(capture, reader) for reader in _readers(capture, chain[-1].name, step)):
        scaled = (i for i, link in enumerate(chain) if str(link.target) in _SCALED)
        return tuple(chain[: next(scaled, len(chain))])
    return tuple(chain)


def factor_behind(capture: Capture, name: str) -> Fraction:
    """The largest power of n by which the operations that read a value multiply it before anything else."""
    step = capture.named[name].origin.step

    def largest(value: str) -> Fraction:
        following = _readers(capture, value, step)
        ways = (_factor(node) + largest(node.name) if _keeps(node) else Fraction(0) for node in following)
        return max(ways, default=Fraction(0))

    return largest(name)


def _keeps(node: GraphNode) -> bool:
    target = str(node.target)
    return target in _VIEWS or (target in _SCALED and len([*references(node.args)]) == 1)


def _factor(node: GraphNode) -> Fraction:
    number = next((x for x in node.args if isinstance(x, Scaled)), None)
    if str(node.target) not in _SCALED or number is None:
        return Fraction(0)
    return -number.exponent if str(node.target).startswith("aten.div") else number.exponent


def _is_linear(node: GraphNode, operand: str) -> bool:
    target = str(node.target)
    if target in _SCALED:
        return len([*references(node.args)]) == 1
    return target in _VIEWS or (target in _SUMS and [*references(node.args)].count(operand) == 1)


def share(capture: Capture, lowered: Lowered, use: Use, parameter: str, step: int, value: AnyValue) -> AnyValue | None:
    """What the parameter, having this value, adds to the operation's output; None where that is not known.

    For an operation that is not linear in it: the output less what it is with the parameter smaller by this value.
    """
    start = parameter_node(capture, parameter, step)
    positions = [i for i, x in enumerate(use.node.args) if isinstance(x, Ref) and x.name == use.operand]
    added = _ADDED.get(str(use.node.target), {})
    linear = len(positions) == 1 and positions[0] in added
    if linear and all(_passes(node) for node in use.made_of):
        shadows = _made(capture, lowered, use, {start: value})
    else:
        shadows = _made(capture, lowered, use, {start: difference(lowered, lowered.nodes[start], value)})
        if linear:
            shadows = {use.operand: difference(lowered, lowered.nodes[use.operand], shadows[use.operand])}
    if linear:
        node = use.node
        for i in added[positions[0]]:
            if i < len(node.args) and isinstance(node.args[i], Ref):
                shadows[node.args[i].name] = zero_like(lowered.nodes[node.args[i].name])
        return _through(capture, lowered, use, first_result(replayed(capture, lowered, node, shadows)))
    now, then = first_result(lowered.nodes[use.node.name]), first_result(replayed(capture, lowered, use.node, shadows))
    apart = None if now is None or then is None else difference(lowered, now, then)
    return _through(capture, lowered, use, apart)


def _made(capture: Capture, lowered: Lowered, use: Use, shadows: dict[str, Any]) -> dict[str, Any]:
    """What is made of another value of the parameter on its way to the operation."""
    for node in use.made_of:
        shadows[node.name] = replayed(capture, lowered, node, shadows)
    return shadows


def _passes(node: GraphNode) -> bool:
    """True for an operation on a parameter alone that is linear in it."""
    return str(node.target) in _VIEWS | _MOVES or _keeps(node)


def _through(capture: Capture, lowered: Lowered, use: Use, value: AnyValue | None) -> AnyValue | None:
    """A part of an operation's output behind the multipliers and sums that follow, all that is added put to zero."""
    name = use.node.name
    for node in use.then:
        if value is None:
            return None
        shadows = {x: value if x == name else zero_like(lowered.nodes[x]) for x in references(node.args)}
        value, name = first_result(replayed(capture, lowered, node, shadows)), node.name
    return value


def replayed(capture: Capture, lowered: Lowered, node: GraphNode, other: Mapping[str, Any]) -> Any:
    """The value of an operation with some operands replaced."""
    context = lowered.context
    context.current = node
    context.algebra.place = context.place
    context.algebra.builder.origin = str(node.origin)
    try:
        return interpret(context, capture, node, ChainMap(dict(other), cast(dict[str, Any], lowered.nodes)))
    except (TpcompileError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError):
        return unknown(node)


def first_result(value: Any) -> AnyValue | None:
    """The value of an operation, the first of several."""
    while isinstance(value, list | tuple) and value:
        value = value[0]
    return value if isinstance(value, Value | MatrixValue) else None


def difference(lowered: Lowered, a: AnyValue, b: AnyValue) -> AnyValue:
    """``a - b``."""
    return lowered.context.add(a, lowered.context.negate(b))


def zero_like(value: AnyValue) -> AnyValue:
    """A value that is exactly zero."""
    return MatrixValue(value.axes) if isinstance(value, MatrixValue) else Value(value.axes, ())
