"""Zeros of moments block by block: different parts of one product are orthogonal, equal ones are not."""

from __future__ import annotations

from fractions import Fraction

import pytest
from zoo_attention import root_cases

import tpcompile as tp
from tpcompile.analysis import blocks
from tpcompile.ir import Builder, Init, Map, MatMul, MergeWidth, Mul, Node, Slice, SplitWidth, Sum, Unslice, View, Width
from tpcompile.laws import Normal, Uniform

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
