"""Particles: Gram-exact Gaussian draws, and initial matrices revealed lazily in orthonormal bases.

Theory, section 6 (Bolthausen conditioning; Lu 2101.07464, "Householder dice"). All rows are functions on M
particles with the inner product ``<a, b> = (1/M) sum a b``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from scipy import stats
from torch import Tensor
from torch.quasirandom import SobolEngine

from tpcompile.errors import EvaluationError
from tpcompile.laws import Constant, Law, Normal, TruncatedNormal, Uniform, mean_and_std


_AHEAD = 128  # rows drawn ahead
_SOBOL_DIMENSIONS = 1024  # later directions are pseudo-random: low discrepancy pays on the early ones


class Rows:
    """A growing stack of rows in one buffer."""

    def __init__(self, capacity: int, particles: int, dtype: torch.dtype) -> None:
        self._buffer = torch.empty((capacity, particles), dtype=dtype)
        self.count = 0

    def append(self, rows: Tensor) -> Tensor:
        """Add rows; returns them as stored."""
        start = self.count
        if start + rows.shape[0] > self._buffer.shape[0]:
            grown = self._buffer.new_empty((max(2 * start, start + rows.shape[0]), self._buffer.shape[1]))
            grown[:start] = self._buffer[:start]
            self._buffer = grown
        self.count += rows.shape[0]
        self._buffer[start : self.count] = rows
        return self._buffer[start : self.count]

    @property
    def value(self) -> Tensor:
        """All rows, shape (count, M)."""
        return self._buffer[: self.count]


class Source:
    """Uniform numbers of a scrambled Sobol sequence, one dimension a row, in order of use.

    ``part`` and ``parts`` select an aligned run of the points: each half of a Sobol net is a net.
    """

    def __init__(self, dimension: int, particles: int, seed: int, part: int = 0, parts: int = 1) -> None:
        self.used = 0
        self._seed = seed
        self._particles = particles
        self._rows = dimension
        self._dimension = max(1, min(dimension, _SOBOL_DIMENSIONS))
        points = SobolEngine(self._dimension, scramble=True, seed=seed).draw(particles * parts, dtype=torch.float64)
        points = points[part * particles : (part + 1) * particles]
        self._points = points.T.contiguous().add_(2.0**-31)  # never 0: the engine has 30 bits

    @property
    def left(self) -> int:
        """Rows that are expected and not yet used."""
        return max(0, self._rows - self.used)

    def uniform(self, rows: int) -> Tensor:
        """The next rows, shape (rows, M), in (0, 1)."""
        start, self.used = self.used, self.used + rows
        if self.used <= self._dimension:
            return self._points[start : self.used]
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + start)  # beyond the engine's dimensions
        extra = torch.rand((rows, self._particles), generator=generator, dtype=torch.float64)
        return extra.clamp_(2.0**-53, 1 - 2.0**-53)


@dataclass
class Frame:
    """The Gaussians of one domain: every new one orthonormal to all before and to the constants."""

    particles: int
    dtype: torch.dtype
    source: Source
    drawn: list[Rows] = field(default_factory=list)
    ready: Tensor | None = None  # orthonormal rows drawn ahead, in large blocks for speed

    def segment(self, capacity: int) -> Rows:
        """A new stack of rows that later draws are orthogonal to."""
        rows = Rows(max(capacity, 1), self.particles, self.dtype)
        self.drawn.append(rows)
        return rows

    def normals(self, rows: int) -> Tensor:
        """Fresh standard normals, orthonormal in L2 to each other and to everything drawn; shape (rows, M)."""
        have = 0 if self.ready is None else self.ready.shape[0]
        if have < rows:
            ahead = max(rows - have, min(_AHEAD, self.source.left))
            z = torch.special.ndtri(self.source.uniform(ahead)).to(self.dtype)
            more = self._orthonormal(z, self.ready)
            self.ready = more if self.ready is None else torch.cat([self.ready, more])
        assert self.ready is not None
        out, self.ready = self.ready[:rows], self.ready[rows:]
        return out

    def draw(self, law: Law, rows: int) -> Tensor:
        """Fresh draws of a law with its exact mean and covariance; shape (rows, M)."""
        mean, std = mean_and_std(law)
        u = self.source.uniform(rows)
        standard = (quantile(law, u) - mean) / std if std > 0 else torch.zeros_like(u)
        if std == 0:
            return torch.full((rows, self.particles), mean, dtype=self.dtype)
        fresh = self._orthonormal(standard.to(self.dtype), self.ready)
        self.segment(rows).append(fresh)
        return fresh * std + mean

    def _orthonormal(self, z: Tensor, ready: Tensor | None) -> Tensor:
        known = [rows.value for rows in self.drawn if rows.count]
        known += [ready] if ready is not None and ready.shape[0] else []
        total = 1 + z.shape[0] + sum(rows.shape[0] for rows in known)
        if total > self.particles // 2:
            raise EvaluationError(
                f"{total} independent directions on one width axis need more than {self.particles} particles",
                advice=f"set particles={2 ** math.ceil(math.log2(4 * total))} or more",
            )
        z = z - z.mean(1, keepdim=True)
        for basis in known:
            z = torch.addmm(z, z @ basis.T, basis, alpha=-1.0 / self.particles)
        # rows in order, so that early directions keep their low discrepancy
        lower = torch.linalg.cholesky(z @ z.T / self.particles)
        return torch.linalg.solve_triangular(lower, z, upper=False)


def quantile(law: Law, u: Tensor) -> Tensor:
    """The law's quantile function on uniform numbers."""
    match law:
        case Normal(std=std, mean=mean):
            return torch.special.ndtri(u) * std + mean
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

    def product(self, x: Tensor, transpose: bool) -> Tensor:
        """``W x`` (or ``W^T x``) for rows of x, shape (B, M): the part known from earlier products, and fresh normals."""
        here, there = (self.out, self.into) if transpose else (self.into, self.out)
        r_here, r_there = (self.out_ratio, self.in_ratio) if transpose else (self.in_ratio, self.out_ratio)
        particles = here.frame.particles
        weights, new = extend(here.basis, x)
        if new:
            there.fresh.append(there.frame.normals(new))
        y = (self.std * math.sqrt(r_here)) * (weights.T @ there.fresh.value)
        if self.dot and here.fresh.count:
            response = x @ here.fresh.value.T / particles  # Stein's lemma in an orthonormal basis
            y = y + (self.std * r_here / math.sqrt(r_there)) * (response @ there.basis.value)
        return y


def extend(basis: Rows, x: Tensor) -> tuple[Tensor, int]:
    """Coordinates of the rows of x in the basis, shape (K, B), after extending it by what it does not span.

    Returns the coordinates and the number of new basis rows. Two passes of Gram-Schmidt where the first cancels.
    """
    particles = x.shape[1]
    tolerance = 1e-10 if x.dtype == torch.float64 else 3e-4
    size = x.square().mean(1).sqrt()
    weights = basis.value @ x.T / particles
    rest = x - weights.T @ basis.value
    left = rest.square().mean(1).sqrt()
    new = left > tolerance * size
    if not bool(new.any()):
        return weights, 0
    rest = rest[new] / left[new, None]
    if bool((left[new] < 0.7 * size[new]).any()):
        rest = rest - (rest @ basis.value.T / particles) @ basis.value
    q, r = torch.linalg.qr(rest.T / math.sqrt(particles))
    if bool((r.diagonal().abs() > 1e-3).all()):
        fresh = q.T * math.sqrt(particles)
    else:  # rows that depend on each other: one at a time, with the tolerance of the original size
        fresh = _one_by_one(basis.value, rest, tolerance * size[new] / left[new])
    stored = basis.append(fresh)
    return torch.cat([weights, stored @ x.T / particles]), fresh.shape[0]


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
