"""Sliding windows over finite axes as indices."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Windows:
    """Position ``place * stride - padding + offset * dilation`` along every axis; outside of it is padding."""

    sizes: Sequence[int]
    kernel: Sequence[int]
    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    places: Sequence[int]

    @property
    def trivial(self) -> bool:
        """True if the one offset of every window is its own place."""
        same = list(self.sizes) == list(self.places)
        return same and all(k == 1 for k in self.kernel) and all(p == 0 for p in self.padding)

    def index(self) -> Tensor:
        """Entry of the merged axes at every offset and place, -1 for padding; shape ``(*kernel, *places)``."""
        rank = len(self.sizes)
        joint = torch.zeros((), dtype=torch.int64)
        inside = torch.ones((), dtype=torch.bool)
        for i in range(rank):
            offset = torch.arange(self.kernel[i]) * self.dilation[i]
            at = torch.arange(self.places[i]) * self.stride[i] - self.padding[i] + offset[:, None]
            shape = [1] * (2 * rank)
            shape[i], shape[rank + i] = at.shape
            at = at.reshape(shape)
            joint = joint * self.sizes[i] + at
            inside = inside & (at >= 0) & (at < self.sizes[i])
        return torch.where(inside, joint, -1)
