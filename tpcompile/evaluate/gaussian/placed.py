"""Numbers of a program that only stand elsewhere: entries of other numbers padded, cut, laid out in windows.

They are found by moving the coordinates of the entries in place of the entries, so that any chain of such instructions
is one read.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from tpcompile.analysis.semantics import execute
from tpcompile.evaluate.gaussian.reads import Place
from tpcompile.ir import Expand, Finite, Gather, Node, Permute, Slice, Unslice, View, Width

_MOVES = (View, Permute, Slice, Unslice, Gather, Expand)
_PADDING = "aten.constant_pad_nd.default"


def moved(node: Node, constant: Callable[[Node], Tensor | None]) -> tuple[Node, list[Place]] | None:
    """The numbers whose entries these are, and where each of their axes is read (-1: zero), over the node's axes.

    Axes of length one count on neither side. ``constant`` gives the value of a number that does not depend on the
    inputs. None where it is no move, or one whose zeros do not come axis by axis.
    """
    chain, source = [], node
    while _moves(source):
        others = [constant(x) for x in source.operands[1:]]
        if any(x is None for x in others):
            break
        chain.append((source, [x for x in others if x is not None]))
        source = source.operands[0]
    if not chain:
        return None
    lengths = [d for d in source.dims if isinstance(d, int)]
    found: list[Tensor] = []
    axes = [i for i, size in enumerate(lengths) if size > 1] or [0]
    for axis in axes[: len(lengths)]:
        size = lengths[axis]
        at = torch.arange(1, size + 1, dtype=torch.float64)
        value = at.reshape([-1 if i == axis else 1 for i in range(len(lengths))]).expand(lengths)
        for x, others in reversed(chain):
            value = execute(x.op, [value, *others], x.dims, _no_width, torch.float64)
        found.append(value.reshape([d for d in value.shape if d != 1]).long() - 1)
    places = [_alone(index) for index in found]
    return (source, places) if found and _exact(found, places) else None


def _moves(node: Node) -> bool:
    op = node.op
    if node.kind != "scalar" or not node.operands:
        return False
    if isinstance(op, Finite):  # zero is the value that padding has without an argument
        return op.target == _PADDING and not op.kwargs and (len(op.args) < 3 or op.args[2] == 0)
    return isinstance(op, _MOVES)


def _alone(index: Tensor) -> Place:
    """Without axes along which it changes only to -1 and back: the zeros of other axes."""
    labels = list(range(index.dim()))
    for d in reversed(range(index.dim())):
        most = index.amax(d, keepdim=True)
        if bool(((index == most) | (index < 0)).all()):
            index = most.squeeze(d)
            del labels[d]
    return index, tuple(labels)


def _exact(found: Sequence[Tensor], places: Sequence[Place]) -> bool:
    """True if the axes' places together are what was found."""
    shape, inside = found[0].shape, torch.ones((), dtype=torch.bool)
    spread = []
    for index, where in places:
        index = index.reshape([n if d in where else 1 for d, n in enumerate(shape)])
        spread.append(index)
        inside = inside & (index >= 0)
    return all(
        bool((torch.where(inside, index, -1) == whole).all()) for index, whole in zip(spread, found, strict=True)
    )


def _no_width(width: Width) -> int:
    raise AssertionError(width)
