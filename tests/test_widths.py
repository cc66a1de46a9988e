"""Width axes that are split and merged: particles of groups of domains, and their errors."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
import torch.nn.functional as F
from zoo_sequences import Between, split_cases

import tpcompile as tp
from tpcompile.errors import ProgramError
from tpcompile.evaluate.frames import Frame, Layout, Span
from tpcompile.evaluate.plan import Plan
from tpcompile.evaluate.points import Source
from tpcompile.ir import Builder, Init, MergeWidth, Output, SplitWidth, Width, finish, parse, verify
from tpcompile.laws import Normal

CASES = split_cases()


def test_blocks_of_a_layout_are_what_reshapes_give():
    layout = Layout(units=5, outer=3, inner=2)
    x = torch.arange(2 * 30).reshape(2, 30)
    apart = layout.apart(x)
    assert torch.equal(layout.together(apart), x)
    view = x.reshape(2, 3, 5, 2)
    assert torch.equal(apart.reshape(2, 3, 2, 5)[1, 2, 1], view[1, 2, :, 1])


@pytest.mark.parametrize(("outer", "inner"), [(1, 1), (3, 1), (1, 4), (2, 3)])
def test_every_block_is_orthonormal_to_every_other(outer, inner):
    m = 512
    source = Source(200, m, seed=1)
    span = Span(Layout(m), torch.float64, source)
    wide, narrow = Frame(Layout(m, outer, inner), span), Frame(Layout(m), span)
    first = wide.segment(3).append(wide.normals(3))
    second = narrow.segment(2).append(narrow.normals(2))
    third = wide.draw(Normal(2.0, 1.0), 2)
    rows = torch.cat([wide.layout.apart(first), second, wide.layout.apart((third - 1) / 2)])
    assert torch.allclose(rows @ rows.T / m, torch.eye(len(rows), dtype=torch.float64), atol=1e-12)
    assert torch.allclose(rows.mean(1), torch.zeros(len(rows), dtype=torch.float64), atol=1e-12)


def test_splits_and_merges_are_checked_printed_and_parsed():
    builder = Builder()
    x = builder.node(Init("x", Normal(1.0), (3, Width())))
    apart = builder.node(SplitWidth(1, 4, True), x)
    assert [str(d) for d in apart.dims] == ["3", "n/4", "4"]
    whole = builder.node(MergeWidth(1, True), apart)
    assert whole.dims == x.dims
    with pytest.raises(ProgramError):
        builder.node(SplitWidth(0, 3, False), x)
    with pytest.raises(ProgramError):
        builder.node(MergeWidth(1, True), x)
    program = finish(builder, {"x": Output(((Fraction(0), whole),), None, whole.dims)})
    verify(program)
    assert str(parse(str(program))) == str(program)


@pytest.mark.parametrize("name", CASES)
def test_programs_of_split_axes_read_back(name):
    case = CASES[name]
    program = tp.compile(case.make, case.inputs, case.targets, case.loss, steps=1).program
    verify(program)
    assert str(parse(str(program))) == str(program)


def _domains(name: str):
    case = CASES[name]
    program = tp.compile(case.make, case.inputs, case.targets, case.loss, steps=1).program
    return Plan.of(program).domains


def test_particles_of_a_group_are_in_proportion_to_its_axes():
    for group in _domains("chunk").groups() + _domains("growing heads").groups() + _domains("mixed orders").groups():
        unit = min(d.ratio / d.blocks for d in group)
        assert all(d.ratio / d.blocks == pytest.approx(unit) for d in group)


def test_two_orders_of_blocks_are_noticed():
    assert any(d.mixed for d in _domains("mixed orders").all())
    assert not any(d.mixed for d in _domains("rotary").all())


def test_linear_networks_of_parts_have_no_sampling_error():
    """All second moments of all blocks are exact: two seeds agree to rounding."""

    class Linear(Between):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            a, b = self.layers["w"](self.inp(x)).chunk(2, -1)
            some, others = (h.view(-1, self.n // 4, 4) for h in (a, b))
            some, others = some[..., :2].flatten(1), others[..., 1:3].flatten(1)  # (N, n/2)
            return self.readout(self.layers["v"](torch.cat([some, others, some - others, some], -1)))

    def make(n: int):
        model = Linear(n, {"w": (1, 2), "v": (2, 1)}, lambda m, h: h)
        return model, torch.optim.SGD(model.parameters(), lr=0.05)

    x, y = CASES["chunk"].inputs, CASES["chunk"].targets
    compiled = tp.compile(make, x, y, F.mse_loss, steps=3)
    a, b = (compiled.evaluate(particles=4096, replicas=1, seed=s).outputs for s in (1, 2))
    assert float(a[-1].abs().max()) > 0.1
    assert torch.allclose(a, b, atol=1e-11)


@pytest.mark.parametrize("name", CASES)
def test_replicas_agree(name):
    """A narrow axis that met a wide one on other random numbers would be off by a tenth here."""
    case = CASES[name]
    result = tp.compile(case.make, case.inputs, case.targets, case.loss, steps=2).evaluate(particles=4096, replicas=4)
    assert float(result.outputs_stderr.max()) < 0.01
