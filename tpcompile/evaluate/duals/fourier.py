"""Expectations of functions of sums of independent numbers that are not Gaussian: a first layer of any width.

``E f(u) g(v)`` for ``u = sum_c a_c w_c`` and ``v = sum_c b_c w_c``, every w_c symmetric and uniform or normal. Their
characteristic function is a product of one-dimensional ones. The density vanishes outside of a box (to 1e-19, where a
normal part or many summands make it wider than 9.5 deviations), so that on the box it is a Fourier series with the
characteristic function as coefficients, without aliasing. By Parseval the expectation is the sum over frequencies of
these times the Fourier coefficients of f and g on their sides of the box, which are integrals split at kinks. The
error is what doubling the frequencies changes. For d summands terms fall like ``k^-d`` and faster; where u and v are
nearly collinear they do so only beyond the inverse of their difference.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tpcompile.errors import EvaluationError
from tpcompile.evaluate.duals.panels import legendre

TOLERANCE = 1e-10
"""Change under doubling of the frequencies, relative to ``sqrt(E f^2 E g^2)``, at which it ends."""
_WORST = 1e-2
_REACH = 9.5
_COLLINEAR = 1e-9
_FREQUENCIES = (32, 64, 128, 256, 512)
_ELEMENTS = 1 << 20

Fn = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Laws:
    """Of the summands w_c: half the width of a uniform law, the deviation of a normal one; zero for the other kind."""

    half: Tensor
    sigma: Tensor

    def variance(self, a: Tensor, b: Tensor) -> Tensor:
        """Covariance of two sums with coefficients (.., d)."""
        return (a * b * (self.half.square() / 3 + self.sigma.square())).sum(-1)

    def characteristic(self, arguments: Sequence[Tensor]) -> Tensor:
        """``E exp(i sum_c arguments_c w_c)``, which is real."""
        product, exponent = torch.ones(()), torch.zeros(())
        for x, half, sigma in zip(arguments, self.half, self.sigma, strict=True):
            if float(half.detach()):
                product = product * _ratio((x * half).sin(), x * half)
            if float(sigma.detach()):
                exponent = exponent + (x * sigma).square()
        return product * torch.exp(-0.5 * exponent)

    def sum_and_difference(self, p: Tensor, q: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        """``E exp(i (p u + q v))`` and ``E exp(i (p u - q v))`` for p (P, k, 1), q (P, 1, l) and rows a, b (P, d).

        The sine of a sum is had from those of its parts: that is most of the time.
        """
        plus, minus, exponents = torch.ones(()), torch.ones(()), [torch.zeros(()), torch.zeros(())]
        for x, y, half, sigma in zip(a.T, b.T, self.half, self.sigma, strict=True):
            m, n = p * x[:, None, None], q * y[:, None, None]
            if float(half.detach()):
                m, n = m * half, n * half
                first, second = m.sin() * n.cos(), m.cos() * n.sin()
                plus = plus * _ratio(first + second, m + n)
                minus = minus * _ratio(first - second, m - n)
            else:
                exponents = [exponents[0] + ((m + n) * sigma).square(), exponents[1] + ((m - n) * sigma).square()]
        if bool(self.sigma.detach().any()):
            plus, minus = plus * torch.exp(-0.5 * exponents[0]), minus * torch.exp(-0.5 * exponents[1])
        return plus, minus

    def side(self, a: Tensor) -> Tensor:
        """Half the side of the box, without derivative: nothing depends on it."""
        a, half, sigma = a.detach(), self.half.detach(), self.sigma.detach()
        most = (a.abs() * half).sum(-1) + _REACH * (a * sigma).square().sum(-1).sqrt()
        return torch.minimum(most, _REACH * (a.square() * (half.square() / 3 + sigma.square())).sum(-1).sqrt())


def _ratio(sine: Tensor, x: Tensor) -> Tensor:
    """``sin(x) / x`` (torch.sinc has no second derivative at zero)."""
    small = x.abs() < 1e-4
    return torch.where(small, 1 - x * x / 6, sine / torch.where(small, 1.0, x))


def one_sum(fn: Callable[[Tensor, Tensor], Tensor], points: Tensor, a: Tensor, laws: Laws) -> tuple[Tensor, float]:
    """``E fn(u, row)`` for rows a (P, d), with kinks at points (P, k): (P,), and the error as doubling shows it.

    ``fn`` takes values (R, nodes) and the indices (R,) of their rows.
    """
    side = laws.side(a)
    out: list[Tensor] = []
    error = 0.0
    for i in range(len(a)):
        row = torch.tensor([i])
        if not float(side[i]):
            out.append(fn(torch.zeros(1, 1, dtype=a.dtype), row)[0, 0])
            continue
        value: Tensor | None = None
        change = 0.0
        for count in (*_FREQUENCIES, 1024, 2048):
            c, _, size = _coefficients(lambda x, row=row: fn(x, row), points[i : i + 1], side[i : i + 1], count)
            s = torch.arange(count + 1, dtype=a.dtype) * (math.pi / side[i])
            weight = torch.where(s > 0, 2.0, 1.0)
            better = (weight * c[0] * laws.characteristic([s * x for x in a[i]])).sum()
            change = math.inf if value is None else float((better - value).detach().abs())
            value = better
            if change <= TOLERANCE * float(size):
                break
        assert value is not None
        error = max(error, change)
        out.append(value)
    return torch.stack(out), error


def two_sums(
    f: Fn, g: Fn, kinks: tuple[Sequence[float], Sequence[float]], a: Tensor, b: Tensor, laws: Laws
) -> tuple[Tensor, float]:
    """``E f(u) g(v)`` for rows a and b (P, d), float64: (P,), and its absolute error as doubling shows it."""
    aa, bb, ab = laws.variance(a, a), laws.variance(b, b), laws.variance(a, b)
    swap = (bb > aa)[:, None]
    large, small = torch.where(swap, b, a), torch.where(swap, a, b)
    slope = torch.where(torch.maximum(aa, bb) > 0, ab / torch.maximum(aa, bb).clamp(min=1e-300), 0.0)
    rest = small - slope[:, None] * large
    line = (laws.variance(rest, rest) <= _COLLINEAR**2 * torch.minimum(aa, bb)).detach()
    out = torch.zeros(len(a), dtype=a.dtype)
    error = 0.0
    if bool(line.any()):
        first, at = torch.where(swap, slope[:, None], 1.0)[line], slope[line]
        second = torch.where(swap, 1.0, slope[:, None])[line]

        def both(x: Tensor, rows: Tensor) -> Tensor:
            return f(first[rows] * x) * g(second[rows] * x)

        points = torch.cat([_kinks_of(kinks[0], first), _kinks_of(kinks[1], second)], 1).detach()
        value, error = one_sum(both, points, large[line] + 0 * at[:, None], laws)
        out = out.index_put((line,), value)
    plane = ~line
    if bool(plane.any()):
        value, more = _planes(f, g, kinks, a[plane], b[plane], laws)
        out, error = out.index_put((plane,), value), max(error, more)
    return out, error


def _kinks_of(points: Sequence[float], scale: Tensor) -> Tensor:
    at = torch.tensor(sorted({0.0, *points}), dtype=scale.dtype) / scale
    return torch.where(torch.isfinite(at), at, 0.0)


def _planes(
    f: Fn, g: Fn, kinks: tuple[Sequence[float], Sequence[float]], a: Tensor, b: Tensor, laws: Laws
) -> tuple[Tensor, float]:
    """Pairs that are not collinear, each with twice as many frequencies until that changes nothing."""
    out = torch.zeros(len(a), dtype=a.dtype)
    open_ = torch.arange(len(a))
    error, size = torch.full((len(a),), math.inf, dtype=a.dtype), torch.ones(len(a), dtype=a.dtype)
    for count in _FREQUENCIES:
        value, size[open_] = _series(f, g, kinks, a[open_], b[open_], laws, count)
        if count > _FREQUENCIES[0]:
            error[open_] = (value - out[open_]).detach().abs()
        out = out.index_put((open_,), value)
        open_ = open_[error[open_] > TOLERANCE * size[open_]]
        if not len(open_):
            break
    if bool((error > _WORST * size).any()):
        raise EvaluationError(
            "an expectation over weights of uniform law does not converge under refinement of its Fourier series",
            advice="give the first layer normal weights, or use the particle evaluator",
        )
    return out, float(error.max())


def _series(
    f: Fn, g: Fn, kinks: tuple[Sequence[float], Sequence[float]], a: Tensor, b: Tensor, laws: Laws, count: int
) -> tuple[Tensor, Tensor]:
    """The sum over ``count`` frequencies a side, and ``sqrt(E f^2 E g^2)`` under the uniform law on the box."""
    parts, sizes = [], []
    step = max(1, _ELEMENTS // (2 * count * count))
    k = torch.arange(count + 1, dtype=a.dtype)
    for start in range(0, len(a), step):
        x, y = a[start : start + step], b[start : start + step]
        u, v = laws.side(x), laws.side(y)
        c, s, size = _coefficients(f, _kinks_of(kinks[0], torch.ones(len(u), 1, dtype=a.dtype)), u, count)
        d, t, other = _coefficients(g, _kinks_of(kinks[1], torch.ones(len(v), 1, dtype=a.dtype)), v, count)
        p, q = k * (math.pi / u)[:, None], k * (math.pi / v)[:, None]
        plus, minus = laws.sum_and_difference(p[:, :, None], q[:, None, :], x, y)
        half = torch.where(k > 0, 1.0, 0.5)
        c, d = c * half, d * half
        even = torch.einsum("pk,pkl,pl->p", c, plus + minus, d)
        odd = torch.einsum("pk,pkl,pl->p", s, minus - plus, t)
        parts.append(2 * (even + odd))
        sizes.append((size * other).sqrt())
    return torch.cat(parts), torch.cat(sizes)


def _coefficients(fn: Fn, points: Tensor, side: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Means of ``fn(side x) cos(pi k x)`` and of the sine over [-1, 1], (rows, count + 1), and mean squares (rows,).

    Panels are split at the points (rows, p), fine enough for the last frequency and for features of size one near them.
    """
    finest = float(0.5 / side.max())
    levels = torch.arange(max(0, math.ceil(math.log2(max(1.0, 1 / finest)))) + 1, dtype=torch.float64)
    offsets = torch.cat([-finest * 2.0**levels, torch.zeros(1), finest * 2.0**levels])
    places = points / side[:, None]
    shared = not bool(places.any())
    at = places[:1] if shared else places
    breaks = (at[..., None] + offsets).flatten(1).clamp(-1, 1)
    even = torch.linspace(-1, 1, max(8, count // 2) + 1, dtype=torch.float64).expand(len(breaks), -1)
    breaks = torch.cat([breaks, even], 1).sort(1).values
    x, w = legendre(16)
    width = breaks.diff(dim=1)[..., None]
    nodes, weights = (breaks[:, :-1, None] + width * x).flatten(1), (width * w).flatten(1) / 2
    values = fn(side[:, None] * nodes)
    size = (weights * values.detach().square()).sum(1)
    weighted = weights * values
    k = torch.arange(count + 1, dtype=torch.float64) * math.pi
    if shared:
        angle = nodes[0, :, None] * k
        return weighted @ angle.cos(), weighted @ angle.sin(), size
    found = [(m @ (y := n[:, None] * k).cos(), m @ y.sin()) for m, n in zip(weighted, nodes, strict=True)]
    return torch.stack([c for c, _ in found]), torch.stack([s for _, s in found]), size
