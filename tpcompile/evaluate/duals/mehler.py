"""Mehler's expansion: ``E f(u) g(v) = sum_k a_k b_k rho^k`` with the Hermite coefficients of f and g.

The coefficients depend on one variance each: they are computed once a row and once a column, and a pair costs one
multiplication and addition a term. For analytic functions they fall like ``exp(-c sqrt(k))``, so the series converges
at correlation one, too. By Parseval and Cauchy-Schwarz the rest after K terms is at most ``|rho|^(K+1)`` times the root
of the products of both norms' rests: every pair is certified, and those that are not are left to panels.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from tpcompile.evaluate.duals.pair import Pair

TOLERANCE = 1e-12
"""Rest of the series relative to ``sqrt(E f^2 E g^2)`` up to which it is taken as converged."""
_TERMS = (96, 384, 1536)
_REACH = 13.0
_NODES = (1 << 9, 1 << 11, 1 << 13)
_BLOCK = 1 << 15


@lru_cache(maxsize=6)
def _hermite(nodes: int, terms: int) -> tuple[Tensor, Tensor]:
    """Nodes x and ``w_j density(x_j) h_k(x_j)``, (nodes, terms), h_k orthonormal for the normal law."""
    x = torch.linspace(-_REACH, _REACH, nodes + 1, dtype=torch.float64)
    table = torch.empty(terms, nodes + 1, dtype=torch.float64)
    table[0] = torch.exp(-x * x / 2) * (2 * _REACH / nodes / math.sqrt(2 * math.pi))
    if terms > 1:
        table[1] = x * table[0]
    for k in range(1, terms - 1):
        table[k + 1] = (x * table[k] - math.sqrt(k) * table[k - 1]) / math.sqrt(k + 1)
    return x, table.T.contiguous()


Fn = Callable[[Tensor], Tensor]


class Coefficients:
    """Hermite coefficients ``a`` (terms, rows..) of ``x -> f(mean + std x)`` and their squares' rests, relative."""

    def __init__(self, fn: Fn, std: Tensor, mean: Tensor | None) -> None:
        self.fn, self.shape = fn, std.shape
        self.std = std.double().flatten()
        self.mean = torch.zeros_like(self.std) if mean is None else mean.double().expand(std.shape).flatten()
        self.accurate = False

    def compute(self, terms: int) -> bool:
        """Find the first ``terms`` coefficients on a grid fine enough; whether there is one."""
        start = float(self.std.max()) * 64 if self.std.numel() else 0.0  # poles at distance one
        for nodes in _NODES:
            if nodes < max(start, 4 * math.sqrt(terms) * _REACH) and nodes != _NODES[-1]:
                continue
            x, table = _hermite(nodes, terms)
            values = self.fn(self.mean[:, None] + self.std[:, None] * x)
            weight = table[:, 0]
            norm = (values.square() @ weight).clamp(min=torch.finfo(torch.float64).tiny)
            edge = (values[:, [0, -1]].square() * weight[[0, -1]]).amax(1) / norm
            a = values @ table
            coarse = 2 * (values[:, ::2] @ table[::2])
            scale = norm.sqrt()
            gap = ((a - coarse).abs().amax(1) / scale).nan_to_num(nan=math.inf)
            if float(edge.nan_to_num(nan=math.inf).max()) < 1e-20 and float(gap.max()) < 1e-12:
                self.norm = norm
                rest = 1 - (a.square() / norm[:, None]).cumsum(1)
                self.rest = rest.clamp(min=1e-16).T
                self.a = a.T
                return True
        return False


def two_variables(f: Fn, g: Fn, pair: Pair) -> tuple[Tensor, Tensor | None]:
    """``E f(u) g(v)`` and where it is not certified to :data:`TOLERANCE` (None: nowhere)."""
    rows = Coefficients(f, pair.std_u, pair.mean_u)
    columns = Coefficients(g, pair.std_v, pair.mean_v)
    terms = 0
    largest = float(pair.rho.abs().max()) if pair.rho.numel() else 0.0
    for wanted in _TERMS:
        if not (rows.compute(wanted) and columns.compute(wanted)):
            break
        terms = wanted
        rest = (rows.rest.amax(1) * columns.rest.amax(1)).sqrt()
        decay = largest ** torch.arange(1, terms + 1, dtype=torch.float64)
        done = (rest * decay <= TOLERANCE).nonzero()
        if len(done):
            terms = int(done[0]) + 1
            break
    if not terms:
        return torch.zeros_like(pair.cov), torch.ones_like(pair.cov, dtype=torch.bool)
    value = _series(rows, columns, pair, terms)
    rest_u = rows.rest[terms - 1].sqrt().reshape(rows.shape).to(pair.cov)
    rest_v = columns.rest[terms - 1].sqrt().reshape(columns.shape).to(pair.cov)
    if float(rest_u.max()) * float(rest_v.max()) * largest**terms <= TOLERANCE:
        return value, None
    bad = pair.rho.abs().pow(terms).mul_(rest_u).mul_(rest_v) > TOLERANCE
    return value, bad if bool(bad.any()) else None


def _series(rows: Coefficients, columns: Coefficients, pair: Pair, terms: int) -> Tensor:
    a = rows.a[:terms].to(pair.cov.dtype).reshape(terms, *rows.shape)
    b = columns.a[:terms].to(pair.cov.dtype).reshape(terms, *columns.shape)
    size = (rows.a[:terms].abs() / rows.norm.sqrt()).amax(1) * (columns.a[:terms].abs() / columns.norm.sqrt()).amax(1)
    present = (size > 1e-17).nonzero().flatten().tolist()
    if not present:
        return torch.zeros_like(pair.cov)
    first, step = present[0], math.gcd(*(k - present[0] for k in present)) or 1
    out = torch.empty_like(pair.rho)
    lead = pair.rho.shape[0] if pair.rho.dim() else 1
    block = max(1, _BLOCK * lead // max(1, pair.rho.numel()))
    for start in range(0, lead, block) if pair.rho.dim() else (None,):
        part = slice(None) if start is None else slice(start, start + block)
        _horner(out, pair.rho, a, b, part, (first, step, present[-1]))
    return out


def _horner(out: Tensor, rho: Tensor, a: Tensor, b: Tensor, part: slice, span: tuple[int, int, int]) -> None:
    first, step, last = span
    if rho.dim():
        out, rho = out[part], rho[part]
        a = a[:, part] if a.dim() > 1 and a.shape[1] > 1 else a
        b = b[:, part] if b.dim() > 1 and b.shape[1] > 1 else b
    power = rho if step == 1 else rho.pow(step)
    torch.mul(a[last], b[last], out=out) if out.shape == np.broadcast_shapes(a[last].shape, b[last].shape) else (
        out.copy_(a[last] * b[last])
    )
    for k in range(last - step, first - 1, -step):
        out.mul_(power).addcmul_(a[k], b[k])
    if first:
        out.mul_(rho.pow(first) if first > 1 else rho)
