"""Orthonormal generators of a width axis, and initial matrices as maps between those of their two axes.

The same conditioning as on particles (theory, section 6), with the coefficients of generators in place of values
on particles: every inner product is exact, and the fresh normals that a product draws are generators themselves.
A vector is a row of coefficients, number 0 that of the constant one; a shorter row stands for zeros behind it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tpcompile.laws import Law, Normal, TruncatedNormal, Uniform

TOLERANCE = 1e-13  # a row whose part outside the basis is this small, relative to the row, is in its span


@dataclass
class Generators:
    """Orthonormal random variables of one width axis: the constant one, then centred independent ones.

    ``skewness`` and ``excess`` are their third moments and their fourth moments minus 3. Those of the constant are 0
    and -2: with them the formulas for independent centred variables hold for it too.
    """

    skewness: list[float] = field(default_factory=lambda: [0.0])
    excess: list[float] = field(default_factory=lambda: [-2.0])

    @property
    def count(self) -> int:
        """How many there are, the constant included."""
        return len(self.excess)

    def fresh(self, count: int, law: Law | None = None) -> range:
        """New generators of the standardised law, normal by default; their numbers."""
        start = self.count
        skewness, excess = (0.0, 0.0) if law is None else shape(law)
        self.skewness += [skewness] * count
        self.excess += [excess] * count
        return range(start, start + count)

    def truncate(self, count: int) -> None:
        """Forget all generators from that number on."""
        del self.skewness[count:], self.excess[count:]


def shape(law: Law) -> tuple[float, float]:
    """Skewness and excess kurtosis of a law of independent entries."""
    from scipy import stats

    match law:
        case Normal():
            return 0.0, 0.0
        case Uniform():
            return 0.0, -1.2
        case TruncatedNormal(std=std, low=low, high=high, mean=mean):
            skewness, excess = stats.truncnorm.stats((low - mean) / std, (high - mean) / std, moments="sk")
            return float(skewness), float(excess)
    raise ValueError(f"no independent draws of {law}")


class Basis:
    """A growing stack of orthonormal rows over a growing number of generators."""

    def __init__(self) -> None:
        self._buffer = torch.zeros((16, 16), dtype=torch.float64)
        self.count = 0

    def rows(self, size: int) -> Tensor:
        """All rows, shape (count, size)."""
        self._reserve(self.count, size)
        return self._buffer[: self.count, :size]

    def append(self, rows: Tensor) -> None:
        """Add rows; the caller has made them orthonormal to each other and to those there."""
        end = self.count + rows.shape[0]
        self._reserve(end, rows.shape[1])
        self._buffer[self.count : end] = 0
        self._buffer[self.count : end, : rows.shape[1]] = rows
        self.count = end

    def truncate(self, count: int) -> None:
        """Forget the rows from that number on."""
        self.count = count

    def _reserve(self, rows: int, size: int) -> None:
        have = self._buffer.shape
        if rows > have[0] or size > have[1]:
            grown = self._buffer.new_zeros((max(have[0], 2 * rows), max(have[1], 2 * size)))
            grown[: self.count, : have[1]] = self._buffer[: self.count]
            self._buffer = grown


@dataclass
class Side:
    """One axis of an initial matrix: a basis of what was multiplied from here, and the generators that products
    from the other side brought here, one for each row of the other side's basis."""

    generators: Generators
    ratio: float
    basis: Basis = field(default_factory=Basis)
    brought: list[int] = field(default_factory=list)


@dataclass
class LinearMap:
    """An initial matrix with entries of variance ``std^2 / n`` on its two axes (output, input).

    ``dot`` False drops the response (dot) terms: wrong on purpose.
    """

    std: float
    out: Side
    into: Side
    dot: bool = True

    def product(self, x: Tensor, transpose: bool) -> Tensor:
        """``W x`` (or ``W^T x``) for rows of coefficients."""
        here, there = (self.out, self.into) if transpose else (self.into, self.out)
        x = padded(x, here.generators.count)
        weights, new = extend(here.basis, x)
        there.brought += there.generators.fresh(new)
        y = x.new_zeros((x.shape[0], there.generators.count))
        y[:, there.brought] = weights.mul_(self.std * math.sqrt(here.ratio))
        if self.dot and here.brought:
            response = x[:, here.brought]  # Stein's lemma in an orthonormal basis
            y.addmm_(response, there.basis.rows(y.shape[1]), alpha=self.std * here.ratio / math.sqrt(there.ratio))
        return y


def extend(basis: Basis, x: Tensor) -> tuple[Tensor, int]:
    """Coordinates of rows in a basis after extending it by what it does not span, and the number of new basis rows."""
    known = basis.rows(x.shape[1])
    weights = x @ known.T
    rest = torch.addmm(x, weights, known, alpha=-1.0)
    again = rest @ known.T  # the second pass makes the rest orthogonal to rounding, however small it is
    weights += again
    rest.addmm_(again, known, alpha=-1.0)
    sizes = torch.linalg.vector_norm(x, dim=1)
    left = torch.linalg.vector_norm(rest, dim=1) > TOLERANCE * sizes
    if not bool(left.any()):
        return weights, 0
    fresh = _directions(rest[left] / sizes[left][:, None])
    if known.shape[0]:
        fresh = fresh - (fresh @ known.T) @ known
        fresh = torch.linalg.qr(fresh.T).Q.T
    basis.append(fresh)
    return torch.cat([weights, rest @ fresh.T], 1), fresh.shape[0]


def _directions(rows: Tensor) -> Tensor:
    """Orthonormal rows that span these, up to the tolerance."""
    _, sizes, directions = torch.linalg.svd(rows, full_matrices=False)
    return directions[sizes > TOLERANCE]


def form_covariance(first: Tensor, second: Tensor, generators: Generators) -> Tensor:
    """``E[q q']`` of quadratic forms in the generators, by their moments up to the fourth; shapes (entries, K, K)."""
    count = max(first.shape[1], second.shape[1])
    a, b = (padded(padded(x, count, 1), count, 2) for x in (first, second))
    excess, skewness = (torch.tensor(x[:count], dtype=a.dtype) for x in (generators.excess, generators.skewness))
    da, db = (x.diagonal(0, 1, 2) for x in (a, b))
    pairs = 2 * a.flatten(1) @ b.flatten(1).T + torch.outer(da.sum(1), db.sum(1))
    third = 2 * ((a[:, 0] * skewness) @ db.T + (da * skewness) @ b[:, 0].T)
    return pairs + third + (da * excess) @ db.T


def padded(x: Tensor, count: int, axis: int = -1) -> Tensor:
    """Coefficients followed by zeros up to that number."""
    missing = count - x.shape[axis]
    if not missing:
        return x
    extra = list(x.shape)
    extra[axis] = missing
    return torch.cat([x, x.new_zeros(extra)], axis)
