"""Several expectations of the same pairs, in blocks of rows: little memory, and friendlier to the caches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tpcompile.evaluate.duals.pair import Pair

if TYPE_CHECKING:
    from tpcompile.evaluate.duals.dual import Dual

ELEMENTS = 1 << 18
"""Pairs of a block."""


def together(duals: Sequence[Dual], pair: Pair) -> list[Tensor]:
    """The values of every dual, each of the shape of ``pair.cov``: without derivatives, faster than one by one.

    What the duals share is computed once a block, and no temporary of a closed form is larger than a block.
    """
    cov = pair.cov
    rows = cov.shape[0] if cov.dim() else 1
    block = max(1, ELEMENTS * rows // max(1, cov.numel()))
    with torch.no_grad():
        if block >= rows:
            return [dual.value(pair) for dual in duals]
        # quadrature checks itself on every call and makes its own blocks: it gets all pairs at once
        out = [torch.empty_like(cov) if dual.error is None else dual.value(pair) for dual in duals]
        for start in range(0, rows, block):
            part = pair.rows(start, start + block)
            for dual, target in zip(duals, out, strict=True):
                if dual.error is not None:
                    continue
                target[start : start + block] = dual.value(part)
    return out
