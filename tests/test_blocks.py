"""Zeros of moments block by block: different parts of one product are orthogonal, equal ones are not."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import nn
from zoo_attention import root_cases

import tpcompile as tp
from tpcompile.analysis import blocks
from tpcompile.ir import Builder, Init, Map, MatMul, MergeWidth, Mul, Node, Slice, SplitWidth, Sum, Unslice, View, Width
from tpcompile.laws import Normal, Uniform
from tpcompile.parametrization.changes import Run
from tpcompile.parametrization.measure import Measurement

N = Width()


class Made:
    """Parts of products with one initial matrix of 3n rows."""

    def __init__(self, inner: bool = False) -> None:
        self.b = Builder()
        self.inner = inner
        self.x = self.b.node(Init("x", Normal(1.0), (2, N)))
        self.w = self.b.node(Init("w", Normal(1.0), (Width(Fraction(3)), N)))
        self.wx = self.b.node(MatMul(False), self.w, self.x)

    def part(self, node: Node, i: int) -> Node:
        apart = self.b.node(SplitWidth(1, 3, self.inner), node)
        one = self.b.node(Slice(2 if self.inner else 1, i, i + 1, 1), apart)
        return self.b.node(View((2, N)), one)

    def put(self, node: Node, i: int) -> Node:
        one = self.b.node(View((2, N, 1) if self.inner else (2, 1, N)), node)
        return self.b.node(Unslice(2 if self.inner else 1, i, i + 1, 1, 3), one)

    def merged(self, *nodes: Node) -> Node:
        total = self.b.node(Sum((1.0,) * len(nodes)), *(self.put(x, i) for i, x in enumerate(nodes)))
        return self.b.node(MergeWidth(1, self.inner), total)

    def map(self, fn: str, node: Node) -> Node:
        return self.b.node(Map(fn), node)


def zero(*nodes: Node, local: bool = False) -> bool:
    spec = ",".join(c + "w" for c in "abcd"[: len(nodes)]) + "->" + "abcd"[: len(nodes)]
    return blocks.vanishes(spec, nodes, local)


@pytest.mark.parametrize("local", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_parts_of_a_product(inner, local):
    m = Made(inner)
    q, k, v = (m.part(m.wx, i) for i in range(3))
    assert zero(q, k, local=local)
    assert not zero(q, q, local=local)
    assert zero(m.map("relu", q), k, local=local)
    assert not zero(m.map("relu", q), m.map("relu", k), local=local)
    assert zero(m.map("tanh", q), m.map("tanh", k), local=local)
    assert zero(m.b.node(Mul(), q, k), v, local=local)
    assert not zero(m.b.node(Mul(), q, k), m.b.node(Mul(), q, k), local=local)
    both = m.b.node(Sum((1.0, 1.0)), q, k)
    assert not zero(both, k, local=local)
    assert zero(both, v, local=local)


@pytest.mark.parametrize("inner", [False, True])
def test_whole_vectors_meet_their_parts(inner):
    """A sum over the whole axis has the part in it, wherever it was put."""
    m = Made(inner)
    q, k, v = (m.part(m.wx, i) for i in range(3))
    assert not zero(m.merged(q, k, v), m.wx)
    assert not zero(m.merged(q, q, v), m.wx)
    assert zero(m.merged(k, v, q), m.wx)  # every block meets another
    back = m.b.node(MatMul(True), m.w, m.merged(q, k, v))
    assert not zero(m.part(m.b.node(MatMul(False), m.w, back), 0), q)


def test_back_through_the_matrix_nothing_is_claimed_that_mixes_blocks():
    m = Made()
    q, k, v = (m.part(m.wx, i) for i in range(3))
    swapped = m.b.node(MatMul(True), m.w, m.merged(k, q, v))
    again = m.b.node(MatMul(False), m.w, swapped)  # its response in block 0 is k
    assert not zero(m.part(again, 0), k)
    assert not zero(m.part(again, 0), k, local=True)


def test_parts_of_a_bias_need_a_symmetric_law():
    for law, expected in ((Normal(1.0), True), (Uniform(-1.0, 1.0), True), (Normal(1.0, 0.5), False)):
        m = Made()
        bias = m.b.node(Init("b", law, (2, Width(Fraction(3)))))
        a, b = m.part(bias, 0), m.part(bias, 1)
        assert zero(a, b) is expected
        assert not zero(a, a)
        q, k = (m.b.node(Sum((1.0, 1.0)), m.part(m.wx, i), y) for i, y in ((0, a), (1, b)))
        assert zero(q, k) is expected  # summand by summand


ROOTS = root_cases()


@pytest.mark.parametrize("name", ROOTS)
def test_logits_over_the_root_of_the_head_size_are_gaussian_at_initialisation(name):
    case = ROOTS[name]
    program = tp.compile(case.make, case.inputs).program
    assert any(node.op.mnemonic == "gaussian" for node in program.nodes)


def test_fused_and_separate_projections_have_the_same_limit():
    found = []
    for name in ("two heads", "fused"):
        result = tp.compile(ROOTS[name].make, ROOTS[name].inputs).evaluate(particles=1024, replicas=4, ensemble=256)
        found.append(result.feature_kernel("attention.out")[0])
    assert float((found[0] - found[1]).abs().max()) < 0.03 * float(found[0].abs().max())


def test_rows_that_another_value_has_are_not_apart():
    m = Made()
    q, k, v = (m.part(m.wx, i) for i in range(3))
    support = blocks.Support()
    w = frozenset(["w"])
    assert support.apart(w, (q,), (k,))
    assert not support.apart(w, (q,), (q,))
    assert not support.apart(w, (m.b.node(Sum((1.0, 1.0)), q, k),), (k,))
    assert support.apart(w, (m.b.node(Sum((1.0, 1.0)), q, v),), (k,))
    assert not support.apart(w, (q,), (m.b.node(Sum((1.0, 1.0)), k, v), m.map("relu", k)))
    assert not support.apart(w, (q,), (m.map("relu", k),))
    assert not support.apart(w, (m.x,), (k,))  # shows no rows of w at all


class Fused(nn.Module):
    """A stream with attention of one head, its three projections one matrix or three."""

    def __init__(self, width: int, layers: int, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        self.first = nn.Linear(3, width)
        shapes = [3 * width] if fused else [width] * 3
        self.maps = nn.ModuleList(nn.Linear(width, s) for _ in range(layers) for s in shapes)

    def forward(self, x):
        x = self.first(x)
        each = 1 if self.fused else 3
        for i in range(0, len(self.maps), each):
            maps = list(self.maps)[i : i + each]
            if self.fused:
                q, k, v = maps[0](x).chunk(3, dim=-1)
            else:
                q, k, v = (f(x) for f in maps)
            x = x + torch.softmax(q @ k.mT / x.shape[-1] ** 0.5, -1) @ v
        return x


def test_remainders_of_fused_projections_add_up_as_those_of_separate_ones():
    """Queries and keys of many layers: whatever a query leaves out is no multiple of a key's rows."""

    def undecided(fused: bool) -> int:
        def make(width: int) -> object:
            model = Fused(width, 4, fused)
            return model, torch.optim.SGD(model.parameters(), lr=1.0 / width)

        run = Run(make, torch.randn(1, 3, 3), torch.zeros(1), lambda y, t: y.mean(), None, steps=1)
        sizes = Measurement(run.capture()).sizes(Fraction(1, 2))
        assert sizes["product", "3", 0].exponent == 0
        here = (size for (quantity, _, t), size in sizes.found.items() if (quantity, t) == ("product", 0))
        return sum(not size.exact for size in here)

    assert undecided(True) == undecided(False) == 0
