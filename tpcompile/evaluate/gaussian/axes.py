"""Expectations under instructions that move entries along finite axes: views, permutations, gathers, scatters.

The factor is replaced by its operand under derived labels; in the result, arrays over derived labels are read back at
the labels that were asked for. Factors that move the same labels in the same way share the derived ones, so that a
diagonal stays a diagonal.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from tpcompile.evaluate.gaussian.terms import (
    Array,
    EyeArray,
    GatherArray,
    Label,
    OneHotArray,
    Poly,
    ReshapeArray,
    Term,
    Use,
)
from tpcompile.ir import (
    Concat,
    Dims,
    Gather,
    Node,
    Permute,
    Scatter,
    Slice,
    SplitWidth,
    Unslice,
    View,
    Width,
)

if TYPE_CHECKING:
    from tpcompile.evaluate.gaussian.moments import Factor, Moments

Labels = tuple[Label | None, ...]
Index = Node | torch.Tensor


def moved(m: Moments, f: Factor, factors: Sequence[Factor]) -> Poly:
    """The expectation of a product of which f moves the entries of its operand."""
    op = f.node.op
    match op:
        case View():
            return _view(m, f, factors)
        case Gather(axis=axis):
            return _gather(m, f, factors, axis, f.node.operands[1], len(f.node.operands[1].dims))
        case Slice(axis=axis, start=start, stop=stop, step=step):
            size = f.node.operands[0].dims[axis]
            assert isinstance(size, int)
            return _gather(m, f, factors, axis, torch.arange(size)[start:stop:step], 1)
        case Unslice(axis=axis, start=start, stop=stop, step=step, size=size):
            index = torch.full((size,), -1)
            index[start:stop:step] = torch.arange(len(range(size)[start:stop:step]))
            return _gather(m, f, factors, axis, index, 1)
        case Concat(axis=axis):
            return _concat(m, f, factors, axis)
        case Scatter(axis=axis):
            return _scatter(m, f, factors, axis)
    raise AssertionError(op)


def _replace(factors: Sequence[Factor], old: Factor, *new: Factor) -> tuple[Factor, ...]:
    at = next(i for i, f in enumerate(factors) if f is old)
    return (*factors[:at], *new, *factors[at + 1 :])


def _factor(f: Factor, node: Node, labels: Sequence[Label | None]) -> Factor:
    return f.on(node, labels)


def _by_axis(dims: Dims, labels: Labels) -> list[Label | None]:
    """Labels by axis, the width axis included (None)."""
    finite = iter(labels)
    return [None if isinstance(d, Width) else next(finite) for d in dims]


def _finite(dims: Dims, by_axis: Sequence[Label | None]) -> Labels:
    return tuple(x for d, x in zip(dims, by_axis, strict=True) if not isinstance(d, Width))


def permuted(f: Factor) -> Factor:
    """The operand of a permutation under its own labels."""
    assert isinstance(f.node.op, Permute)
    (x,) = f.node.operands
    by_axis = _by_axis(f.node.dims, f.labels)
    own: list[Label | None] = [None] * len(by_axis)
    for place, source in enumerate(f.node.op.order):
        own[source] = by_axis[place]
    return _factor(f, x, _finite(x.dims, own))


def squeezed(f: Factor) -> Factor | None:
    """The operand of a view that only adds or drops axes of length 1."""
    (x,) = f.node.operands
    if [d for d in x.dims if d != 1] != [d for d in f.node.dims if d != 1]:
        return None
    named = iter(y for y in f.labels if y is not None)
    return _factor(f, x, [None if d == 1 else next(named) for d in x.dims if not isinstance(d, Width)])


def block(f: Factor) -> Factor:
    """The operand of a split width, at the block that the new axis names."""
    op = f.node.op
    assert isinstance(op, SplitWidth)
    (x,) = f.node.operands
    by_axis = _by_axis(f.node.dims, f.labels)
    at = by_axis.pop(op.axis + op.inner)
    assert at is not None
    inner = f.on(x, _finite(x.dims, by_axis))
    return replace(inner, blocks=(*f.blocks, at))


# views -------------------------------------------------------------------------------------


def _view(m: Moments, f: Factor, factors: Sequence[Factor]) -> Poly:
    """Groups of axes that a view turns into each other: one to one is a new name, others are derived."""
    (x,) = f.node.operands
    outer = _by_axis(f.node.dims, f.labels)
    groups = view_groups(x.dims, f.node.dims)
    derived: dict[tuple[int, ...], list[Label | None]] = {}
    moves: list[tuple[tuple[Label, ...], tuple[Label, ...]]] = []
    for ins, outs in groups:
        own = [outer[j] for j in outs if outer[j] is not None]
        sizes = [x.dims[i] for i in ins]
        real = [s for s in sizes if s != 1]
        if len(real) == len(own) == 1:
            derived[ins] = [None if s == 1 else own[0] for s in sizes]
            continue
        derived[ins] = [None if s == 1 else m.label(s) for s in sizes if isinstance(s, int)]
        if own:
            moves.append((tuple(y for y in derived[ins] if y is not None), tuple(y for y in own if y is not None)))

    def under(g: Factor) -> Factor:
        inner: list[Label | None] = [None] * len(x.dims)
        for ins, _ in groups:
            for i, label in zip(ins, derived[ins], strict=True):
                inner[i] = label
        source = g.node.operands[0]
        return _factor(g, source, _finite(source.dims, inner))

    def peer(g: Factor) -> bool:
        return g.node.op == f.node.op and g.labels == f.labels and g.node.operands[0].dims == x.dims

    inner = tuple(under(g) if g is f or peer(g) else g for g in factors)
    poly = m.compact(inner, [x for ins, _ in moves for x in ins])
    for ins, outs in moves:
        poly = tuple(_reshaped(m, term, ins, outs) for term in poly)
    return poly


def view_groups(before: Dims, after: Dims) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Smallest groups of finite axes of equal length that a view turns into each other."""
    groups = []
    i = j = 0
    while i < len(before) or j < len(after):
        if i < len(before) and j < len(after) and isinstance(before[i], Width) and isinstance(after[j], Width):
            i, j = i + 1, j + 1
            continue
        ins: list[int] = []
        outs: list[int] = []
        left = right = 1
        while True:
            can_left = i < len(before) and not isinstance(before[i], Width)
            can_right = j < len(after) and not isinstance(after[j], Width)
            if left <= right and can_left and (left < right or not ins):
                left *= int(str(before[i]))
                ins.append(i)
                i += 1
            elif can_right and (right < left or not outs):
                right *= int(str(after[j]))
                outs.append(j)
                j += 1
            elif can_left and left < right:
                left *= int(str(before[i]))
                ins.append(i)
                i += 1
            else:
                break
        groups.append((tuple(ins), tuple(outs)))
    return groups


def _reshaped(m: Moments, term: Term, ins: tuple[Label, ...], outs: tuple[Label, ...]) -> Term:
    """A term over the labels ``ins`` read back at the labels ``outs``, of which they are another view."""
    uses = list(term.uses)
    deltas = []
    for a, b in term.deltas:
        if a in ins or b in ins:
            uses.append((EyeArray((m.lengths[a], m.lengths[b])), (a, b)))
        else:
            deltas.append((a, b))
    new: list[Use] = []
    for array, labels in uses:
        if not set(labels) & set(ins):
            new.append((array, labels))
            continue
        others = tuple(x for x in labels if x not in ins)
        ordered = m.sum((Term(1.0, ((array, labels),)),), (*others, *ins))
        full = tuple(m.lengths[x] for x in ins)
        sizes = (*ordered.sizes[: len(others)], *(m.lengths[x] for x in outs))
        new.append(_distinct(m, ReshapeArray(sizes, ordered, full), (*others, *outs)))
    return Term(term.coefficient, tuple(new), tuple(deltas))


# gathers -----------------------------------------------------------------------------------


def _gather(m: Moments, f: Factor, factors: Sequence[Factor], axis: int, index: Index, rank: int) -> Poly:
    """An axis read at the places of an index."""
    x = f.node.operands[0]
    size = x.dims[axis]
    assert isinstance(size, int)
    outer = _by_axis(f.node.dims, f.labels)
    places = tuple(y for y in outer[axis : axis + rank] if y is not None)
    derived = None if size == 1 else m.label(size)
    varies = isinstance(index, Node) and m.varies(index)

    def under(g: Factor) -> Factor:
        own = _by_axis(g.node.dims, g.labels)
        source = g.node.operands[0]
        return _factor(g, source, _finite(source.dims, [*own[:axis], derived, *own[axis + rank :]]))

    def peer(g: Factor) -> bool:
        own = _by_axis(g.node.dims, g.labels)
        return (
            g.node.op == f.node.op
            and g.node.operands[1:] == f.node.operands[1:]
            and tuple(y for y in own[axis : axis + rank] if y is not None) == places
            and g.node.operands[0].dims[axis] == size
            and (g.copy == f.copy or not varies)
        )

    inner = tuple(under(g) if g is f or peer(g) else g for g in factors)
    poly = m.compact(inner, () if derived is None else (derived,))
    return tuple(_read(m, term, derived, places, index, f.copy) for term in poly)


def _read(m: Moments, term: Term, derived: Label | None, places: tuple[Label, ...], index: Index, copy: int) -> Term:
    """A term over the label ``derived`` read at the index, whose axes have the labels ``places``."""
    sizes = tuple(m.lengths[x] for x in places)
    uses: list[Use] = []
    masked = False
    for array, labels in term.uses:
        if derived is None or derived not in labels:
            uses.append((array, labels))
            continue
        at = labels.index(derived)
        full = (*array.sizes[:at], *sizes, *array.sizes[at + 1 :])
        read = GatherArray(full, array, at, index, copy)
        uses.append(_distinct(m, read, (*labels[:at], *places, *labels[at + 1 :])))
        masked = True
    deltas = []
    for a, b in term.deltas:
        if derived is not None and derived in (a, b):
            other = b if a == derived else a
            uses.append((OneHotArray((*sizes, m.lengths[other]), index, copy), (*places, other)))
            masked = True
        else:
            deltas.append((a, b))
    if not masked and _may_drop(m, index):
        one = m.sum((Term(1.0),), (m.label(1),))
        uses.append((GatherArray(sizes, one, 0, _sign(index), copy), places))
    return Term(term.coefficient, tuple(uses), tuple(deltas))


def _distinct(m: Moments, array: Array, labels: tuple[Label, ...]) -> Use:
    """An array whose equal labels are replaced by one: its diagonal."""
    once = tuple(dict.fromkeys(labels))
    return (array, labels) if once == labels else (m.sum((Term(1.0, ((array, labels),)),), once), once)


def _may_drop(m: Moments, index: Index) -> bool:
    if isinstance(index, torch.Tensor):
        return bool((index < 0).any())
    value = m.constant(index)
    return value is None or bool((value < 0).any())


def _sign(index: Index) -> Index:
    """The same places in an axis of length one."""
    return index.clamp(max=0) if isinstance(index, torch.Tensor) else index


def _concat(m: Moments, f: Factor, factors: Sequence[Factor], axis: int) -> Poly:
    """A sum over the operands, each put at its place among zeros."""
    outer = _by_axis(f.node.dims, f.labels)
    total = f.node.dims[axis]
    assert isinstance(total, int)
    out: Poly = ()
    start = 0
    for x in f.node.operands:
        size = x.dims[axis]
        assert isinstance(size, int)
        index = torch.full((total,), -1)
        index[start : start + size] = torch.arange(size)
        start += size
        derived = None if size == 1 else m.label(size)
        inner = _factor(f, x, _finite(x.dims, [*outer[:axis], derived, *outer[axis + 1 :]]))
        places = tuple(y for y in outer[axis : axis + 1] if y is not None)
        read: Callable[[Term], Term] = lambda t, d=derived, p=places, i=index: _read(m, t, d, p, i, f.copy)
        out += tuple(read(term) for term in m.moment(_replace(factors, f, inner)))
    return out


def _scatter(m: Moments, f: Factor, factors: Sequence[Factor], axis: int) -> Poly:
    """A sum over the index's axes of entries times one where the index is the place."""
    assert isinstance(f.node.op, Scatter)
    x, index = f.node.operands
    outer = _by_axis(f.node.dims, f.labels)
    sizes = [d for d in index.dims if isinstance(d, int)]
    places = [None if s == 1 else m.label(s) for s in sizes]
    inner = _factor(f, x, _finite(x.dims, [*outer[:axis], *places, *outer[axis + 1 :]]))
    poly = m.moment(_replace(factors, f, inner))
    if outer[axis] is None:
        return poly
    named = tuple(y for y in places if y is not None)
    target = outer[axis]
    assert target is not None
    onehot = OneHotArray((*(m.lengths[y] for y in named), f.node.op.size), index, f.copy)
    own = Term(1.0, ((onehot, (*named, target)),))
    return tuple(own * term for term in poly)
