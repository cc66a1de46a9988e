"""Views of values on pairs of coordinates: growing axes split and merged, no entry moved."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from tpcompile.analysis.semantics import execute
from tpcompile.ir import Builder, Init, Width
from tpcompile.laws import Normal
from tpcompile.lowering.axes import refactored
from tpcompile.lowering.nodes import Nodes


@pytest.mark.parametrize(
    ("have", "want"),
    [
        ((2, 6, 1, 4, 1), (1, 12, 1, 4, 1)),  # heads into the rows
        ((1, 12, 1, 4, 1), (3, 4, 1, 4, 1)),
        ((2, 6, 3, 4, 1), (1, 12, 1, 12, 1)),  # finite atoms between the axes belong to the columns ...
        ((1, 6, 6, 4, 1), (1, 12, 1, 12, 1)),  # ... or to both
        ((1, 12, 1, 4, 5), (3, 2, 2, 20, 1)),
        ((2, 6, 1, 4, 3), (3, 4, 1, 12, 1)),
    ],
)
def test_views_of_values_on_pairs_move_no_entry(have, want):
    """Lengths of finite, growing, finite, growing, finite axes before and behind the view, at n = 12."""

    def dims(sizes):
        return tuple(Width(Fraction(s, 12)) if i % 2 else s for i, s in enumerate(sizes))

    nodes = Nodes(Builder())
    start = nodes.builder.node(Init("x", Normal(1.0), dims(have)))
    node = refactored(nodes, start, dims(have), dims(want))
    assert node.dims == dims(want)
    x = torch.arange(math.prod(have), dtype=torch.float64).reshape(have)

    def value(y):
        if y is start:
            return x
        return execute(y.op, list(map(value, y.operands)), y.dims, lambda w: int(w.ratio * 12), torch.float64)

    assert torch.equal(value(node), x.reshape(want))
    assert torch.equal(value(refactored(nodes, node, dims(want), dims(have))), x)
