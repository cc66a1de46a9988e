"""Parameters whose entries have different laws: slices of one axis, each with a law of its own."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor

from tpcompile.laws import Law, Pieces

_MOST = 8  # slices; more are no pattern of an initialisation
_FEW = 3  # slices that may be single entries


def read_pieces(key: Tensor, read: Callable[[int, int, int], Law | str]) -> Pieces | None:
    """Slices of the first axis along which each slice has one law, with ends at this width; None if there is none.

    ``key`` is ``(*shape, k)``, equal for entries that were made in the same way; ``read(axis, start, end)`` gives the
    law of a slice, or why it has none.
    """
    for axis in range(key.ndim - 1):
        rows = key.movedim(axis, 0).reshape(key.shape[axis], -1, key.shape[-1])
        if not bool((rows == rows[:, :1]).all()):
            continue
        change = (rows[1:, 0] != rows[:-1, 0]).any(1).nonzero()[:, 0]
        bounds = [0, *(change + 1).tolist(), key.shape[axis]]
        count = len(bounds) - 1
        if not 2 <= count <= _MOST or (count > _FEW and 2 * count > key.shape[axis]):
            continue
        laws = [read(axis, start, end) for start, end in pairwise(bounds)]
        known = [law for law in laws if not isinstance(law, str)]
        if len(known) < len(laws):
            continue
        kept = [k for k in range(len(known)) if k + 1 == len(known) or known[k] != known[k + 1]]
        if len(kept) > 1:
            ends = tuple((Fraction(bounds[k + 1]), 0) for k in kept)
            return Pieces(axis, ends, tuple(known[k] for k in kept))
    return None


def made_alike(draw: Tensor, group: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """The key of :func:`read_pieces`: what was drawn together with the same scale and shift, or the same constant."""
    random = draw > 0
    zero = torch.zeros_like(scale)
    return torch.stack([torch.where(random, group.double(), -1.0), torch.where(random, scale, zero), shift], -1)
