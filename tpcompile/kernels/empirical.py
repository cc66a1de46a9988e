"""The kernels of a model at a finite width, to compare with the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.kernels.arrays import Array, Kernels, as_tensor, like
from tpcompile.kernels.plan import Pairs, check_input
from tpcompile.simulate import build, default_dtype, learning_rates, seeded
from tpcompile.tangent import tangent_kernel

if TYPE_CHECKING:
    from tpcompile.kernels.kernel import Kernel


def empirical_kernels(
    kernel: Kernel,
    width: int,
    x1: Array,
    x2: Array | None,
    seed: int,
    get: str,
    draws: int,
    dtype: torch.dtype | None,
) -> Any:
    """See :meth:`tpcompile.Kernel.empirical`."""
    if get not in ("nngp", "ntk", "both"):
        raise UsageError(f"get must be 'nngp', 'ntk' or 'both', found {get!r}")
    if width < 1 or draws < 1:
        raise UsageError(f"width and draws must be at least 1, found {width} and {draws}")
    first, second = as_tensor(x1, "x1"), None if x2 is None else as_tensor(x2, "x2")
    for x, name in ((first, "x1"), (second, "x2")):
        if x is not None:
            check_input(x, kernel.example[0] if kernel.batch else kernel.example, name)
    dtype = dtype or (first.dtype if first.is_floating_point() else torch.get_default_dtype())
    wanted = ("nngp", "ntk") if get == "both" else (get,)
    totals = [torch.zeros(()) for _ in wanted]
    for draw in range(draws):
        with default_dtype(dtype):
            found = _one(kernel, width, first, second, seed + draw, wanted, dtype)
        totals = [total + value for total, value in zip(totals, found, strict=True)]
    means = [total / draws for total in totals]
    return like(Kernels(*means) if get == "both" else means[0], x1)


def _one(
    kernel: Kernel,
    width: int,
    x1: Tensor,
    x2: Tensor | None,
    seed: int,
    wanted: tuple[str, ...],
    dtype: torch.dtype,
) -> list[Tensor]:
    make, _, given, *_ = kernel.arguments
    with seeded(seed):
        model, optimizer = build(make, width)
        if optimizer is None and given is not None:
            optimizer = given(model.parameters())
    model = model.to(dtype)
    y1, y2 = (None if x is None else x.to(dtype) if x.is_floating_point() else x for x in (x1, x2))
    found = []
    for get in wanted:
        pairs = kernel.single_pairs(get)
        if get == "nngp":
            with torch.no_grad():
                f = model(y1).reshape(len(x1), -1)
                g = f if y2 is None else model(y2).reshape(len(y2), -1)
            value = torch.einsum("ai,bj->abij", f, g)
        else:
            shares = tangent_kernel(model, y1, learning_rates(model, optimizer), y2)  # type: ignore[arg-type]
            value = torch.stack(list(shares.values())).sum(0)
        found.append(averaged(value, pairs) / float(width) ** float(pairs.exponent))
    return found


def averaged(value: Tensor, pairs: Pairs) -> Tensor:
    """A kernel ``(N1, N2, K, K)`` of all outputs, averaged over independent ones: ``(N1, N2, *P, *P)``."""
    n1, n2, size = value.shape[:3]
    dims = pairs.output if pairs.output else (size,)
    value = value.reshape(n1, n2, *dims, *dims)
    rank = len(dims)
    labels = list(range(rank))
    second = [i + rank if i in pairs.kept else i for i in labels]
    out = [i for i in labels if i in pairs.kept]
    count = 1
    for i in labels:
        count *= 1 if i in pairs.kept else dims[i]
    a, b = 2 * rank, 2 * rank + 1
    return torch.einsum(value, [a, b, *labels, *second], [a, b, *out, *(i + rank for i in out)]) / count
