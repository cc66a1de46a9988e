"""Products and sums of tensors over labelled axes after the two pair axes, in few passes over memory."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_SHORT = 16  # terms of a sum that are added one by one, entries that such a sum has at least


def short(factors: Sequence[tuple[Tensor, tuple[int, ...]]], out: tuple[int, ...]) -> Tensor | None:
    """A short sum of products entry by entry, term after term; None for what is better a product of matrices."""
    if len(factors) != 2 or any(x.requires_grad for x, _ in factors):
        return None
    (x, a), (_, b) = factors
    shared = set(a) & set(b)
    sums = [k for k in a if k in shared and k not in out]
    count = math.prod(x.shape[2 + a.index(k)] for k in sums)
    entries = math.prod(x.shape[2 + a.index(k)] for k in shared if k in out)
    if set(a) - set(out) != set(sums) or set(b) - set(out) != set(sums) or not 0 < count <= _SHORT <= entries:
        return None
    parts = []
    for value, labels in factors:
        order = (*sums, *(k for k in labels if k not in sums))
        at = [2 + labels.index(k) for k in order]
        value = value.permute(*at[: len(sums)], 0, 1, *at[len(sums) :])
        parts.append(value)
    if parts[0].shape[: len(sums)] != parts[1].shape[: len(sums)]:
        return None
    rest = [tuple(k for k in labels if k not in sums) for _, labels in factors]
    total: Tensor | None = None
    for at in itertools.product(*(range(n) for n in parts[0].shape[: len(sums)])):
        one, two = (aligned(value[at], labels, out) for value, labels in zip(parts, rest, strict=True))
        total = one * two if total is None else total.addcmul_(one, two)
    return total


def added(total: Tensor | None, owned: bool, coefficient: Any, factors: Sequence[Tensor]) -> tuple[Tensor, bool]:
    """A sum and a product of tensors times a number, in few passes over memory; in place where it may be."""
    if torch.is_tensor(coefficient):
        value = coefficient * math.prod(factors[1:], start=factors[0])
        return (value if total is None else total + value), False
    first, *others = sorted(factors, key=lambda x: -x.numel())
    if others and 8 * others[-1].numel() <= first.numel():  # numbers go to what is small
        others[-1], coefficient = others[-1] * coefficient, 1.0
    while len(others) > 1:
        last = others.pop()
        others[-1] = others[-1] * last
    if total is None:
        if not others:
            return (first, False) if coefficient == 1 else (first * coefficient, True)
        value = first * others[0]
        return value if coefficient == 1 else value.mul_(coefficient), True
    if owned and all(_fits(x.shape, total.shape) for x in (first, *others)):
        value = total.addcmul_(first, others[0], value=coefficient) if others else total.add_(first, alpha=coefficient)
        return value, True
    if others:
        return torch.addcmul(total, first, others[0], value=coefficient), True
    return torch.add(total, first, alpha=coefficient), True


def _fits(shape: Sequence[int], into: Sequence[int]) -> bool:
    return all(n in (1, m) for n, m in zip(shape, into, strict=True))


def diagonal(value: Tensor, labels: tuple[int, ...]) -> tuple[Tensor, tuple[int, ...]]:
    """An array over labels of which some are equal, on the diagonal."""
    while len(set(labels)) < len(labels):
        j = next(i for i, x in enumerate(labels) if x in labels[:i])
        i = labels.index(labels[j])
        first, second = value.shape[2 + i], value.shape[2 + j]
        if first == second:
            value = value.diagonal(0, 2 + i, 2 + j).movedim(-1, 2 + i)
        else:  # one of them does not depend on the axis
            value = value.squeeze(2 + (j if second == 1 else i))
        labels = labels[:j] + labels[j + 1 :]
    return value, labels


def aligned(value: Tensor, labels: tuple[int, ...], out: tuple[int, ...]) -> Tensor:
    """A tensor over labels as one over ``out``: axes permuted, missing ones of length 1."""
    if labels == out:
        return value
    order = sorted(range(len(labels)), key=lambda i: out.index(labels[i]))
    value = value.permute(0, 1, *(2 + i for i in order))
    have = iter(value.shape[2:])
    return value.reshape(*value.shape[:2], *(next(have) if x in labels else 1 for x in out))
