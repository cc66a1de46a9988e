"""Numbers of :mod:`radial`: nodes of the weights, covariances under them, and the integral with its error."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tpcompile.errors import EvaluationError

if TYPE_CHECKING:
    from tpcompile.evaluate.gaussian.radial import Scale, Tilt, TiltArray
    from tpcompile.evaluate.gaussian.run import Run

SINGLE, BOTH = 65, 57
"""Nodes of an integral over one weight, and a side of those over two: odd, so that every second is a rule itself."""
_RANK = 1e-13  # eigenvalues of a covariance below this part of the largest are rounding
_LEFT = 3.9  # exp(3.9) is 49: exp(-49 / 2) is nothing


@dataclass(frozen=True)
class Solved:
    """Covariances ``(N1, N2, K, K, nodes)`` by places of copies, and weights ``(N1, N2, nodes)`` of all and of half."""

    covariances: dict[tuple[int, int], Tensor]
    full: Tensor
    half: Tensor


def solve(run: Run, tilt: Tilt) -> Solved:
    """All about one tilt on a block, computed once."""
    if tilt not in run.tilts:
        run.tilts[tilt] = _solve(run, tilt)
    return run.tilts[tilt]


def integrate(run: Run, array: TiltArray) -> Tensor:
    """The integral over the last axis; its change from every second node to all is kept as the error."""
    solved = solve(run, array.tilt)
    value = run.value(array.inner)
    value = value if value.shape[-1] > 1 else value.expand(*value.shape[:-1], array.tilt.nodes)

    def total(weights: Tensor) -> Tensor:
        shaped = weights.reshape(*weights.shape[:2], *([1] * (value.dim() - 3)), -1)
        return (value.double() * shaped).sum(-1)

    found = total(solved.full)
    change = (found - total(solved.half)).abs()
    run.moments.found_error(array.form, float(change.max()) if change.numel() else 0.0)
    return found.to(run.dtype)


def _solve(run: Run, tilt: Tilt) -> Solved:
    order = sorted(range(len(tilt.copies)), key=lambda i: tilt.scales[i] is None)  # those with a weight first
    s = {(i, j): _joint(run, tilt, i, j) for i in order for j in order}
    if any(value.requires_grad for value in s.values()):
        raise EvaluationError(
            "kernels with batch statistics have no derivatives by autograd",
            where=run.moments.program.origins.get(tilt.ell),
            advice="take differences: the kernel is smooth and exact",
        )
    first = tilt.scales[order[0]]
    assert first is not None
    i = order[0]
    values, vectors = _spectrum(s[i, i])
    rule = _rule(first, values, SINGLE if tilt.nodes == SINGLE else BOTH)
    t = 2 * first.c * rule[0]  # (.., T)
    shrunk = values[..., :, None] / (1 + t[..., None, :] * values[..., :, None])  # (.., K, T)
    log_det = torch.log1p(t[..., None, :] * values[..., :, None]).sum(-2)
    own = torch.einsum("...ik,...kt,...jk->...ijt", vectors, shrunk, vectors)
    weight = torch.exp(rule[1] - 0.5 * log_det)
    if len(order) == 1:
        return Solved({(i, i): own}, weight, _halved(weight, 1))
    j = order[1]
    inverse = torch.where(values > 0, 1 / values.clamp(min=1e-300), torch.zeros_like(values))
    basis = torch.einsum("...ik,...kj->...ij", s[j, i], vectors)  # l_j = basis / values * (vectors^T l_i) + rest
    map_j = basis * inverse[..., None, :]
    rest = s[j, j] - torch.einsum("...ik,...jk->...ij", map_j, basis)
    rest_values, rest_vectors = _spectrum((rest + rest.transpose(-1, -2)) / 2, s[j, j])
    # l_i = F_i z, l_j = F_j z with z standard normal under the first weight, for every t
    roots = shrunk.sqrt().movedim(-1, -2)[..., None, :]  # (.., T, 1, K)
    size = values.shape[-1]
    f_i = vectors[..., None, :, :] * roots
    f_j = map_j[..., None, :, :] * roots
    tail = (rest_vectors * rest_values.sqrt()[..., None, :])[..., None, :, :].expand(*f_j.shape[:-1], -1)
    f_j = torch.cat([f_j.expand(*tail.shape[:-1], size), tail], -1)
    f_i = torch.cat([f_i.expand(*f_j.shape[:-1], size), torch.zeros_like(tail)], -1)
    second = tilt.scales[j]
    if second is None:
        kept = torch.ones(*f_j.shape[:-2], f_j.shape[-1], 1, dtype=f_j.dtype)
        along = torch.eye(f_j.shape[-1], dtype=f_j.dtype).expand(*f_j.shape[:-2], -1, -1)
        weights = weight[..., None].expand(*f_j.shape[:-3], -1, 1)
        half = _halved(weight, 1)[..., None].expand(*f_j.shape[:-3], -1, 1)
    else:
        _, sigma, right = torch.linalg.svd(f_j, full_matrices=False)
        squares = sigma.square()
        plain = _spectrum(s[j, j])[0]
        other = _rule(second, plain, BOTH)
        u = (2 * second.c * other[0])[..., None, None, :]
        kept = 1 / (1 + u * squares[..., None])
        along = right
        det = torch.log1p(u * squares[..., None]).sum(-2)
        weights = weight[..., :, None] * torch.exp(other[1][..., None, :] - 0.5 * det)
        half = _halved(weights, 2)
    a_i, a_j = (torch.einsum("...ik,...rk->...ir", f, along) for f in (f_i, f_j))
    found = {}
    for p, (f, a) in {i: (f_i, a_i), j: (f_j, a_j)}.items():
        for q, (g, b) in {i: (f_i, a_i), j: (f_j, a_j)}.items():
            # both what lies outside the directions of l_j and what is left inside them: no differences
            outside_f = f - torch.einsum("...ir,...rk->...ik", a, along)
            outside_g = g - torch.einsum("...ir,...rk->...ik", b, along)
            outer = torch.einsum("...ik,...jk->...ij", outside_f, outside_g)
            inner = torch.einsum("...ir,...rt,...jr->...ijt", a, kept, b)
            value = (outer[..., None] + inner).movedim(-4, -2)  # (.., K, K, T, U)
            found[p, q] = value.flatten(-2)
    return Solved(found, weights.flatten(-2), half.flatten(-2))


def _joint(run: Run, tilt: Tilt, i: int, j: int) -> Tensor:
    """Covariance of l on two copies as ``(N1, N2, K, K)``."""
    array = tilt.covariances[i][j]
    value = run.value(array).double()
    sizes = [d for d in tilt.ell.dims if isinstance(d, int) and d != 1]
    size = math.prod(sizes)
    return value.expand(*value.shape[:2], *sizes, *sizes).reshape(*value.shape[:2], size, size)


def _spectrum(s: Tensor, like: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Eigenvalues, those that are rounding as zeros, and eigenvectors."""
    values, vectors = torch.linalg.eigh(s)
    top = values.amax(-1, keepdim=True) if like is None else like.diagonal(dim1=-2, dim2=-1).sum(-1, keepdim=True)
    return torch.where(values > _RANK * top, values, torch.zeros_like(values)), vectors


def _rule(scale: Scale, values: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes t and logarithms of weights of ``1 / Gamma(p) int t^(p-1) exp(-t eps) . dt``, ``(.., nodes)``.

    Trapezoids in y, ``t = t_0 exp(y - exp(-y) + exp(y - bend))``: double exponentials at the left end. The right end is
    where ``exp(-t eps)`` or the determinant's power of t leave nothing, and double exponentials too if that is far out.
    """
    tiny = torch.finfo(values.dtype).tiny
    top = values.amax(-1).clamp(min=tiny)
    positive = values > 0
    spread = torch.log(top / torch.where(positive, values, top[..., None]).amin(-1))
    rate = (positive.sum(-1) / 2 - 1).clamp(min=0.5)  # at which the integrand decays with log t beyond the spread
    start = 1 / (2 * scale.c * top)
    plain = spread + 2 + 28 / rate
    if scale.eps:
        plain = torch.minimum(plain, (math.log(40 / scale.eps) - torch.log(start)).clamp(min=1.0))
    far = plain > spread + 18
    bend = torch.where(far, spread + 2, 1e3)
    right = torch.where(far, spread + 2 + _LEFT, plain)
    y = torch.linspace(0, 1, nodes, dtype=values.dtype) * (right[..., None] + _LEFT) - _LEFT
    step = (right + _LEFT) / (nodes - 1)
    left_end, right_end = torch.exp(-y), torch.exp(y - bend[..., None])
    t = start[..., None] * torch.exp(y - left_end + right_end)
    log = scale.power * torch.log(t.clamp(min=tiny)) + torch.log((1 + left_end + right_end) * step[..., None])
    return t, log - t * scale.eps - math.lgamma(scale.power)


def _halved(weights: Tensor, axes: int) -> Tensor:
    """The rule of every second node, with zeros at the others."""
    keep = torch.zeros(weights.shape[-1], dtype=weights.dtype)
    keep[::2] = 2
    return weights * keep if axes == 1 else weights * keep * keep[:, None]
