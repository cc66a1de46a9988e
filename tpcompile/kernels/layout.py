"""Outputs of a model and its kernels in one layout: independent outputs are columns, the rest are rows."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.kernels.arrays import as_kernel, as_matrix
from tpcompile.kernels.plan import Pairs


@dataclass(frozen=True)
class Layout:
    """The axes of one output without those of length 1, and which of them have a kernel of their own."""

    dims: tuple[int, ...]
    kept: tuple[int, ...]

    @classmethod
    def of(cls, *kernels: Pairs) -> Layout:
        """The layout that fits all of some kernels of one model."""
        whole = max((p.output for p in kernels), key=len)
        axes = [i for i, d in enumerate(whole) if d != 1]
        kept = {i for p in kernels for i in p.kept}
        return cls(tuple(whole[i] for i in axes), tuple(axes.index(i) for i in sorted(kept) if i in axes))

    @property
    def positions(self) -> tuple[int, ...]:
        return tuple(self.dims[i] for i in self.kept)

    def matrix(self, kernel: Tensor, pairs: Pairs) -> Tensor:
        """A kernel ``(N1, N2, *P, *P)`` as a matrix over (input, position) pairs."""
        return as_matrix(self._expanded(kernel, pairs))

    def diagonal(self, kernel: Tensor, pairs: Pairs) -> Tensor:
        """The kernel ``(N, *P, *P)`` of inputs with themselves as the diagonal ``(N |P|,)`` of that matrix."""
        full = self._expanded(kernel[:, None], pairs)
        size = math.prod(self.positions)
        return full.reshape(len(kernel), size, size).diagonal(dim1=1, dim2=2).reshape(-1)

    def covariance(self, rows: Tensor | None, full: bool) -> Tensor | None:
        """A covariance of rows ``(..., M |P|, M |P|)`` as ``(..., M, M, *P, *P)``; the diagonal ``(..., M, *P)``."""
        if rows is None or not self.positions:
            return rows
        return as_kernel(rows, self.positions) if full else rows.reshape(*rows.shape[:-1], -1, *self.positions)

    def coupled(self, common: Tensor, paths: Tensor, shape: tuple[int, ...], full: bool) -> Tensor:
        """Covariance of outputs whose columns are coupled: ``(T, M, M, K, K)``, or the diagonal ``(T, M, *shape)``.

        ``common`` is a covariance of rows that independent columns share, ``(M |P|, M |P|)`` or its diagonal, to which
        that of ``paths`` ``(T, D, M |P|, k)``, draws that are centred, is added. ``K`` counts the outputs of an input.
        """
        count, columns, free = math.prod(self.positions), paths.shape[-1], max(1, paths.shape[1] - 1)
        if not full:
            return self.outputs(common[:, None] + paths.square().sum(1) / free, shape)
        order = self.outputs(torch.arange(count * columns).reshape(count, columns), shape).reshape(-1)
        m = len(common) // count
        flat = self.outputs(paths, shape).reshape(*paths.shape[:2], m, -1)
        sampled = torch.einsum("tdmk,tdnl->tmnkl", flat, flat) / free
        eye = torch.eye(columns, dtype=common.dtype)
        both = common.reshape(m, count, 1, m, count, 1) * eye[:, None, None]
        own = both.permute(0, 3, 1, 2, 4, 5).reshape(m, m, count * columns, count * columns)
        return own[:, :, order][..., order] + sampled

    def _expanded(self, kernel: Tensor, pairs: Pairs) -> Tensor:
        """Outputs that are independent in this kernel but not in another of the model get their zeros."""
        axes = [i for i, d in enumerate(pairs.output) if d != 1]
        own = [axes.index(i) for i in pairs.kept if i in axes]
        missing = [i for i in self.kept if i not in own]
        n1, n2 = kernel.shape[:2]
        size, extra = math.prod(self.dims[i] for i in own), math.prod(self.dims[i] for i in missing)
        kernel = kernel.reshape(n1, n2, size, 1, size, 1)
        if missing:
            kernel = kernel * torch.eye(extra, dtype=kernel.dtype)[:, None]
        order = [*own, *missing]
        lengths = [self.dims[i] for i in order]
        places, count = [order.index(i) for i in self.kept], len(order)
        full = kernel.reshape(n1, n2, *lengths, *lengths)
        return full.permute(0, 1, *(2 + i for i in places), *(2 + count + i for i in places))

    def rows(self, y: Tensor, name: str) -> Tensor:
        """Outputs ``(N, ...)`` as ``(N |P|, k)``. Raises UsageError for outputs that are not the model's."""
        if not self.kept:
            return y.reshape(len(y), -1)
        found = tuple(d for d in y.shape[1:] if d != 1)
        if found != self.dims:
            wanted = ", ".join(["N", *map(str, self.dims)])
            raise UsageError(f"{name} must have the shape ({wanted}) of the model's outputs, found {tuple(y.shape)}")
        moved = y.reshape(len(y), *self.dims).movedim([1 + i for i in self.kept], list(range(1, 1 + len(self.kept))))
        return moved.reshape(len(y) * math.prod(self.positions), -1)

    def outputs(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The inverse of :meth:`rows` for ``(..., M |P|, k)``: ``(..., M, *shape)``."""
        lead = rows.shape[:-2]
        if not self.kept:
            return rows.reshape(*lead, rows.shape[-2], *shape)
        others = [d for i, d in enumerate(self.dims) if i not in self.kept]
        full = rows.reshape(*lead, -1, *self.positions, *others)
        first = len(lead) + 1
        moved = full.movedim(list(range(first, first + len(self.kept))), [first + i for i in self.kept])
        return moved.reshape(*moved.shape[:first], *shape)
