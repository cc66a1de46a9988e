"""``as_strided``, which autograd uses for assignments to slices, as the slices or the view that it stands for."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def as_slices(x: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None) -> Tensor | None:
    """``x.as_strided(size, stride, offset)`` as a view of x, by slices, one an axis; None where it is none."""
    if x.is_contiguous() and offset in (None, x.storage_offset()) and _contiguous(size, stride) == x.numel():
        return x.view(tuple(size))
    axes = sorted((i for i in range(x.ndim) if x.shape[i] > 1), key=lambda i: -x.stride(i))
    wanted = [(n, s) for n, s in zip(size, stride, strict=True) if n > 1]
    rest = 0 if offset is None else offset - int(x.storage_offset())
    out = x
    for i in axes:
        step = int(x.stride(i))
        if step == 0 or rest < 0:
            return None
        start, rest = divmod(rest, step)
        length = 1
        if wanted and wanted[0][1] == step:
            length = wanted.pop(0)[0]
        if start + length > x.shape[i]:
            return None
        if length < x.shape[i]:
            out = out.narrow(i, start, length)
    if wanted or rest:
        return None
    return out if out.shape == tuple(size) else out.view(tuple(size))


def _contiguous(size: Sequence[int], stride: Sequence[int]) -> int | None:
    """The number of entries, if these strides lay them out without gaps in order."""
    total = 1
    for n, step in zip(reversed(size), reversed(stride), strict=True):
        if n != 1 and step != total:
            return None
        total *= n
    return total
