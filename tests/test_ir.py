"""The tensor program: hash-consing, text round trip, verifier, graph."""

from fractions import Fraction

import networkx as nx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from zoo import cases

import tpcompile as tp
from tpcompile.analysis.semantics import execute
from tpcompile.errors import ProgramError
from tpcompile.ir import (
    OPS,
    Builder,
    Concat,
    Const,
    Contract,
    Gather,
    Init,
    Map,
    MatMul,
    Mul,
    Output,
    Program,
    Scatter,
    Sum,
    View,
    Width,
    dims_text,
    finish,
    parse,
    parse_dims,
    verify,
)
from tpcompile.laws import Normal, Uniform

N = Width(Fraction(1))
CASES = cases()
CHOSEN = ["mup relu", "ntk", "standard", "nesterov", "tied", "cross entropy", "minibatches", "grouped", "widths", "elu"]
CHOSEN += ["indexing"]


def compiled(name):
    case = CASES.get(name) or CASES[f"mup {name}"]
    return tp.compile(case.make, case.inputs, case.targets, case.loss, None, case.steps, case.test_inputs)


@pytest.mark.parametrize("name", CHOSEN)
def test_text_reads_back_to_the_same_program(name):
    program = compiled(name).program
    verify(program)
    text = str(program)
    again = parse(text)
    verify(again)
    assert str(again) == text
    assert [(n.op, [program.names()[x] for x in n.operands]) for n in program] == [
        (n.op, [again.names()[x] for x in n.operands]) for n in again
    ]
    assert all(torch.equal(again.data[k], v) for k, v in program.data.items())
    assert {k: o.remainder for k, o in program.outputs.items()} == {k: o.remainder for k, o in again.outputs.items()}


def test_parsed_program_evaluates_to_the_same_bits():
    from tpcompile.evaluate.limit import Settings, estimate

    program = compiled("mup relu").program
    settings_ = Settings(particles=256, replicas=2)
    a, b = (estimate(p, settings_).mean for p in (program, parse(str(program))))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_equal_instructions_are_one_node():
    b = Builder()
    x = b.node(Init("x", Normal(1.0), (3, N)))
    assert b.node(Map("tanh"), x) is b.node(Map("tanh"), x)
    assert b.node(Map("tanh"), x) is not b.node(Map("tanh", 1), x)
    assert b.constant(torch.ones(2)) is b.constant(torch.ones(2), "other")


def test_operands_are_checked_when_a_node_is_made():
    b = Builder()
    w = b.node(Init("w", Normal(1.0), (Width(Fraction(2)), N)))
    x = b.node(Init("x", Normal(1.0), (3, N)))
    y = b.node(MatMul(False), w, x)
    assert y.dims == (3, Width(Fraction(2)))
    for op, operands in [
        (MatMul(True), (w, x)),
        (Mul(), (x, y)),
        (Sum((1.0,)), (x, x)),
        (Contract("ab,bc->ac"), (x, x)),
        (View((6,)), (x,)),
        (Concat(1), (x, x)),
        (MatMul(False), (w, w)),
    ]:
        with pytest.raises(ProgramError):
            b.node(op, *operands)


@pytest.mark.parametrize(
    "line",
    [
        "%0 = tanh %3 : [3]",
        "nonsense",
        "%0 = const<value=1.0> : [3]",
        "%1 = const<value=1.0> : []",
        "output x = n^0 %7 : []",
    ],
)
def test_bad_text_is_a_program_error_with_its_line(line):
    with pytest.raises(ProgramError, match="line 2"):
        parse("program\n" + line)


def test_verifier_finds_what_is_wrong():
    b = Builder()
    x = b.node(Init("x", Normal(1.0), (3, N)))
    y = b.node(Map("tanh"), x)
    out = {"y": Output(((Fraction(0), y),), None, y.dims)}
    verify(Program((x, y), out, {}))
    with pytest.raises(ProgramError, match="before"):
        verify(Program((y, x), out, {}))
    with pytest.raises(ProgramError, match="not a scalar or vector"):
        verify(Program((x,), out, {}))
    c = b.constant(torch.ones(2))
    with pytest.raises(ProgramError, match="missing"):
        verify(Program((c,), {}, {}))
    twin = Builder().node(Init("x", Uniform(-1, 1), (3, N)))
    with pytest.raises(ProgramError, match="two values are named"):
        verify(Program((x, twin), {}, {}))


def test_gather_and_scatter_are_adjoint_and_leave_out_what_has_index_minus_one():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, 7, generator=g)
    y = torch.randn(2, 3, 2, 7, generator=g)
    index = torch.tensor([[4, -1], [0, 0], [2, -1]])
    b = Builder()
    nodes = [b.node(Init("x", Normal(1.0), (2, 5, N))), b.node(Init("y", Normal(1.0), (2, 3, 2, N))), b.constant(index)]
    picked = b.node(Gather(1), nodes[0], nodes[2])
    put = b.node(Scatter(1, 5, 2), nodes[1], nodes[2])
    assert (picked.dims, put.dims) == (nodes[1].dims, nodes[0].dims)
    there, back = (
        execute(node.op, [value, index], node.dims, lambda w: 7, torch.float32)
        for node, value in ((picked, x), (put, y))
    )
    assert torch.equal(there[:, 1, 0], x[:, 0])
    assert not bool(there[:, 0, 1].any())
    assert torch.allclose((there * y).sum(), (x * back).sum(), atol=1e-5)
    for op, operands in [(Gather(2), (nodes[0], nodes[2])), (Scatter(1, 5, 1), (nodes[1], nodes[2]))]:
        with pytest.raises(ProgramError):
            b.node(op, *operands)


def test_dead_values_are_left_out():
    b = Builder()
    x, _ = b.node(Init("x", Normal(1.0), (3, N))), b.node(Const(2.0))
    program = finish(b, {"x": Output(((Fraction(0), x),), None, x.dims)})
    assert program.nodes == (x,)


def test_networkx_view():
    program = compiled("tied").program
    graph = program.graph()
    assert nx.is_directed_acyclic_graph(graph)
    products = sum(n.op.mnemonic == "matmul" for n in program)
    assert sum(d["op"] == "matmul" for _, d in graph.nodes(data=True)) == products
    assert {name for name, d in graph.nodes(data=True) if d["op"] == "output"} == set(program.outputs)
    for node, name in program.names().items():
        assert graph.in_degree(name) == len(node.operands)


dims = st.lists(
    st.one_of(st.integers(1, 50), st.fractions(Fraction(1, 8), 8, max_denominator=8).map(Width)), max_size=4
).map(tuple)


@given(dims)
@settings(max_examples=50, deadline=None)
def test_axes_read_back(d):
    assert parse_dims(dims_text(d)) == d


def test_program_length_does_not_depend_on_the_batch_and_is_linear_in_steps():
    from zoo import data, mlp

    def length(batch, steps):
        x, y = data(batch)
        return len(tp.compile(mlp("gelu", 3, momentum=0.9), x, y, torch.nn.functional.mse_loss, steps=steps).program)

    assert length(2, 3) == length(7, 3)
    a, b, c = (length(2, t) for t in (3, 5, 7))
    assert c - b == b - a


def test_every_instruction_has_a_mnemonic_of_its_own():
    assert len(OPS) == len(set(OPS.values()))
    assert all(OPS[cls.mnemonic] is cls for cls in OPS.values())
