"""Blocks of kernels put into their matrices, in one call without the interpreter lock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from tpcompile.evaluate.tapes.script import unoptimized

_TEXT = """
def place(targets: List[Tensor], values: List[Tensor], i: int, j: int, own: int, mirrored: bool):
    for target, value in zip(targets, values):
        rows, columns, rank = value.size(0), value.size(1), value.dim()
        half = (rank - 2) // 2
        order = [1, 0]
        for d in range(half):
            order.append(2 + half + d)
        for d in range(half):
            order.append(2 + d)
        done = 0
        if own > 0 and value.stride(0) != 0 and value.stride(1) != 0:
            part = value.narrow(1, 0, own)
            target.narrow(0, i, rows).narrow(1, j, own).copy_((part + part.permute(order)) * 0.5)
            done = own
        if columns > done:
            target.narrow(0, i, rows).narrow(1, j + done, columns - done).copy_(value.narrow(1, done, columns - done))
        if mirrored and columns > own:
            other = value.narrow(1, own, columns - own).permute(order)
            if half == 0:
                other = other.contiguous()  # as a copy into rows of a larger matrix it would be slow
            target.narrow(0, j + own, columns - own).narrow(1, i, rows).copy_(other)
    return 0
"""


def place(
    targets: Sequence[Tensor], values: Sequence[Tensor], corner: tuple[int, int], own: int, mirrored: bool
) -> None:
    """Put blocks ``(rows, columns, *P, *P)`` into matrices with their first entries at a corner.

    The first ``own`` columns are of pairs of the rows: both triangles of these are rounded alike. ``mirrored`` puts the
    others into the other triangle, too, with pair axes and position axes swapped.
    """
    with unoptimized():
        _compiled()(list(targets), list(values), *corner, own, mirrored)


@lru_cache(maxsize=1)
def _compiled() -> Callable[..., Any]:
    return torch.jit.CompilationUnit(_TEXT).place
