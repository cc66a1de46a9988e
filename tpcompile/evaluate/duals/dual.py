"""How an expectation of one or two functions of Gaussian variables is computed: chosen once, then called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tpcompile.errors import UnsupportedOperationError, UsageError
from tpcompile.evaluate.duals import closed, numeric, rounding
from tpcompile.evaluate.duals.blocks import together
from tpcompile.evaluate.duals.functions import LINEAR, Factor, Function, derivative, expression, times
from tpcompile.evaluate.duals.fused import Fused, fused
from tpcompile.evaluate.duals.pair import Pair, inverse
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
        function = None if self.function is None else derivative(self.function)
        if self.atoms is not None:
            try:
                return Side(function, atoms.differentiate(self.atoms))
            except ValueError:
                raise UnsupportedOperationError(
                    "a derivative of a Gaussian expectation is asked for where it is infinite at a kink",
                    advice="ask for fewer derivatives, or use a smooth nonlinearity",
                ) from None
        assert function is not None
        return Side.of(function)

    def changed(self, order: int, power: int) -> Side:
        """``x^power`` times the derivative of that order."""
        side = self
        for _ in range(order):
            side = side.derivative()
        return side.times(Side.of(Factor((LINEAR,) * power))) if power else side

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
            from tpcompile.evaluate.duals.price import One

            return One.apply(self, var, mean)  # type: ignore[return-value]
        return self.compute(var, mean)

    def of(self, order: int, centred: bool, power: int = 0) -> Single:
        """The expectation of ``u^power f^(order)(u)``."""
        return _single(self.side.changed(order, power), centred)


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
            from tpcompile.evaluate.duals.price import Two

            return Two.apply(self, *inputs)  # type: ignore[return-value]
        return self.value(pair) if pair is cov else together((self,), pair)[0]

    def value(self, pair: Pair) -> Tensor:
        """The same without derivatives."""
        if self.centred and not pair.centred:
            return _dual(self.f, self.g, False).compute(pair)
        return self.compute(pair)

    def diagonal(self, var: Tensor, mean: Tensor | None = None) -> Tensor:
        """``E f(u) g(u)`` of the shape of ``var``: an expectation of one variable."""
        return _single(self.f.times(self.g), self.centred and mean is None)(var, mean)

    def of(self, orders: tuple[int, int], centred: bool, powers: tuple[int, int] = (0, 0)) -> Dual:
        """The expectation of ``u^power f^(order)(u)`` times the like of g and v."""
        return _dual(self.f.changed(orders[0], powers[0]), self.g.changed(orders[1], powers[1]), centred)


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
        if not rounding.delicate(a) and not rounding.delicate(b):
            return Dual(form, None, f, g, centred, lambda pair: closed.two_variables(a, b, pair))
        if centred and atoms.X in (a, b):
            return _linear(f, g)
        return Dual(f"{form}, quadrature where it cancels", numeric.ERROR, f, g, centred, _guarded(f, g))
    if centred and atoms.X in (f.atoms, g.atoms):
        return _linear(f, g)
    form, error, compute = numeric.two_variables(f.function, g.function)
    return Dual(form, error, f, g, centred, compute)


@lru_cache(maxsize=1024)
def _single(f: Side, centred: bool) -> Single:
    if f.atoms is not None and closed.closable(f.atoms, atoms.ONE, centred):
        known = f.atoms
        if not rounding.delicate(known):
            return Single("closed", None, f, lambda var, mean: closed.one_variable(known, var, mean))
        return Single("closed, quadrature where it cancels", numeric.ERROR, f, _guarded_single(f))
    form, error, compute = numeric.one_variable(f.function)
    return Single(form, error, f, compute)


def _linear(f: Side, g: Side) -> Dual:
    """``E u g(v) = cov E v g(v) / var_v``: u is a multiple of v and independent noise."""
    first = f.atoms == atoms.X
    single = _single((g if first else f).changed(0, 1), True)

    def compute(pair: Pair) -> Tensor:
        var = pair.var_v if first else pair.var_u
        return pair.cov * (single.compute(var, None) * inverse(var))

    return Dual(f"one variable; {single.form}", single.error, f, g, True, compute)


def _guarded_single(f: Side) -> Callable[[Tensor, Tensor | None], Tensor]:
    known = f.atoms
    assert known is not None

    def compute(var: Tensor, mean: Tensor | None) -> Tensor:
        if var.dtype != torch.float64:
            return compute(var.double(), None if mean is None else mean.double()).to(var.dtype)
        bad = rounding.lost_single(known, var, mean, numeric.ERROR)
        value = closed.one_variable(known, var, mean)
        if bad is not None:
            value = value.clone()
            at = None if mean is None else mean.expand(var.shape)[bad]
            value[bad] = numeric.one_variable(f.function)[2](var[bad], at)
        return value

    return compute


def _guarded(f: Side, g: Side) -> Callable[[Pair], Tensor]:
    """The closed form; one-dimensional quadrature of the closed conditional expectation where it cancels."""
    a, b = f.atoms, g.atoms
    assert a is not None
    assert b is not None

    def compute(pair: Pair) -> Tensor:
        if pair.cov.dtype != torch.float64:  # what cancels is not done in float32
            return compute(pair.double()).to(pair.cov.dtype)
        bad = rounding.lost(a, b, pair, numeric.ERROR)
        if bad is None:
            return closed.two_variables(a, b, pair)
        value = torch.empty_like(pair.cov)
        good = ~bad
        if bool(good.any()):
            value[good] = closed.two_variables(a, b, pair.select(good))
        single = closed.closable(b, atoms.ONE, False)
        inner = (lambda var, mean: closed.one_variable(b, var, mean)) if single else None
        by_panels = numeric.panels_of_pairs(numeric.known(f.function), numeric.known(g.function), inner)
        value[bad] = by_panels(pair.select(bad))
        return value

    return compute
