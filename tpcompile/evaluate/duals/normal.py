"""The bivariate normal distribution function, to 1e-14 (Drezner & Wesolowsky 1990; Genz 2004)."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(24)
_STEEP = 0.925
"""Correlation from which the integral over the correlation is taken from one downwards, not from zero upwards."""


def bivariate_normal_cdf(h: Tensor, k: Tensor, rho: Tensor, complement: Tensor) -> Tensor:
    """``P(X < h, Y < k)`` for standard normals of correlation rho, of which ``complement = 1 - rho^2``.

    Arguments are of one shape. The complement is asked for because at high correlation it cannot be had from rho.
    """
    steep = rho.abs() >= _STEEP
    if not steep.any():
        return _from_zero(h, k, rho)
    if steep.all():
        return _from_one(h, k, rho, complement)
    out = torch.empty_like(rho)
    flat = ~steep
    out[flat] = _from_zero(h[flat], k[flat], rho[flat])
    out[steep] = _from_one(h[steep], k[steep], rho[steep], complement[steep])
    return out


def _from_zero(h: Tensor, k: Tensor, rho: Tensor) -> Tensor:
    """Plackett's integral of the density over the correlation, by Gauss-Legendre in its arcsine."""
    half = torch.asin(rho) / 2
    product, squares = h * k, (h * h + k * k) / 2
    total = torch.zeros_like(rho)
    for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
        sine = torch.sin(half * (1 + node))
        exponent = (sine * product).sub_(squares)
        total.add_(exponent.div_(torch.addcmul(torch.ones_like(sine), sine, sine, value=-1)).exp_(), alpha=weight)
    return total.mul_(half).div_(2 * math.pi).add_(torch.special.ndtr(h) * torch.special.ndtr(k))


def _from_one(h: Tensor, k: Tensor, rho: Tensor, a2: Tensor) -> Tensor:
    """The same integral down from correlation one (or up from minus one), its singular part taken out (Genz)."""
    sign = torch.where(rho < 0, -1.0, 1.0).to(rho.dtype)
    h, k = -h, -k * sign  # upper tails, and Y mirrored where the correlation is negative
    hk = h * k
    a = a2.sqrt()
    b = (h - k).abs()
    b2 = b * b
    safe2 = torch.where(a2 > 0, a2, torch.ones_like(a2))
    c, d = (4 - hk) / 8, (12 - hk) / 16
    decay = torch.where(a2 > 0, torch.exp(-(b2 / safe2 + hk) / 2), torch.zeros_like(a2))
    value = a * decay * (1 - c * (b2 - a2) * (1 - d * b2 / 5) / 3 + c * d * a2 * a2 / 5)
    tail = math.sqrt(2 * math.pi) * torch.special.ndtr(-b / safe2.sqrt()) * b
    tail = torch.where((hk > -100) & (a2 > 0), torch.exp(-hk / 2) * tail * (1 - c * b2 * (1 - d * b2 / 5) / 3), 0.0)
    value = value - tail
    for node, weight in zip(_NODES.tolist(), _WEIGHTS.tolist(), strict=True):
        x2 = (a / 2 * (1 + node)) ** 2
        root = (1 - x2).sqrt()
        exponent = -(b2 / torch.where(x2 > 0, x2, torch.ones_like(x2)) + hk) / 2
        rest = torch.exp(-hk * x2 / (2 * (1 + root) ** 2)) / root - (1 + c * x2 * (1 + d * x2))
        term = torch.where((exponent > -100) & (x2 > 0), torch.exp(exponent.clamp(min=-100)) * rest, 0.0)
        value = value + weight * a / 2 * term
    value = value / (-2 * math.pi)
    above = torch.special.ndtr(-torch.maximum(h, k)) + value
    below = (torch.special.ndtr(-h) - torch.special.ndtr(-k)).clamp(min=0) - value
    return torch.where(rho < 0, below, above)
