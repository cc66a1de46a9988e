"""What each instruction computes on tensors: the same torch function at finite width and on particles.

A width axis is a torch axis of the length of the width, or of the number of particles.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from tpcompile import nonlin
from tpcompile.errors import EvaluationError
from tpcompile.ir import (
    Concat,
    Const,
    Contract,
    Data,
    Dims,
    Expand,
    Finite,
    Fluctuation,
    Gather,
    Gaussian,
    Init,
    Map,
    MergeWidth,
    Mul,
    Node,
    Op,
    Outer,
    Permute,
    Scatter,
    Slice,
    SplitWidth,
    Sum,
    Unslice,
    View,
    Width,
    reachable,
)

_BLOCK = 2**16  # entries that a pointwise function sees at once

Length = Callable[[Width], int]


def shape(dims: Dims, length: Length) -> tuple[int, ...]:
    """Torch shape of IR dims."""
    return tuple(length(d) if isinstance(d, Width) else d for d in dims)


def execute(
    op: Op, x: Sequence[Tensor], dims: Dims, length: Length, dtype: torch.dtype, out: Tensor | None = None
) -> Tensor:
    """The value of an instruction that draws nothing; width axes are averaged by :class:`Contract`.

    ``out`` is memory of the value's shape and type, which sums, products and functions write to.
    """
    match op:
        case Const(value=value):
            return torch.tensor(value, dtype=dtype)
        case Map(fn=fn, order=order, params=params):
            return _map(partial(nonlin.evaluate, fn, order=order, **dict(params)), x[0], out)
        case Sum(coefficients=coefficients):
            return _sum(coefficients, [y if y.is_floating_point() else y.to(dtype) for y in x], out)
        case Mul():
            return _mul(x, out)
        case Contract(spec=spec):
            return contract(spec, x, out)
        case Outer():
            return x[0].mT @ x[1]
        case Concat(axis=axis):
            return torch.cat(list(x), dim=axis)
        case View() | SplitWidth() | MergeWidth():
            return x[0].reshape(shape(dims, length))
        case Permute(order=order):
            return x[0].permute(order)
        case Expand():
            return x[0].expand(shape(dims, length))
        case Slice(axis=axis, start=start, stop=stop, step=step):
            return x[0][(slice(None),) * axis + (slice(start, stop, step),)]
        case Unslice(axis=axis, start=start, stop=stop, step=step):
            out = x[0].new_zeros(shape(dims, length))
            out[(slice(None),) * axis + (slice(start, stop, step),)] = x[0]
            return out
        case Gather(axis=axis):
            return _gather(x[0], x[1], axis)
        case Scatter(axis=axis, size=size, rank=rank):
            return _scatter(x[0], x[1], axis, size, rank)
        case Finite():
            return _finite(op, x)
    raise EvaluationError(f"no evaluation of the instruction '{op.mnemonic}'")


def contract(spec: str, x: Sequence[Tensor], out: Tensor | None = None) -> Tensor:
    """``torch.einsum``, without its overhead where a matrix product or a sum of products will do."""
    plan = _pairing(spec) if len(x) == 2 else None
    if plan is None:
        return torch.einsum(spec, *x)
    if plan == "rows":
        return (x[0] * x[1]).sum(1)
    if plan == "outer":
        return torch.mul(x[0][:, None], x[1], out=out)
    if plan == "swapped outer":
        return torch.mul(x[0], x[1][:, None], out=out)
    flips, swap = plan
    a, b = (y.mT if flip and y.ndim == 2 else y for y, flip in zip(x, flips, strict=True))
    if swap:
        a, b = (y.mT if y.ndim == 2 else y for y in (b, a))
    if a.ndim == 1:
        a, b = b.mT, a
    return torch.matmul(a, b, out=out)


@cache
def _pairing(spec: str) -> str | tuple[tuple[bool, bool], bool] | None:
    """How a contraction of two operands of one or two axes is a product: which to transpose, whether to swap; or its
    name."""
    inputs, _, out = spec.partition("->")
    first, _, second = inputs.partition(",")
    if first == second and len(set(first)) == 2 and out == first[0]:
        return "rows"
    if len(first) == len(second) == 1 and first != second and set(out) == {first, second} and len(out) == 2:
        return "outer" if out == first + second else "swapped outer"
    if (
        len(first) == 1
        and len(set(second)) == 2 == len(second)
        and first in second
        and out == second.replace(first, "")
    ):
        return (False, second[1] == first), False
    if len(second) == 1 and len(set(first)) == 2 == len(first) and second in first and out == first.replace(second, ""):
        return (first[0] == second, False), False
    shared = set(first) & set(second)
    if len(set(first)) != 2 or len(set(second)) != 2 or len(first + second) != 4 or len(shared) != 1:
        return None
    (k,) = shared
    i, j = first.replace(k, ""), second.replace(k, "")
    if out not in (i + j, j + i):
        return None
    return (first[0] == k, second[1] == k), out == j + i


def constant_value(node: Node, data: Mapping[str, Tensor]) -> Tensor | None:
    """The value of a finite node that no initial value enters, float64; None for any other."""
    needed = reachable([node])
    if any(x.kind != "scalar" or isinstance(x.op, Init | Gaussian | Fluctuation) for x in needed):
        return None
    values: dict[Node, Tensor] = {}
    for x in needed:
        if isinstance(x.op, Data):
            tensor = data[x.op.name]
            values[x] = tensor.double() if tensor.is_floating_point() else tensor
        else:
            values[x] = execute(x.op, [values[y] for y in x.operands], x.dims, _no_width, torch.float64)
    return values[node]


def _no_width(width: Width) -> int:
    raise EvaluationError(f"a constant with the width axis {width}")


def _map(function: Callable[[Tensor], Tensor], x: Tensor, out: Tensor | None) -> Tensor:
    """A pointwise function; with ``out`` block by block along the longest axis, so that what it makes stays in the
    cache."""
    if out is None:
        return function(x)
    axis = max(range(x.ndim), key=lambda i: x.shape[i])
    size = max(1, _BLOCK * x.shape[axis] // x.numel())
    for block, part in zip(out.split(size, axis), x.split(size, axis), strict=True):
        block.copy_(function(part))
    return out


def _mul(x: Sequence[Tensor], out: Tensor | None) -> Tensor:
    value = x[0] * x[1] if out is None else torch.mul(x[0].expand(out.shape), x[1], out=out)
    for factor in x[2:]:
        value = value * factor if out is None else value.mul_(factor)
    return value


def _sum(coefficients: Sequence[float], x: Sequence[Tensor], out: Tensor | None) -> Tensor:
    if out is not None and len(x) > 1 and all(y.dtype == out.dtype for y in x):
        first = x[0].expand(out.shape)
        if coefficients[0] == 1.0:
            torch.add(first, x[1], alpha=coefficients[1], out=out)
        else:
            torch.mul(first, coefficients[0], out=out).add_(x[1], alpha=coefficients[1])
        for c, y in zip(coefficients[2:], x[2:], strict=True):
            out.add_(y, alpha=c)
        return out
    value = x[0] if coefficients[0] == 1.0 else x[0] * coefficients[0]
    own = coefficients[0] != 1.0
    for c, y in zip(coefficients[1:], x[1:], strict=True):
        fits = own and value.dtype == y.dtype and (y.ndim == 0 or y.shape == value.shape)
        value = value.add_(y, alpha=c) if fits else torch.add(value, y, alpha=c)
        own = True
    return value


def _gather(x: Tensor, index: Tensor, axis: int) -> Tensor:
    places = index.reshape(-1)
    out = x.index_select(axis, places.clamp_min(0))
    absent = places < 0
    if bool(absent.any()):
        out.index_fill_(axis, absent.nonzero()[:, 0], 0)
    return out.reshape((*x.shape[:axis], *index.shape, *x.shape[axis + 1 :]))


def _scatter(x: Tensor, index: Tensor, axis: int, size: int, rank: int) -> Tensor:
    before, after = x.shape[:axis], x.shape[axis + rank :]
    rows = x.reshape((*before, index.numel(), *after))
    places = index.reshape(-1)
    present = places >= 0
    if not bool(present.all()):
        rows, places = rows.index_select(axis, present.nonzero()[:, 0]), places[present]
    return x.new_zeros((*before, size, *after)).index_add_(axis, places, rows)


def _finite(op: Finite, x: Sequence[Tensor]) -> Tensor:
    def decode(a: Any) -> Any:
        if isinstance(a, tuple):
            if len(a) == 2 and a[0] == "%":
                return x[a[1]]
            return [decode(b) for b in a]
        return a

    kwargs = {k: decode(v) for k, v in op.kwargs}
    result = overload(op.target)(*(decode(a) for a in op.args), **kwargs)
    return result if op.index is None else result[op.index]


@cache
def overload(target: str) -> Callable[..., Any]:
    """The ATen overload of a name such as ``aten.mm.default``."""
    found: Any = torch.ops
    for part in target.split("."):
        found = getattr(found, part)
    return found
