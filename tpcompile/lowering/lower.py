"""Abstract interpretation of a captured graph: every node to a value, rule by rule."""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import product
from typing import Any

from tpcompile.analysis.exchange import Exchange
from tpcompile.capture.graph import Capture, GraphNode, Ref, Scaled
from tpcompile.errors import InitialisationError, TpcompileError, UnstableError, UnsupportedOperationError
from tpcompile.ir import Builder, Init, Node, Slice, reachable
from tpcompile.laws import Constant, Law, Normal, Orthogonal, ParameterLaw, Pieces, mean_and_std
from tpcompile.lowering.algebra import Algebra
from tpcompile.lowering.context import Context, axis_of
from tpcompile.lowering.functions import UNKNOWN
from tpcompile.lowering.pointwise import pointwise
from tpcompile.lowering.registry import rules
from tpcompile.lowering.touches import Touches
from tpcompile.lowering.value import (
    HALF,
    AnyValue,
    Axes,
    Block,
    Fixed,
    InitTerm,
    MatrixValue,
    Value,
    flat,
    has_width,
    is_width,
)


@dataclass(frozen=True)
class Lowered:
    """Values of the requested nodes of a capture, and the context that made them."""

    values: Mapping[str, AnyValue]
    context: Context
    nodes: Mapping[str, Any] = field(default_factory=dict)  # of every node of the graph
    undecided: Mapping[str, TpcompileError] = field(default_factory=dict)  # why nothing is known of a node


_UPDATES = Fraction(
    8
)  # orders kept on top in an updated parameter: a small update must not drown in the initial values
Adjustment = Callable[[Context, str, Any, Mapping[str, Any]], Any]  # node's name, its value, all values so far


@dataclass(frozen=True)
class Unknown:
    """The results of an operation of several, of which nothing is known."""

    node: GraphNode


def lower(
    capture: Capture,
    depth: Fraction,
    width: int | None = None,
    kernel: bool = False,
    tolerant: bool = False,
    adjust: Adjustment | None = None,
    earlier: Lowered | None = None,
    doubt: Callable[[Builder, str, Node], bool] | None = None,
    exchange: bool = True,
) -> Lowered:
    """Lower a captured graph, keeping series to ``depth`` below their leading exponents.

    With ``width`` a number the program is that of this width: every power of n is a number, nothing is
    expanded or dropped, and running it on the model's weights must reproduce the graph to rounding.
    For a ``kernel`` the output may grow with the width, and derivatives of nonlinearities are taken at their inputs,
    where their dual activations are known. ``tolerant`` goes on behind operations that have no rule or no limit:
    nothing is known of their values, and ``undecided`` says why. ``adjust`` may put another value in a node's place.
    ``doubt`` says of means that are not zero by structure whether they count as zero all the same.
    With ``exchange`` means may also vanish, in a tolerant lowering, by exchanges of parameters of one law.
    What another lowering found out about nodes need not be found again: ``earlier`` hands on its nodes.
    Raises UnsupportedOperationError for operations without a rule, UnstableError where a value blows up.
    """
    algebra = Algebra(depth, width) if earlier is None else replace(earlier.context.algebra, depth=depth, width=width)
    algebra.doubt = doubt
    if not exchange:
        algebra.exchange = None
    elif tolerant and algebra.exchange is None:
        algebra.exchange = Exchange(algebra.parity, algebra.support, algebra.builder.data)
    context = Context(algebra, capture.nodes[0], derivatives=kernel, beyond=tolerant, graph=capture.named)
    undecided: dict[str, TpcompileError] = {}
    values: dict[str, Any] = {}
    watched: dict[str, list[str]] = defaultdict(list)
    for name, ref in capture.outputs.items():
        watched[ref.name].append(name)
    seen: dict[str, Value] = {}
    touches = Touches(capture)
    updated = {ref.name for name, ref in capture.outputs.items() if name.startswith("parameter/")}
    for node in capture.nodes:
        context.current = node
        algebra.place = context.place if node.kind == "call" else f"'{node.target}'"
        algebra.builder.origin = str(node.origin)
        algebra.depth = depth + _UPDATES if node.name in updated else depth
        initial: frozenset[str] = frozenset()
        try:
            value = interpret(context, capture, node, values)
            initial = frozenset() if node.kind == "call" else _initial(value)
            values[node.name] = value if adjust is None else adjust(context, node.name, value, values)
        except TpcompileError as error:
            if tolerant and node.kind == "call":
                undecided[node.name] = error
                values[node.name] = unknown(node)
            elif isinstance(error, UnstableError):
                raise _first_growth(seen, error, node) from error
            else:
                raise
        except (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            wrapped = UnsupportedOperationError(
                f"the rule of {node.target} does not cover this call ({type(error).__name__}: {error})",
                where=algebra.place,
                advice="please report it with the line of the model",
            )
            if not tolerant or node.kind != "call":
                raise wrapped from error
            undecided[node.name] = wrapped
            values[node.name] = unknown(node)
        touches.find(node, initial)
        value = values[node.name]
        if isinstance(value, Value):
            value = values[node.name] = replace(value, touches=touches.of[node.name], rows=touches.rows[node.name])
            seen.update((name, value) for name in watched.get(node.name, ()))
    outputs: dict[str, AnyValue] = {}
    for name, ref in capture.outputs.items():
        value = values[ref.name]
        outputs[name] = value
        finite = name.startswith(("outputs/", "test_outputs/", "loss/")) and isinstance(value, Value)
        if finite and not (kernel or tolerant) and value.terms and value.terms[0][0] > 0:
            raise _first_growth(seen, _growth(name, value.terms[0][0]), None)
    return Lowered(outputs, context, values, undecided)


def _law(capture: Capture, name: str) -> ParameterLaw:
    node = next(x for x in capture.nodes if x.kind in ("parameter", "buffer") and str(x.target) == name)
    return capture.laws[node.name]


def _initial(value: AnyValue) -> frozenset[str]:
    """The names of the initial values that a parameter is made of."""
    nodes = [t.matrix for t in value.inits] if isinstance(value, MatrixValue) else [x for _, x in value.terms]
    return frozenset(x.op.name for x in reachable(nodes) if isinstance(x.op, Init))


def unknown(node: GraphNode) -> Any:
    """A value of which nothing is known but its axes."""
    if node.shape is None or any(s.power > 1 for s in node.shape):
        return Unknown(node)
    axes = tuple(axis_of(s) for s in node.shape)
    return MatrixValue(axes, (), (), UNKNOWN) if has_width(axes) == 2 else Value(axes, (), UNKNOWN)


def _growth(name: str, exponent: Fraction) -> UnstableError:
    quantity, _, step = name.rpartition("/")
    value = quantity.removeprefix("test_").removeprefix("activation/")
    what = f"activation '{value}'" if "activation/" in quantity else f"'{value}'"
    return UnstableError(
        f"{what} grows like n^{exponent} at step {step}: the parametrization is unstable",
        value=value,
        step=int(step),
        exponent=exponent,
        advice="scale the learning rate or the multipliers down by that power of the width",
    )


def _first_growth(seen: Mapping[str, Value], error: UnstableError, node: GraphNode | None) -> UnstableError:
    """The first activation, output or loss that grows beyond its size at initialisation; else the error itself."""
    start = {
        name.rpartition("/")[0]: value.terms[0][0]
        for name, value in seen.items()
        if name.endswith("/0") and value.terms
    }
    for name, value in seen.items():
        quantity, _, step = name.rpartition("/")
        if not value.terms or value.terms[0][0] <= 0:
            continue
        if step == "0" and quantity.startswith(("activation/", "test_activation/")):
            continue  # a constant scale is no growth: the model may divide by it later
        if value.terms[0][0] > start.get(quantity, Fraction(0)) or step == "0":
            return _growth(name, value.terms[0][0])
    if error.step is None and node is not None:
        return UnstableError(
            error.what,
            value=node.origin.module or str(node.target),
            step=node.origin.step,
            exponent=error.exponent,
            where=error.where,
            advice="scale the initialisation, the multipliers or the learning rate down by that power of the width",
        )
    return error


def interpret(context: Context, capture: Capture, node: GraphNode, values: Mapping[str, Any]) -> Any:
    axes: Axes = tuple(axis_of(s) for s in node.shape) if node.shape is not None and node.kind != "call" else ()
    if node.kind == "direction":
        return parameter(context, f"direction/{node.target}", capture.laws[node.name], axes)
    copied = capture.copies.get(str(node.target)) if node.kind in ("parameter", "buffer") else None
    if copied is not None:
        name, number = copied
        value = parameter(context, name, _law(capture, name), axes)
        return value if number == Scaled(1.0, Fraction(0)) else context.times(value, number)
    if node.name in capture.laws:
        return parameter(context, str(node.target), capture.laws[node.name], axes)
    if str(node.target) in capture.laws and node.kind != "call":
        return parameter(context, str(node.target), capture.laws[str(node.target)], axes)
    if node.kind != "call":
        tensor = capture.data[node.name if node.name in capture.data else str(node.target)]  # buffers go by node
        first = float(tensor.flatten()[0]) if tensor.is_floating_point() and tensor.numel() else math.nan
        given = str(node.target).split("/")[0] in ("inputs", "targets", "test_inputs")
        chance = tensor.numel() == 1 and first != 0 and given
        if bool((tensor == first).all()) and not chance:  # a single number of the user's data stays data
            return context.algebra.number(first, axes=axes)  # zeros must count as exactly zero
        constant = context.algebra.builder.constant(tensor, str(node.target))
        return Value(axes, ((Fraction(0), context.algebra.nodes.view(constant, flat(axes))),))
    args = [_resolve(x, values) for x in node.args]
    kwargs = {k: _resolve(v, values) for k, v in node.kwargs}
    if node.target is operator.getitem:
        source, index = args
        if isinstance(source, Unknown):
            return unknown(node)
        if isinstance(source, Pending):
            return context.finite(source.target, source.args, source.kwargs, index, node.shape)
        return source[index]
    if node.shape is not None and any(s.coefficient == 0 for s in node.shape):  # no entries: nothing to compute
        return context.algebra.zeros(tuple(axis_of(s) for s in node.shape))
    target = str(node.target)
    rule = rules().get(target)
    if rule is not None:
        return rule(context, *args, **kwargs)
    value = pointwise(context, target, args, kwargs)
    if value is not None:
        return value
    if node.shape is None:
        return Pending(target, args, kwargs)
    return context.finite(target, args, kwargs, None, node.shape)


@dataclass(frozen=True)
class Pending:
    """A finite operation of several results, made when one of them is read."""

    target: str
    args: list[Any]
    kwargs: dict[str, Any]


def _resolve(x: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(x, Ref):
        return values[x.name]
    if isinstance(x, list | tuple):
        return [_resolve(y, values) for y in x]
    if isinstance(x, Scaled) and x.exponent == 0:
        return x.coefficient
    return x


def parameter(context: Context, name: str, law: ParameterLaw, axes: Axes) -> AnyValue:
    """A parameter at initialisation as a value (theory, section 1): matrices centred and Gaussian, the rest by law."""
    algebra = context.algebra
    if isinstance(law, Pieces):
        random = next((x for x in law.laws if not isinstance(x, Constant)), None)
        if algebra.width is not None and random is not None:  # the weights are given: their laws do not count
            return parameter(context, name, random, axes)
        return _pieces(context, name, law, axes)
    widths = has_width(axes)
    if widths == 2:
        return _matrix(context, name, law, axes)
    if widths > 2:
        raise UnsupportedOperationError(f"parameter '{name}' has {widths} axes that grow with the width")
    if isinstance(law, Constant):
        return algebra.number(law.value, Fraction(law.width_exponent), axes)
    exponent = Fraction(law.width_exponent)
    if isinstance(law, Orthogonal):
        law, shift = _orthogonal_vector(name, law, axes)
        exponent += shift
    base = _without_power(law)
    node = algebra.builder.node(Init(name, base, flat(axes)))
    return Value(axes, ((exponent if algebra.width is None else Fraction(0), node),))


def _pieces(context: Context, name: str, law: Pieces, axes: Axes) -> AnyValue:
    """Slices of an axis, each an initial value of its own."""
    if has_width(axes) > 1 and any(map(is_width, axes[: law.axis + 1])):
        raise InitialisationError(
            f"parameter '{name}' has slices of axis {law.axis} with different laws: of a matrix of two growing axes, "
            "all entries must have one law",
            advice="make each block a parameter of its own and join them in forward (torch.cat)",
        )
    whole, start, total = axes[law.axis], (Fraction(0), 0), None
    for end, own in zip(law.ends, law.laws, strict=True):
        first, last = _bound(start), _bound(end)
        piece = context.slice_axis(whole, law.axis, first, last)
        label = f"{name}[{', '.join([':'] * law.axis + [':'.join(map(_written, (start, end)))])}]"
        value = parameter(context, label, own, (*axes[: law.axis], piece, *axes[law.axis + 1 :]))
        placed = context.embed(value, law.axis, first, last, 1, whole)
        total = placed if total is None else context.add(total, placed)
        start = end
    assert total is not None
    return total


def _bound(x: tuple[Fraction, int]) -> int | Scaled:
    return Scaled(float(x[0]), Fraction(x[1])) if x[1] else int(x[0])


def _written(x: tuple[Fraction, int]) -> str:
    return str(x[0]) if not x[1] else "n" if x[0] == 1 else f"{x[0]}n"


def _matrix(context: Context, name: str, law: Law, axes: Axes) -> MatrixValue:
    algebra = context.algebra
    if isinstance(law, Orthogonal):
        raise InitialisationError(
            f"parameter '{name}' is an orthogonal matrix of two growing axes: its entries are not independent",
            advice="initialise it with independent entries (normal or uniform)",
        )
    mean, std = mean_and_std(law)
    exponent = Fraction(law.width_exponent)
    inits: list[InitTerm] = []
    outers = []
    whole = MatrixValue(axes)
    dims = flat(axes)
    first = next(i for i, d in enumerate(dims) if not isinstance(d, int))  # finite axes that count matrices
    finite = tuple(range(len(whole.finite) - first))
    for index in product(*(range(d) for d in dims[:first] if isinstance(d, int))) if std > 0 else ():
        at = tuple(map(Fixed, index))
        if algebra.width is not None:
            node = algebra.builder.node(Init(name, Normal(std), dims))
            for axis, i in enumerate(index):
                node = algebra.builder.node(Slice(axis, i, i + 1, 1), node)
            inits.append(InitTerm(Fraction(0), 1.0, algebra.nodes.view(node, dims[first:]), False, (*at, *finite)))
        else:
            label = f"{name}[{', '.join(map(str, index))}]" if index else name
            node = algebra.builder.node(Init(label, Normal(std), dims[first:]))
            inits.append(InitTerm(exponent + HALF, 1.0, node, False, (*at, *finite)))
    if algebra.width is not None and not isinstance(law, Constant):
        return context.matrices.make(axes, inits, [], None)
    if mean != 0:
        ones = [algebra.nodes.expand(algebra.nodes.one, (*whole.finite, 1, width)) for width in whole.widths]
        mean, exponent = algebra.power(mean, exponent)
        outers.append((exponent, [Block(mean, ones[0], ones[1])]))
    return context.matrices.make(axes, inits, outers, None)


def _orthogonal_vector(name: str, law: Orthogonal, axes: Axes) -> tuple[Normal, Fraction]:
    """A growing (n, k) orthogonal parameter: entries become independent normals of variance 1/n."""
    ratio = next((float(d.ratio) for d in flat(axes) if not isinstance(d, int)), None)
    if ratio is None:
        raise InitialisationError(f"parameter '{name}' is a finite orthogonal matrix: its entries are not independent")
    return Normal(law.gain / ratio**0.5), -HALF


def _without_power(law: Any) -> Any:
    return replace(law, width_exponent=Fraction(0))
