"""Nonlinearities and their backward operations, found by their ATen target."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tpcompile import nonlin
from tpcompile.lowering.context import Context
from tpcompile.lowering.value import AnyValue, Value


@dataclass(frozen=True)
class Abstract:
    """A value with the operators that the backward factor of a nonlinearity is written in."""

    ctx: Context
    value: Any

    def _wrap(self, x: Any) -> Abstract:
        return Abstract(self.ctx, x)

    def __add__(self, other: Any) -> Abstract:
        return self._wrap(self.ctx.add(self.value, _unwrap(other)))

    def __sub__(self, other: Any) -> Abstract:
        return self._wrap(self.ctx.add(self.value, self.ctx.negate(_unwrap(other))))

    def __rsub__(self, other: Any) -> Abstract:
        return self._wrap(self.ctx.add(_unwrap(other), self.ctx.negate(self.value)))

    def __mul__(self, other: Any) -> Abstract:
        return self._wrap(self.ctx.times(self.value, _unwrap(other)))

    def __neg__(self) -> Abstract:
        return self._wrap(self.ctx.negate(self.value))

    __radd__ = __add__
    __rmul__ = __mul__


def _unwrap(x: Any) -> Any:
    return x.value if isinstance(x, Abstract) else x


def _apply_forward(ctx: Context, call: nonlin.ForwardCall) -> Value:
    name, x = call.nonlinearity.name, ctx.any(call.x)
    out = ctx.apply(name, x, **call.parameters)
    if ctx.derivatives or ctx.beyond:
        ctx.applied[name, "output", out] = ctx.applied[name, "input", x] = x, call.parameters
    return out


def _saturates(name: str, x: AnyValue, parameters: Mapping[str, Any]) -> bool:
    """True if the input grows, so that what torch saves, such as the sign that tanh becomes, lacks the derivative."""
    grows = isinstance(x, Value) and bool(x.terms) and x.terms[0][0] > 0
    return grows and nonlin.homogeneity(name, 0, **parameters) is None


def pointwise(ctx: Context, target: str, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """A nonlinearity or its backward operation, if the target is one; None otherwise."""
    forward = nonlin.bind(target, args, kwargs)
    if forward is not None:
        out = _apply_forward(ctx, forward)
        return [out, out] if target in forward.nonlinearity.tuple_targets else out  # the second is a buffer
    backward = nonlin.bind_backward(target, args, kwargs)
    if backward is None:
        return None
    key = backward.nonlinearity.name, backward.backward.saved, backward.saved
    known = ctx.applied.get(key)
    if known is not None and not ctx.derivatives and not _saturates(backward.nonlinearity.name, *known):
        known = None
    if known is not None and nonlin.has_derivative(backward.nonlinearity.name, 1, **known[1]):
        return ctx.times(backward.grad, ctx.apply(backward.nonlinearity.name, known[0], order=1, **known[1]))
    saved = Abstract(ctx, backward.saved)
    wrapped = replace(backward, saved=saved)

    def apply(name: str, value: Any, order: int = 0, **params: Any) -> Abstract:
        return Abstract(ctx, ctx.apply(name, _unwrap(value), order, **params))

    return ctx.times(backward.grad, _unwrap(wrapped.factor(apply)))
