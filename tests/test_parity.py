"""Signs of moments: the algebra of flips against all flips one by one, zeros against finite networks."""

from __future__ import annotations

import itertools
import random
from functools import reduce

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tpcompile import nonlin
from tpcompile.analysis.flips import COLUMNS, ROWS, Signature, Space, averaged, joined, spanned
from tpcompile.analysis.parity import Parity
from tpcompile.ir import Builder, Contract, Init, Map, MatMul, Mul, Node, Outer, Sum, View, Width
from tpcompile.laws import Normal, Uniform

N = Width()
characters = st.integers(0, 31)


def sign(character: int, flip: int) -> int:
    return -1 if (character & flip).bit_count() % 2 else 1


def members(space: Space) -> set[int]:
    units = [1 << i for i in range(space.units.bit_length()) if space.units >> i & 1]
    basis = [*units, *space.sums]
    chosen = itertools.product((0, 1), repeat=len(basis))
    return {reduce(lambda a, b: a ^ b, (x for x, c in zip(basis, cs, strict=True) if c), 0) for cs in chosen}


@given(characters, st.lists(characters, max_size=4))
def test_a_space_is_the_span_and_has_one_form(units, xs):
    space = spanned(units, *xs)
    all_ = {0}
    for x in [*(1 << i for i in range(5) if units >> i & 1), *xs]:
        all_ |= {x ^ y for y in all_}
    assert members(space) == all_
    assert spanned(0, *sorted(all_, reverse=True)) == space
    for x in range(32):
        assert (space.reduced(x) == 0) == (x in all_)
        assert space.reduced(x) ^ x in all_


@given(st.lists(st.tuples(characters, st.lists(characters, max_size=2)), min_size=1, max_size=3))
def test_a_sum_keeps_the_flips_under_which_all_summands_change_alike(parts):
    whole = joined([Signature(spanned(0, *m).reduced(odd), spanned(0, *m)) for odd, m in parts])
    for flip in range(16):  # of parameters: the upper half is another kind
        signs = {sign(odd & 15, flip) for odd, _ in parts}
        known = all(sign(x & 15, flip) == 1 for _, m in parts for x in m)
        if all(sign(x & 15, flip) == 1 for x in members(whole.mixed)):
            assert known
            assert signs == {sign(whole.odd, flip)}


@settings(max_examples=200)
@given(st.integers(0, 255), st.lists(st.integers(0, 255), max_size=3))
def test_a_mean_over_one_axis_keeps_what_the_other_can_complete(odd, mixed):
    """Two names; flips of rows and of columns, all of them tried."""

    def spread(x: int) -> int:  # the eight bits to the rows and columns of both halves of two names
        places = (ROWS & 15, COLUMNS & 15, ROWS & 240, COLUMNS & 240)
        return sum(places[i % 4] << 8 * (i // 4) for i in range(8) if x >> i & 1)

    odd, mixed = spread(odd), [spread(x) for x in mixed]
    space = spanned(0, *mixed)
    left = averaged(Signature(space.reduced(odd), space), COLUMNS)
    rows = [spread(x) for x in range(256) if x & 0b10101010 == 0]
    columns = [spread(x) for x in range(256) if x & 0b01010101 == 0]
    zero = any(sign(odd, c) == -1 for c in columns if all(sign(x, c) == 1 for x in mixed))
    for r in rows:
        completed = {sign(odd, r | c) for c in columns if all(sign(x, r | c) == 1 for x in mixed)}
        kept = all(sign(x, r) == 1 for x in members(left.mixed))
        if zero:
            assert not kept or all(sign(x, r) == 1 for x in mixed)
        else:
            assert kept == bool(completed)
        if kept:
            assert sign(left.odd, r) in completed


class Made:
    """Programs on two initial vectors and two initial matrices."""

    def __init__(self) -> None:
        self.b = Builder()
        self.u = self.b.node(Init("u", Normal(1.0), (N,)))
        self.v = self.b.node(Init("v", Uniform(-1.0, 1.0), (N,)))
        self.w = self.b.node(Init("w", Normal(1.0), (N, N)))
        self.w2 = self.b.node(Init("w2", Normal(1.0), (N, N)))

    def map(self, fn: str, x: Node) -> Node:
        return self.b.node(Map(fn), x)

    def mm(self, w: Node, x: Node, transpose: bool = False) -> Node:
        return self.b.node(MatMul(transpose), w, x)

    def mul(self, *x: Node) -> Node:
        return self.b.node(Mul(), *x)

    def sum(self, *x: Node) -> Node:
        return self.b.node(Sum(tuple(1.0 + 0.3 * i for i in range(len(x)))), *x)


def test_flips_of_two_parameters_together():
    m = Made()
    h = m.map("tanh", m.u)
    assert Parity().vanishes(h, m.map("relu", m.mm(m.w, h)))
    assert Parity().centred(h, m.map("relu", m.mm(m.w, h)))
    # only together: the Gaussians of one matrix with a vector and with another one that is orthogonal to it
    a, b = m.mm(m.w, m.u), m.mm(m.w, m.mul(m.u, m.v))
    assert Parity().vanishes(a, m.map("relu", b))
    assert not Parity().centred(a, m.map("relu", b))
    assert not Parity().vanishes(a, m.map("relu", a))


def test_factors_of_independent_generators():
    """The mean of h · relu(W g) is that of h times that of relu(W g), whatever g is."""
    m = Made()
    h, g = m.map("tanh", m.u), m.map("relu", m.u)
    assert Parity().vanishes(h, m.map("relu", m.mm(m.w, g)))
    assert not Parity().vanishes(g, m.map("relu", m.mm(m.w, g)))


def test_the_response_to_the_transposed_matrix_is_seen():
    m = Made()
    back = m.mm(m.w, m.v, True)
    again = m.mm(m.w, back)
    assert not Parity().vanishes(again, m.v)
    assert not Parity().vanishes(m.mm(m.w, m.map("tanh", back)), m.v)
    assert Parity().vanishes(m.mm(m.w, m.map("square", back)), m.v)
    assert Parity().vanishes(again, m.u)
    assert not Parity().vanishes(m.mm(m.w, m.map("relu", back)), m.map("relu", m.v))


def test_a_mean_over_pairs_is_odd_where_flips_of_both_axes_are():
    """relu(u_i v_j) changes sign under no flip of one axis alone; the mean of u relu(u v) over u is v E[u²] / 2."""
    m = Made()
    u, v = (m.b.node(View((1, N)), x) for x in (m.u, m.v))
    pairs = m.map("relu", m.b.node(Outer(), u, v))
    assert Parity().vanishing_axes("ij,i->j", [pairs, m.u]) == 0
    assert Parity().vanishing_axes("ij,i->", [pairs, m.u]) == 1
    left = m.b.node(Contract("ij,i->j"), pairs, m.u)
    assert Parity().vanishes(left, m.map("square", m.v))
    assert not Parity().vanishes(left, m.v)


def random_program(seed: int) -> tuple[Made, list[Node]]:
    """Factors of a moment: products and sums of maps of initial vectors and of products with matrices."""
    chance = random.Random(seed)
    m = Made()
    pool: list[Node] = [m.u, m.v]
    for _ in range(chance.randint(3, 8)):
        kind = chance.choice(["map", "map", "mm", "mm", "mul", "sum"])
        x, y = chance.choice(pool[-4:]), chance.choice(pool)
        match kind:
            case "map":
                x = m.map(chance.choice(["tanh", "relu", "cos", "sin"]), x)
            case "mm":
                x = m.mm(chance.choice([m.w, m.w2]), x, chance.random() < 0.5)
            case "mul":
                x = m.mul(x, y)
            case _:
                x = m.sum(x, y) if x is not y else x
        pool.append(x)
    return m, [pool[-1], chance.choice(pool)]


def simulated(factors: list[Node], width: int, seed: int) -> tuple[float, float]:
    """The mean over coordinates of the product of values in one finite program, and its root mean square."""
    generator = torch.Generator().manual_seed(seed)
    known: dict[Node, torch.Tensor] = {}

    def value(node: Node) -> torch.Tensor:
        if node in known:
            return known[node]
        op = node.op
        match op:
            case Init(law=Uniform()):
                out = 2 * torch.rand(width, generator=generator, dtype=torch.float64) - 1
            case Init():
                shape = (width,) * len(node.dims)
                out = torch.randn(shape, generator=generator, dtype=torch.float64) / width ** ((len(shape) - 1) / 2)
            case Map():
                out = nonlin.evaluate(op.fn, value(node.operands[0]), 0)
            case MatMul():
                w = value(node.operands[0])
                out = (w.T if op.transpose else w) @ value(node.operands[1])
            case Mul():
                out = torch.stack([value(x) for x in node.operands]).prod(0)
            case Sum(coefficients=c):
                out = torch.stack([a * value(x) for a, x in zip(c, node.operands, strict=True)]).sum(0)
            case _:
                raise AssertionError(op)
        known[node] = out
        return out

    psi = torch.stack([value(x) for x in factors]).prod(0)
    return float(psi.mean()), float(psi.square().mean().sqrt())


def refuted(seed: int, width: int = 400, draws: int = 24) -> str:
    """What finite programs have against the verdict of a seed; "" if nothing."""
    _, factors = random_program(seed)
    zero = Parity().vanishes(*factors)
    runs = [simulated(factors, width, 1000 * seed + i) for i in range(draws)]
    means, sizes = torch.tensor(runs, dtype=torch.float64).T
    error = float(means.std() / draws**0.5)
    size = float(sizes.mean())
    mean = abs(float(means.mean()))
    if zero and mean > 5 * error + 5 * size / width:
        return f"zero, but {mean} with error {error}"
    if not zero and mean < 4 * error and mean < 0.02 * size:
        return "not zero, but nothing to be seen"
    return ""


@pytest.mark.parametrize("seed", range(40))
def test_zeros_of_random_programs(seed):
    assert not refuted(seed), random_program(seed)


# Means that are not zero, but that these simulations cannot tell from it.
UNRESOLVED = {587: "the response has the factor E cos(2.3 s) E cos(1.69 W s) = 2e-4; the mean is 6e-4 of the size"}


@pytest.mark.slow
@pytest.mark.parametrize("start", range(40, 640, 50))
def test_zeros_of_many_random_programs(start):
    seeds = (seed for seed in range(start, start + 50) if seed not in UNRESOLVED)
    assert not {seed: found for seed in seeds if (found := refuted(seed))}
