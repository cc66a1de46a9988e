"""How an expectation of one or two functions of Gaussian variables is computed: chosen once, then called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.evaluate.duals import closed, numeric
from tpcompile.evaluate.duals.functions import Function, derivative, expression, times
from tpcompile.evaluate.duals.fused import Fused, fused
from tpcompile.evaluate.duals.pair import Pair
from tpcompile.nonlin import atoms
from tpcompile.nonlin.atoms import Expression


@dataclass(frozen=True)
class Side:
    """One function: as a sum of factors where it came as one, as a sum of atoms where it is one."""

    function: Function | None
    atoms: Expression | None

    @staticmethod
    def of(function: Function) -> Side:
        return Side(function, expression(function))

    def derivative(self) -> Side:
        if self.atoms is not None:
            return Side(None, atoms.differentiate(self.atoms))
        assert self.function is not None
        return Side.of(derivative(self.function))

    def times(self, other: Side) -> Side:
        known = None
        if self.atoms is not None and other.atoms is not None:
            known = atoms.multiply(self.atoms, other.atoms)
        product = None
        if self.function is not None and other.function is not None:
            product = times(self.function, other.function)
        return Side(product, known)


@dataclass(frozen=True)
class Single:
    """``E f(u)`` for Gaussian u: a function of its variance and mean."""

    form: str
    """How it is computed, in words."""
    error: float | None
    """Absolute error relative to ``sqrt(E f^2)``; None where it is closed."""
    side: Side
    compute: Callable[[Tensor, Tensor | None], Tensor]

    def __call__(self, var: Tensor, mean: Tensor | None = None) -> Tensor:
        """Of the shape of ``var``; ``mean`` is broadcastable to it, None is zero."""
        if torch.is_grad_enabled() and (var.requires_grad or (mean is not None and mean.requires_grad)):
            return _One.apply(self, var, mean)  # type: ignore[return-value]
        return self.compute(var, mean)

    def differentiated(self, order: int, centred: bool) -> Single:
        side = self.side
        for _ in range(order):
            side = side.derivative()
        return _single(side, centred)


@dataclass(frozen=True)
class Dual:
    """``E f(u) g(v)`` for jointly Gaussian u and v: a function of their covariance, variances and means."""

    form: str
    """How it is computed, in words."""
    error: float | None
    """Absolute error relative to ``sqrt(E f^2 E g^2)``; None where it is closed."""
    f: Side
    g: Side
    centred: bool
    compute: Callable[[Pair], Tensor]

    def __call__(
        self,
        cov: Tensor | Pair,
        var_u: Tensor | None = None,
        var_v: Tensor | None = None,
        mean_u: Tensor | None = None,
        mean_v: Tensor | None = None,
    ) -> Tensor:
        """Of the shape of ``cov``, (N1, N2, ..); ``var_u`` (N1, 1, ..) and ``var_v`` (1, N2, ..) are broadcast.

        A :class:`Pair` in place of the covariance shares what several duals need.
        """
        if isinstance(cov, Pair):
            pair = cov
        elif var_u is None or var_v is None:
            raise UsageError("a dual is called with a Pair, or with the covariance and both variances")
        else:
            pair = Pair(cov, var_u, var_v, mean_u, mean_v)
        inputs = (pair.cov, pair.var_u, pair.var_v, pair.mean_u, pair.mean_v)
        if torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in inputs):
            return _Two.apply(self, *inputs)  # type: ignore[return-value]
        return self._value(pair)

    def _value(self, pair: Pair) -> Tensor:
        if self.centred and not pair.centred:
            return _dual(self.f, self.g, False).compute(pair)
        return self.compute(pair)

    def diagonal(self, var: Tensor, mean: Tensor | None = None) -> Tensor:
        """``E f(u) g(u)`` of the shape of ``var``: an expectation of one variable."""
        return _single(self.f.times(self.g), self.centred and mean is None)(var, mean)

    def differentiated(self, orders: tuple[int, int], centred: bool) -> Dual:
        f, g = self.f, self.g
        for _ in range(orders[0]):
            f = f.derivative()
        for _ in range(orders[1]):
            g = g.derivative()
        return _dual(f, g, centred)


def dual(f: Function, g: Function, *, centred: bool = True) -> Dual:
    """How ``E f(u) g(v)`` is computed; ``centred`` says that both means will be zero (better closed forms)."""
    return _dual(Side.of(f), Side.of(g), centred)


def expectation(f: Function, *, centred: bool = True) -> Single:
    """How ``E f(u)`` is computed."""
    return _single(Side.of(f), centred)


@lru_cache(maxsize=1024)
def _dual(f: Side, g: Side, centred: bool) -> Dual:
    if f.atoms is not None and g.atoms is not None and closed.closable(f.atoms, g.atoms, centred):
        quick: tuple[str, Fused] | None = fused(f.atoms, g.atoms) if centred else None
        if quick is not None:
            return Dual(f"closed: {quick[0]}", None, f, g, centred, quick[1])
        a, b = f.atoms, g.atoms
        polynomial = all(not (x.rate or x.gates or x.bumps) for x in (*a, *b))
        form = "polynomial (Wick)" if polynomial else "closed"
        return Dual(form, None, f, g, centred, lambda pair: closed.two_variables(a, b, pair))
    form, error, compute = numeric.two_variables(f.function, g.function)
    return Dual(form, error, f, g, centred, compute)


@lru_cache(maxsize=1024)
def _single(f: Side, centred: bool) -> Single:
    if f.atoms is not None and closed.closable(f.atoms, atoms.ONE, centred):
        known = f.atoms
        return Single("closed", None, f, lambda var, mean: closed.one_variable(known, var, mean))
    form, error, compute = numeric.one_variable(f.function)
    return Single(form, error, f, compute)


class _Two(torch.autograd.Function):
    """Price's theorem: derivatives by covariances and means are expectations of derivatives."""

    @staticmethod
    def forward(ctx: Any, how: Dual, *inputs: Tensor | None) -> Tensor:
        ctx.how = how
        ctx.save_for_backward(*inputs)
        return how._value(Pair(*inputs))  # type: ignore[arg-type]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        how, inputs = ctx.how, ctx.saved_tensors
        centred = inputs[3] is None and inputs[4] is None
        orders = ((1, 1), (2, 0), (0, 2), (1, 0), (0, 1))
        factors = (1.0, 0.5, 0.5, 1.0, 1.0)
        out: list[Tensor | None] = [None]
        for i, (order, factor) in enumerate(zip(orders, factors, strict=True)):
            x = inputs[i]
            if x is None or not ctx.needs_input_grad[i + 1]:
                out.append(None)
                continue
            slope = how.differentiated(order, centred)(*inputs)
            out.append((grad * slope * factor).sum_to_size(x.shape))
        return tuple(out)


class _One(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, how: Single, var: Tensor, mean: Tensor | None) -> Tensor:
        ctx.how = how
        ctx.save_for_backward(var, mean)
        return how.compute(var, mean)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        how, (var, mean) = ctx.how, ctx.saved_tensors
        by_var = by_mean = None
        if ctx.needs_input_grad[1]:
            by_var = grad * how.differentiated(2, mean is None)(var, mean) / 2
        if mean is not None and ctx.needs_input_grad[2]:
            by_mean = (grad * how.differentiated(1, False)(var, mean)).sum_to_size(mean.shape)
        return None, by_var, by_mean
