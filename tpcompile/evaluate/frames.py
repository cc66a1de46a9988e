"""Particles: Gram-exact Gaussian draws, and initial matrices revealed lazily in orthonormal bases.

Theory, section 6 (Bolthausen conditioning; Lu 2101.07464, "Householder dice"). All rows are functions on M
particles with the inner product ``<a, b> = (1/M) sum a b``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tpcompile.errors import EvaluationError
from tpcompile.evaluate.buffers import Allocate, in_memory
from tpcompile.evaluate.points import Source
from tpcompile.laws import Constant, Law, Normal, TruncatedNormal, Uniform, mean_and_std

AHEAD = 128  # rows drawn ahead at most,
AHEAD_BYTES = 2**24  # and what they may take
COLUMNS = 4096  # particles a block


class Rows:
    """A growing stack of rows in one buffer."""

    def __init__(self, capacity: int, particles: int, dtype: torch.dtype, allocate: Allocate = in_memory) -> None:
        self._allocate = allocate
        self._buffer = allocate((capacity, particles), dtype)
        self.count = 0

    def space(self, count: int) -> Tensor:
        """Memory of the next rows, which are none until they are appended."""
        start = self.count
        if start + count > self._buffer.shape[0]:
            shape = (max(2 * start, start + count), self._buffer.shape[1])
            grown = self._allocate(shape, self._buffer.dtype)
            grown[:start] = self._buffer[:start]
            self._buffer = grown
        return self._buffer[start : start + count]

    def append(self, rows: Tensor) -> Tensor:
        """Add rows; returns them as stored."""
        space = self.space(rows.shape[0])
        if rows.data_ptr() != space.data_ptr():
            space.copy_(rows)
        self.count += rows.shape[0]
        return space

    @property
    def value(self) -> Tensor:
        """All rows, shape (count, M)."""
        return self._buffer[: self.count]


@dataclass(frozen=True)
class Layout:
    """The order of a domain's particles: ``(outer, units, inner)``, where the blocks of one unit row are independent.

    A row of the domain is ``blocks`` rows of ``units`` particles each, and back.
    """

    units: int
    outer: int = 1
    inner: int = 1

    @property
    def blocks(self) -> int:
        """Number of rows of units that make a row."""
        return self.outer * self.inner

    @property
    def particles(self) -> int:
        """Length of a row."""
        return self.units * self.blocks

    def apart(self, rows: Tensor) -> Tensor:
        """(R, particles) to (R blocks, units)."""
        if self.blocks == 1:
            return rows
        return rows.reshape(-1, self.outer, self.units, self.inner).transpose(2, 3).reshape(-1, self.units)

    def together(self, blocks: Tensor) -> Tensor:
        """Inverse of :meth:`apart`."""
        if self.blocks == 1:
            return blocks
        return blocks.reshape(-1, self.outer, self.inner, self.units).transpose(2, 3).reshape(-1, self.particles)


@dataclass
class Span:
    """Rows that are orthonormal to each other and to the constants: every new one to all before.

    ``layout`` makes a row from rows of the source.
    """

    layout: Layout
    dtype: torch.dtype
    source: Source
    allocate: Allocate = in_memory  # of rows that are kept
    memory: Allocate = in_memory  # of others
    drawn: list[tuple[Rows, Layout]] = field(default_factory=list)  # and how each is made of rows of the span
    ready: Tensor | None = None  # orthonormal rows drawn ahead, in large blocks for speed

    def normals(self, rows: int) -> Tensor:
        """Fresh standard normals, orthonormal in L2 to each other and to everything drawn; shape (rows, M)."""
        have = 0 if self.ready is None else self.ready.shape[0]
        if have < rows:
            fit = AHEAD_BYTES // (self.layout.particles * self.dtype.itemsize)
            ahead = max(rows - have, min(AHEAD, fit, self.source.left // self.layout.blocks))
            z = self.layout.together(self.source.normals(ahead * self.layout.blocks, self.dtype, self.memory))
            more = self._orthonormal(z)
            self.ready = more if self.ready is None else torch.cat([self.ready, more])
        assert self.ready is not None
        out, self.ready = self.ready[:rows], self.ready[rows:]
        return out

    def draw(self, law: Law, rows: int) -> Tensor:
        """Fresh draws of a law, standardised exactly; shape (rows, M)."""
        mean, std = mean_and_std(law)
        if isinstance(law, Normal):
            z = self.source.normals(rows * self.layout.blocks, self.dtype, self.memory)
            return self._orthonormal(self.layout.together(z))
        uniform = self.layout.together(self.source.uniform(rows * self.layout.blocks))
        return self._orthonormal(((quantile(law, uniform) - mean) / std).to(self.dtype))

    def _orthonormal(self, z: Tensor) -> Tensor:
        known = [layout.apart(rows.value) for rows, layout in self.drawn if rows.count]
        known += [self.ready] if self.ready is not None and self.ready.shape[0] else []
        total = 1 + z.shape[0] + sum(rows.shape[0] for rows in known)
        particles = self.layout.particles
        if total > particles // 2:
            raise EvaluationError(
                f"{total} independent directions on one width axis need more than {particles} particles",
                advice=f"set particles={2 ** math.ceil(math.log2(4 * total))} or more",
            )
        z.sub_(z.mean(1, keepdim=True))
        for basis in known:
            z.addmm_(z @ basis.T, basis, alpha=-1.0 / particles)
        # rows in order, so that early directions keep their low discrepancy
        return _solve(torch.linalg.cholesky((z @ z.T).div_(particles)), z)


@dataclass
class Frame:
    """The Gaussians of one domain, made of rows of a span, which may be that of its whole group."""

    layout: Layout
    span: Span

    @property
    def particles(self) -> int:
        """Number of particles of the domain."""
        return self.layout.particles

    def segment(self, capacity: int) -> Rows:
        """A new stack of rows that later draws are orthogonal to."""
        rows = Rows(max(capacity, 1), self.particles, self.span.dtype, self.span.allocate)
        self.span.drawn.append((rows, self.layout))
        return rows

    def normals(self, rows: int) -> Tensor:
        """Fresh standard normals, orthonormal in L2 to each other and to everything drawn; shape (rows, M)."""
        return self.layout.together(self.span.normals(rows * self.layout.blocks))

    def draw(self, law: Law, rows: int) -> Tensor:
        """Fresh draws of a law with its exact mean and covariance; shape (rows, M)."""
        mean, std = mean_and_std(law)
        if std == 0:
            return torch.full((rows, self.particles), mean, dtype=self.span.dtype)
        fresh = self.layout.together(self.span.draw(law, rows * self.layout.blocks))
        self.segment(rows).append(fresh)
        return fresh * std + mean


def frame(particles: int, dtype: torch.dtype, source: Source) -> Frame:
    """The frame of a domain that shares its particles with no other."""
    return Frame(Layout(particles), Span(Layout(particles), dtype, source))


def normal_quantile(u: Tensor) -> Tensor:
    """Standard normal quantile of uniform numbers, faster than ``torch.special.ndtri``."""
    return torch.erfinv(2 * u - 1).mul_(math.sqrt(2))


def quantile(law: Law, u: Tensor) -> Tensor:
    """The law's quantile function on uniform numbers."""
    from scipy import stats

    match law:
        case Normal(std=std, mean=mean):
            return normal_quantile(u) * std + mean
        case Uniform(low=low, high=high):
            return low + (high - low) * u
        case Constant(value=value):
            return torch.full_like(u, value)
        case TruncatedNormal(std=std, low=low, high=high, mean=mean):
            law_ = stats.truncnorm((low - mean) / std, (high - mean) / std, loc=mean, scale=std)
            return torch.from_numpy(law_.ppf(u.numpy()))
    raise EvaluationError(f"no independent draws of {law}")


@dataclass
class Side:
    """One side of an initial matrix: an orthonormal basis of what was multiplied from here, and the fresh
    normals that the products from the other side brought here."""

    frame: Frame
    basis: Rows
    fresh: Rows


@dataclass
class LazyMatrix:
    """An initial matrix with entries of variance std^2/n, known only through its products.

    ``ratio`` of each side is its width over n. ``dot`` False drops the response (dot) terms: wrong on purpose.
    """

    std: float
    out: Side
    into: Side
    out_ratio: float
    in_ratio: float
    dot: bool = True
    allocate: Allocate = in_memory  # of products

    def product(self, x: Tensor, transpose: bool) -> Tensor:
        """``W x`` (or ``W^T x``) for rows of x, shape (B, M): what earlier products tell, and fresh normals."""
        here, there = (self.out, self.into) if transpose else (self.into, self.out)
        r_here, r_there = (self.out_ratio, self.in_ratio) if transpose else (self.in_ratio, self.out_ratio)
        particles = here.frame.particles
        weights, new = extend(here.basis, x)
        if new:
            there.fresh.append(there.frame.normals(new))
        fresh = there.fresh.value
        y = self.allocate((x.shape[0], fresh.shape[1]), x.dtype)
        torch.mm(weights.mul_(self.std * math.sqrt(r_here)), fresh, out=y)
        if self.dot and here.fresh.count:
            response = x @ here.fresh.value.T  # Stein's lemma in an orthonormal basis
            y.addmm_(response, there.basis.value, alpha=self.std * r_here / math.sqrt(r_there) / particles)
        return y


def extend(basis: Rows, x: Tensor) -> tuple[Tensor, int]:
    """Coordinates of the rows of x in the basis, shape (B, K), after extending it by what it does not span.

    Returns the coordinates and the number of new basis rows. A second pass of Gram-Schmidt wherever the first
    cancels half or more: with fewer, the loss of orthogonality grows geometrically over the steps (2e-4 after 20).
    """
    particles = x.shape[1]
    double = x.dtype == torch.float64
    tolerance, cancels, dependent = (1e-10, 0.5, 1e-3) if double else (3e-4, 0.5, 3e-2)
    known = basis.value
    weights = (x @ known.T).mul_(1 / particles)
    rest = torch.addmm(x, weights, known, alpha=-1.0, out=basis.space(x.shape[0]))
    size, left = torch.linalg.vector_norm(x, dim=1), torch.linalg.vector_norm(rest, dim=1)
    ratios = (left / size.clamp_min(1e-300)).tolist()
    new = [r > tolerance for r in ratios]
    if not any(new):
        return weights, 0
    if not all(new):
        kept = rest[new]
        rest, left, size = rest[: kept.shape[0]].copy_(kept), left[new], size[new]
    rest.mul_((math.sqrt(particles) / left)[:, None])
    if min(r for r, flag in zip(ratios, new, strict=True) if flag) < cancels and known.shape[0]:
        rest.addmm_(rest @ known.T, known, alpha=-1.0 / particles)
    lower, failed = torch.linalg.cholesky_ex((rest @ rest.T).div_(particles))
    least = 0.0 if int(failed) else float(lower.diagonal().min())
    if least > dependent:
        fresh = basis.append(_solve(lower, rest))
        if least < 0.2:  # Cholesky of the Gram matrix squares its condition: once more
            _solve(torch.linalg.cholesky((fresh @ fresh.T).div_(particles)), fresh)
    else:  # rows that depend on each other: one at a time, with the tolerance of the original size
        kept = _one_by_one(known, rest, tolerance * size / left)
        fresh = basis.append(kept) if kept.shape[0] else kept
    return torch.cat([weights, (x @ fresh.T).mul_(1 / particles)], 1), fresh.shape[0]


def _solve(lower: Tensor, rows: Tensor) -> Tensor:
    """``lower^-1 rows`` for a small well-conditioned triangle, in place: products of blocks that stay in the cache
    are faster than a solve on long rows."""
    inverse = torch.linalg.solve_triangular(lower, torch.eye(lower.shape[0], dtype=lower.dtype), upper=False)
    for block in rows.split(COLUMNS, dim=1):
        block.copy_(inverse @ block)
    return rows


def _one_by_one(basis: Tensor, rest: Tensor, tolerances: Tensor) -> Tensor:
    particles = rest.shape[1]
    kept = rest.new_empty((0, particles))
    for row, tolerance in zip(rest, tolerances, strict=True):
        for _ in range(2):
            row = row - (kept @ row / particles) @ kept
            size = row.square().mean().sqrt()
            if size <= max(float(tolerance), 1e-13 if row.dtype == torch.float64 else 1e-5):
                break
            row = row / size
            row = row - (basis @ row / particles) @ basis
        else:
            kept = torch.cat([kept, row[None] / row.square().mean().sqrt()])
    return kept
