"""Buffers whose entries are a function of their place: progressions along an axis that grows with the width.

The frequencies of a rotary embedding, ``base ** (-arange(n) / n)``, are a buffer that no draw made. Read at all probe
widths, its entries are recognised as ``first + c * i / n`` or ``first * c ** (i / n)`` and become the calls on the
places ``i`` that compute them.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tpcompile.capture.align import Aligned
from tpcompile.capture.graph import GraphNode, Ref, Scaled, Size
from tpcompile.capture.powers import power_of
from tpcompile.capture.probe import Probe

_aten = torch.ops.aten
_ROUNDING = 1e-5  # of a progression in single precision, relative to its largest entry


def with_progressions(aligned: Aligned, probes: Sequence[Probe], given: Collection[str]) -> Aligned:
    """The graph with calls in place of buffers that are progressions; those of a ``given`` law stay as they are."""
    buffers = [dict(p.module.named_buffers()) for p in probes]
    nodes: dict[str, GraphNode] = {}
    for name, node in aligned.nodes.items():
        found = None
        if node.kind == "buffer" and node.target in buffers[0] and node.target not in given:
            found = _progression(node, [b[node.target] for b in buffers], [p.width for p in probes])
        nodes |= {name: node} if found is None else found
    return Aligned(nodes, aligned.outputs, aligned.rows)


def _progression(node: GraphNode, values: Sequence[Tensor], widths: Sequence[int]) -> dict[str, GraphNode] | None:
    if node.shape is None or len(node.shape) != 1 or node.shape[0].power != 1 or not values[0].is_floating_point():
        return None
    entries = [v.detach().double().numpy(force=True) for v in values]
    if min(map(len, entries)) < 2 or max(map(len, entries)) < 4 or not all(np.isfinite(x).all() for x in entries):
        return None
    linear = _line(entries, widths)
    if linear is not None:
        return _calls(node, [(_aten.mul.Tensor, linear[1]), (_aten.add.Tensor, linear[0])])
    if not all((x > 0).all() for x in entries):
        return None
    exponential = _line([np.log(x / x[0]) for x in entries], widths)
    first = power_of([float(x[0]) for x in entries], widths, _ROUNDING)
    if exponential is None or first is None:
        return None
    return _calls(node, [(_aten.mul.Tensor, exponential[1]), (_aten.exp.default, None), (_aten.mul.Tensor, first)])


def _line(entries: Sequence[np.ndarray], widths: Sequence[int]) -> tuple[Scaled, Scaled] | None:
    """First entry and step, as powers of the width."""
    steps = [float(x[-1] - x[0]) / (len(x) - 1) for x in entries]
    for x, step in zip(entries, steps, strict=True):
        if not step or not np.allclose(x, x[0] + step * np.arange(len(x)), rtol=0.0, atol=_ROUNDING * np.abs(x).max()):
            return None
    first = power_of([float(x[0]) for x in entries], widths, _ROUNDING)
    slope = power_of(steps, widths, _ROUNDING * math.sqrt(len(entries[0])))
    return None if first is None or slope is None else (first, slope)


def _calls(node: GraphNode, operations: Sequence[tuple[Any, Scaled | None]]) -> dict[str, GraphNode]:
    """The places, and operations with a number each, the last of which has the buffer's name."""
    assert node.shape is not None
    (size,) = node.shape
    made = [_call(node, f"{node.name}_places", _aten.arange.default, (_number(size),))]
    for i, (target, number) in enumerate(operations):
        args = (Ref(made[-1].name),) if number is None else (Ref(made[-1].name), _plain(number))
        made.append(_call(node, f"{node.name}_{i}", target, args))
    made[-1] = replace(made[-1], name=node.name)
    return {call.name: call for call in made}


def _call(node: GraphNode, name: str, target: Any, args: tuple[Any, ...]) -> GraphNode:
    return replace(node, name=name, kind="call", target=target, args=args, kwargs=())


def _number(size: Size) -> Scaled:
    return Scaled(float(size.coefficient), Fraction(size.power))


def _plain(number: Scaled) -> Scaled | float:
    return number if number.exponent else number.coefficient
