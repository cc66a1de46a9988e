"""Zeros and equalities of moments by exchanges of parameters of one law, against finite programs."""

from __future__ import annotations

import random

import pytest
import torch
from test_parity import N, simulated

from tpcompile.analysis.blocks import Support
from tpcompile.analysis.exchange import Exchange
from tpcompile.analysis.parity import Parity
from tpcompile.ir import Builder, Contract, Init, Map, MatMul, Mul, Node, Sum
from tpcompile.laws import Law, Normal, Uniform

NORMAL = Normal(1.0)


class Made:
    """Programs on three initial vectors of one law and two matrices of one law."""

    def __init__(self, law: Law = NORMAL) -> None:
        self.b = Builder()
        self.vectors = [self.b.node(Init(f"v{i}", law, (N,))) for i in range(3)]
        self.matrices = [self.b.node(Init(f"w{i}", Normal(1.0), (N, N))) for i in range(2)]

    def map(self, fn: str, x: Node) -> Node:
        return self.b.node(Map(fn), x)

    def mm(self, w: Node, x: Node, transpose: bool = False) -> Node:
        return self.b.node(MatMul(transpose), w, x)

    def mul(self, *x: Node) -> Node:
        return self.b.node(Mul(), *sorted(x, key=lambda y: y.serial))

    def sum(self, *items: tuple[float, Node]) -> Node:
        items = tuple(sorted(items, key=lambda item: item[1].serial))
        return self.b.node(Sum(tuple(c for c, _ in items)), *(x for _, x in items))

    def exchange(self) -> Exchange:
        return Exchange(Parity(), Support(), self.b.data)


def test_a_difference_of_twins_is_zero():
    m = Made()
    a, b, c = (m.map("relu", x) for x in m.vectors)
    twins = m.sum((1.0, a), (-1.0, b))
    assert m.exchange().vanishes([twins])
    assert m.exchange().vanishes([twins, c])
    assert not m.exchange().vanishes([twins, a])
    assert not m.exchange().vanishes([twins, twins])
    assert not m.exchange().vanishes([m.sum((1.0, a), (-0.9, b))])
    assert not m.exchange().vanishes([m.sum((1.0, a), (-1.0, m.map("gelu", m.vectors[1])))])


def test_one_less_the_mean_of_all_is_zero():
    """No single exchange turns it into its negative: its summands have equal means."""
    m = Made()
    a, b, c = (m.map("relu", x) for x in m.vectors)
    assert m.exchange().vanishes([m.sum((1.0, a), (-0.5, b), (-0.5, c))])
    assert not m.exchange().vanishes([m.sum((1.0, a), (-0.5, b), (-0.4, c))])


@pytest.mark.parametrize(("fn", "zero"), [("tanh", True), ("relu", False)])
def test_functions_of_a_difference_of_twins(fn, zero):
    m = Made()
    a, b = (m.map("relu", x) for x in m.vectors[:2])
    assert m.exchange().vanishes([m.map(fn, m.sum((1.0, a), (-1.0, b)))]) is zero


def test_an_exchange_together_with_a_change_of_sign():
    """x is odd under the exchange of the two, and W x with it: relu(W x) stays if W changes its sign too."""
    m = Made()
    a, b = (m.map("relu", x) for x in m.vectors[:2])
    x = m.sum((1.0, a), (-1.0, b))
    assert m.exchange().vanishes([x, m.map("relu", m.mm(m.matrices[0], x))])
    assert not m.exchange().vanishes([m.map("relu", m.mm(m.matrices[0], x))])


def test_laws_that_are_not_symmetric_may_be_exchanged_and_keep_their_sign():
    m = Made(Uniform(0.0, 1.0))
    a, b, c = m.vectors
    assert m.exchange().vanishes([m.sum((1.0, a), (-1.0, b))])
    assert not m.exchange().vanishes([m.sum((1.0, a), (1.0, b))])
    assert not m.exchange().vanishes([m.mul(a, b, c)])


def test_other_laws_are_not_exchanged():
    m = Made()
    other = m.b.node(Init("other", Normal(2.0), (N,)))
    assert not m.exchange().vanishes([m.sum((1.0, m.map("relu", m.vectors[0])), (-1.0, m.map("relu", other)))])


def test_equal_moments_have_one_representative():
    m = Made()
    a, b, _ = m.vectors
    hidden = [m.map("relu", m.mm(w, m.map("tanh", x))) for w, x in zip(m.matrices, (a, b), strict=True)]
    first, second = (m.b.node(Contract("a,a->"), m.map("relu", x), h) for x, h in zip((a, b), hidden, strict=True))
    crossed = m.b.node(Contract("a,a->"), *sorted((m.map("relu", b), hidden[0]), key=lambda x: x.serial))
    exchange = m.exchange()
    assert exchange.representative(first) == (1.0, first)
    assert exchange.representative(second) == (1.0, first)
    assert exchange.representative(crossed) == (1.0, crossed)  # relu(b) is independent of the other factor


def random_program(seed: int) -> tuple[Made, list[Node]]:
    """Factors of a moment in which twins, made alike of exchangeable vectors, are subtracted and used on."""
    chance = random.Random(seed)
    m = Made()
    a, b, c = m.vectors
    w, w2 = m.matrices

    def branch(x: Node, matrix: Node, plan: list[str]) -> Node:
        for fn in plan:
            x = m.map(fn, x) if fn != "mm" else m.mm(matrix, x)
        return x

    plan = [chance.choice(["relu", "tanh", "mm", "gelu"]) for _ in range(chance.randint(1, 3))]
    second = chance.choice([w, w2])
    left, right = branch(a, w, plan), branch(b, second, plan)
    pool = [c, left, right, m.sum((1.0, left), (chance.choice([-1.0, -1.0, 1.0, -0.5]), right))]
    for _ in range(chance.randint(1, 4)):
        x, y = pool[-1], chance.choice(pool)
        match chance.choice(["map", "mm", "mul", "sum"]):
            case "map":
                x = m.map(chance.choice(["tanh", "relu", "sin", "cos"]), x)
            case "mm":
                x = m.mm(chance.choice([w, w2]), x, chance.random() < 0.3)
            case "mul":
                x = m.mul(x, y)
            case _:
                x = m.sum((1.0, x), (chance.choice([1.0, -1.0]), y)) if x is not y else x
        pool.append(x)
    return m, [pool[-1], chance.choice([c, left, pool[3], m.map("relu", c)])]


def refuted(seed: int, width: int = 400, draws: int = 24) -> str:
    """What finite programs have against a zero, and against a representative of another moment; "" if nothing."""
    m, factors = random_program(seed)
    exchange = m.exchange()
    zero = Parity().vanishes(*factors) or exchange.vanishes(factors)

    def measured(nodes: list[Node]) -> tuple[float, float, float]:
        means, sizes = torch.tensor(
            [simulated(nodes, width, 1000 * seed + i) for i in range(draws)], dtype=torch.float64
        ).T
        return float(means.mean()), float(means.std() / draws**0.5), float(sizes.mean())

    mean, error, size = measured(factors)
    if zero:
        return f"zero, but {mean} with error {error}" if abs(mean) > 5 * error + 5 * size / width else ""
    if abs(mean) < 4 * error and abs(mean) < 0.02 * size:
        return f"not zero, but nothing to be seen: {mean} with error {error}"
    return ""


@pytest.mark.parametrize("seed", range(30))
def test_zeros_of_random_programs_with_twins(seed):
    assert not refuted(seed), random_program(seed)[1]


SMALL = frozenset({288, 417})  # means of -0.5 and -1.3 % of their size, by 6,000 more draws: not zero, rightly
MISSED = frozenset({75, 165, 263, 321, 462})  # zero as far as draws tell, and not found: an exponent too large at worst


@pytest.mark.slow
@pytest.mark.parametrize("start", range(30, 530, 50))
def test_zeros_of_many_random_programs_with_twins(start):
    """No zero is claimed that simulations refute; of 500 programs five have a zero that is not found."""
    found = {seed: text for seed in range(start, start + 50) if (text := refuted(seed))}
    assert not {seed: text for seed, text in found.items() if text.startswith("zero")}
    assert set(found) <= SMALL | MISSED
