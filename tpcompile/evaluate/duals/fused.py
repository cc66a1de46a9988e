"""The closed forms that kernels spend their time in, with few passes over memory.

Same values as :mod:`closed`, for: positively homogeneous functions of degree 0 and 1 with a kink at zero (relu, leaky
relu, abs, sign, step, linear: all are ``alpha + beta sign`` or ``x (alpha + beta sign)``), error functions, centred
Gaussians (derivatives of error functions), and odd exponentials (sin, sinh; accurate at small variances, too).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from tpcompile.evaluate.duals.closed import signed
from tpcompile.evaluate.duals.elementary import asin
from tpcompile.evaluate.duals.pair import Pair, inverse
from tpcompile.nonlin.atoms import SIGN, Expression, real

Fused: TypeAlias = Callable[[Pair], Tensor]


def fused(f: Expression, g: Expression) -> tuple[str, Fused] | None:
    """Name and function of the fused form of ``E f(u) g(v)`` for centred u and v, if there is one."""
    f, g = signed(f), signed(g)
    a, b = _homogeneous(f), _homogeneous(g)
    if a and b:
        names = {0: "step", 1: "relu"}
        return f"{names[a[0]]} x {names[b[0]]}", lambda pair: _arc_cosine(pair, a, b)
    c, d = _error_function(f), _error_function(g)
    if c and d:
        return "erf x erf", lambda pair: _arc_sine(pair, c, d)
    p, q = _density(f), _density(g)
    if p and q:
        return "Gaussian x Gaussian", lambda pair: _two_densities(pair, p, q)
    m, n = _odd_exponential(f), _odd_exponential(g)
    if m and n and not isinstance(real(m[1] * n[1]), complex):
        return "exponentials", lambda pair: _odd_exponentials(pair, m, n)
    return None


def _homogeneous(f: Expression) -> tuple[int, float, float] | None:
    """``(degree, alpha, beta)`` of ``x^degree (alpha + beta sign(x))``."""
    if not f or len({atom.power for atom in f}) != 1 or f[0].power > 1:
        return None
    found = {(): 0.0, (SIGN,): 0.0}
    for atom in f:
        if atom.rate or atom.bumps or atom.gates not in found or isinstance(atom.coefficient, complex):
            return None
        found[atom.gates] = atom.coefficient
    return f[0].power, found[()], found[(SIGN,)]


def _error_function(f: Expression) -> tuple[float, float, float] | None:
    """``(alpha, beta, width)`` of ``alpha + beta erf(x / (sqrt(2) width))``."""
    gates = [atom for atom in f if len(atom.gates) == 1]
    if len(gates) != 1 or any(x.power or x.rate or x.bumps for x in f) or any(len(x.gates) > 1 for x in f):
        return None
    (gate,) = gates[0].gates
    if gate.shift or gate.direction or not gate.width:
        return None
    return sum(x.coefficient.real for x in f if not x.gates), gates[0].coefficient.real, gate.width


def _density(f: Expression) -> tuple[float, float] | None:
    """``(factor, width)`` of a centred normal density."""
    if len(f) != 1 or f[0].power or f[0].rate or f[0].gates or len(f[0].bumps) != 1:
        return None
    (bump,) = f[0].bumps
    return None if bump.shift else (f[0].coefficient.real, bump.width)


def _odd_exponential(f: Expression) -> tuple[complex, complex] | None:
    """``(k, r)`` of ``k (exp(r x) - exp(-r x))``."""
    if len(f) != 2 or any(x.power or x.gates or x.bumps or not x.rate for x in f):
        return None
    a, b = f
    return (a.coefficient, a.rate) if a.rate == -b.rate and a.coefficient == -b.coefficient else None


def _arc_cosine(pair: Pair, a: tuple[int, float, float], b: tuple[int, float, float]) -> Tensor:
    (m, alpha, beta), (n, alpha2, beta2) = a, b
    linear, kinked = alpha * alpha2, beta * beta2 * 2 / math.pi
    if m == n == 0:
        if not kinked:
            return torch.full_like(pair.cov, linear)
        return torch.add(pair.cov.new_tensor(linear), pair.asin, alpha=kinked)
    if m == n == 1:
        if not kinked:
            return pair.cov * linear
        out = torch.addcmul(pair.root, pair.rho, pair.asin)
        if linear:
            out.add_(pair.rho, alpha=linear / kinked)
        return out.mul_(pair.std_u * kinked).mul_(pair.std_v)
    if m == 1:
        pair, alpha, beta, alpha2, beta2 = pair.columns(), alpha2, beta2, alpha, beta
    # (alpha + beta sign u) v (alpha2 + beta2 sign v)
    moment = math.sqrt(2 / math.pi)
    out = pair.cov * (inverse(pair.std_u) * (beta * alpha2 * moment))
    return out.add_(pair.std_v, alpha=alpha * beta2 * moment)


_LARGE = 1e4
"""Variance over that of an error function from which its arcsine is near one, where it loses half of the digits."""


def _large(pair: Pair, s: float, t: float) -> bool:
    return bool(pair.cov.numel()) and bool(pair.var_u.max() > _LARGE * s) and bool(pair.var_v.max() > _LARGE * t)


def _arc_sine(pair: Pair, a: tuple[float, float, float], b: tuple[float, float, float]) -> Tensor:
    s, t = a[2] ** 2, b[2] ** 2
    if _large(pair, s, t):
        # by the determinant, whose parts are not negative: a correlation is then at most that of equal inputs
        det = (pair.std_u * pair.std_v * pair.root).square_().add_(pair.var_u * t).add_(pair.var_v * s).add_(s * t)
        out = torch.atan2(pair.cov, det.sqrt_()).mul_(a[1] * b[1] * 2 / math.pi)
        return out.add_(a[0] * b[0]) if a[0] * b[0] else out
    sine = _sine(pair, s, t)
    out = asin(sine).mul_(a[1] * b[1] * 2 / math.pi)
    return out.add_(a[0] * b[0]) if a[0] * b[0] else out


def _sine(pair: Pair, s: float, t: float) -> Tensor:
    """``cov / sqrt((var_u + s) (var_v + t))``, in [-1, 1], which the two functions and their derivatives share."""
    key = ("sine", s, t)
    if key not in pair.memo:
        pair.memo[key] = (pair.cov * (pair.var_u + s).rsqrt()).mul_((pair.var_v + t).rsqrt()).clamp_(-1, 1)
    return pair.memo[key]


def _two_densities(pair: Pair, a: tuple[float, float], b: tuple[float, float]) -> Tensor:
    s, t = a[1] ** 2, b[1] ** 2
    factor = a[0] * b[0] / (2 * math.pi)
    if s and t and not _large(pair, s, t):  # a determinant of (var_u + s) (var_v + t) (1 - sine^2)
        sine = _sine(pair, s, t)
        out = torch.addcmul(left := 1 - sine, left, sine).pow_(-0.5)
        return out.mul_((pair.var_u + s).rsqrt() * factor).mul_((pair.var_v + t).rsqrt())
    if _large(pair, s, t):
        det = (pair.std_u * pair.std_v * pair.root).square_()
    else:
        det = (pair.var_u * pair.var_v).expand_as(pair.cov).addcmul(pair.cov, pair.cov, value=-1).clamp_(min=0)
    if s or t:
        return det.add_((pair.var_u + s) * t).add_(pair.var_v * s).pow_(-0.5).mul_(factor)
    # two deltas: infinite at correlation one, where zero is taken (the subgradient of a symmetric cone)
    least = (pair.var_u * pair.var_v) * (8 * torch.finfo(det.dtype).eps)
    return torch.where(det > least, inverse(det.sqrt()), 0.0).mul_(factor)


def _odd_exponentials(pair: Pair, a: tuple[complex, complex], b: tuple[complex, complex]) -> Tensor:
    cross, factor = real(a[1] * b[1]).real, 2 * real(a[0] * b[0]).real
    size = pair.cov.abs().mul_(abs(cross))
    out = torch.expm1(-2 * size).neg_().mul_(torch.sign(pair.cov))
    size.add_(pair.var_u * (real(a[1] ** 2).real / 2)).add_(pair.var_v * (real(b[1] ** 2).real / 2))
    return out.mul_(size.exp_()).mul_(math.copysign(1.0, cross) * factor)
