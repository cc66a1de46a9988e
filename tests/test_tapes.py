"""Recorded evaluations against the ones they were recorded from."""

import subprocess
import sys

import pytest
import torch
from kernel_specs import ERF, RELU, deep, inputs, make, others

import tpcompile as tp
from tpcompile.evaluate.tapes import Input, Refused, Side, Tape, recorded
from tpcompile.evaluate.tapes.script import Script
from tpcompile.kernels import job
from tpcompile.kernels.plan import Plan

SPECS = {
    "relu": deep(3, RELU, 1.4, 0.1),
    "erf": deep(3, ERF, 1.4, 0.1),
    "leaky": deep(2, ("leaky", 0.2), 1.4, 0.0),
    "gelu": deep(2, ("gelu",), 1.4, 0.1),
    "sin": deep(1, ("sin", 0.7, 1.3, 0.4), 1.2, 0.1),  # of complex numbers: not recorded
    "step": deep(1, ("sign",), 1.2, 0.1),
    "norm": [("dense", 1.2, 0.1), ("norm",), RELU, ("dense", 1.3, 0.2)],
    "sum": [("dense", 1.2, 0.1), ("sum", [RELU, ("dense", 1.0, 0.0)], [("dense", 0.5, 0.1)]), ERF, ("dense", 1.3, 0.2)],
}


def tapes_of(kernel: tp.Kernel) -> list[Tape | None]:
    """What was recorded for the tangent kernel."""
    plan = kernel._plan(True)
    assert isinstance(plan, Plan)
    return list(plan.tapes.values())


def kernels(monkeypatch, kernel, x, y, recording: bool, dtype=None, block=None):
    monkeypatch.setattr(job, "RECORDED", 1 if recording else 2**60)
    return kernel(x, y, "both", dtype=dtype, block=block)


@pytest.mark.parametrize("name", SPECS)
def test_the_same_kernels(monkeypatch, name):
    torch.manual_seed(0)
    x, y = torch.randn(150, 5, dtype=torch.float64), torch.randn(97, 5, dtype=torch.float64)
    if name in ("relu", "erf", "leaky", "sum"):
        x[3], x[4], x[5], x[6] = x[2], -x[2], 0.0, 1e-8 * x[2]
    if name == "relu":
        x[7] = 1e8 * x[2]
    y[:8] = x[:8] if name != "step" else y[:8]
    monkeypatch.setattr(job, "TILE_ROWS", 32)
    monkeypatch.setattr(job, "BLOCK", 32 * 48)
    kernel = tp.kernel(make(SPECS[name], (5,)), x[0])
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 1e-4)):
        for second in (None, y):
            slow = kernels(monkeypatch, kernel, x, second, False, dtype)
            for block in (None, 7):
                quick = kernels(monkeypatch, kernel, x, second, True, dtype, block)
                for a, b in zip(quick, slow, strict=True):
                    scale = b.abs() + b.abs().median()
                    assert ((a - b).abs() / scale).max() < tolerance
                    assert second is not None or torch.equal(a, a.T)
    made = [t is not None for t in tapes_of(kernel)]
    assert set(made) == {name != "sin"}


SPECS_WITH_POSITIONS = {name: spec for name, spec in others().items() if name[:4] == "conv" and "pools" not in name}


@pytest.mark.parametrize("name", SPECS_WITH_POSITIONS)
def test_the_same_convolutions(monkeypatch, name):
    """Sums of shifts at any stride and padding, with inputs last in memory and first."""
    spec = SPECS_WITH_POSITIONS[name]
    x, y = (torch.from_numpy(inputs(spec, count)) for count in (23, 14))
    x[3], x[4], y[2] = x[2], -x[2], x[2]
    if "norm" not in name:
        x[5] = 0.0
    kernel = tp.kernel(make(spec), x[0])
    for size in (2**11, 2**14):
        monkeypatch.setattr(job, "BLOCK", size)
        for second in (None, y):
            slow = kernels(monkeypatch, kernel, x, second, False)
            for a, b in zip(kernels(monkeypatch, kernel, x, second, True), slow, strict=True):
                assert ((a - b).abs() / (b.abs() + b.abs().median())).max() < 1e-11
                assert second is not None or torch.equal(a, a.T)
    assert all(t is not None for t in tapes_of(kernel))


def test_threads_do_not_change_convolutions(monkeypatch):
    spec = SPECS_WITH_POSITIONS["conv2d same flatten"]
    x = torch.from_numpy(inputs(spec, 40))
    kernel = tp.kernel(make(spec), x[0])
    monkeypatch.setattr(job, "BLOCK", 2**12)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(kernels(monkeypatch, kernel, x, None, True))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_calls_are_joined():
    """What NumPy does not compute takes one call between two of its own."""
    kernel = tp.kernel(make(SPECS["relu"], (5,)), torch.zeros(5))
    kernel(torch.randn(300, 5))
    (tape,) = (t for t in tapes_of(kernel) if t is not None)
    (workspace,) = (w for found in tape.idle.values() for w in found[:1])
    numpy = sum(x.by_numpy and x.name != "snap" for x in tape.order if tape.stage[x] is None)
    for block in workspace.blocks.values():
        assert numpy < len(block.calls) <= 2 * numpy + 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("over", [True, False])
def test_correlations_near_one_become_one(dtype, over):
    near = 1 - 16 * torch.finfo(dtype).eps
    edge = torch.tensor([near, 1.0, 1.1], dtype=dtype)
    for large in ([], [edge], [-edge], [edge, -edge]):
        below = torch.nextafter(edge[:1], -edge[:1])
        x = torch.cat([torch.tensor([0.0, -0.0, 0.3], dtype=dtype), below, -below, *large])
        expected = torch.where(x.abs() < near, x, x.sign())
        out = x if over else torch.empty_like(x)
        script = Script()
        script.add("snap", (x, near), {}, out)
        call = script.call()
        assert call is not None
        call()
        assert torch.equal(out, expected)


def test_another_decision_is_another_evaluation(monkeypatch):
    """Error functions of large variances are computed in another way: blocks that mix are not replayed."""
    torch.manual_seed(0)
    x = torch.randn(200, 5, dtype=torch.float64)
    x[120:] *= 1e6
    kernel = tp.kernel(make(SPECS["erf"], (5,)), x[0])
    slow = kernels(monkeypatch, kernel, x, None, False)
    quick = kernels(monkeypatch, kernel, x, None, True, block=40)
    for a, b in zip(quick, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def replayed(function, rows, columns, lengths=(7, 11)):
    """A function of a row tensor and a column tensor, recorded on a part of them and run on the whole."""
    a, b = rows[: lengths[0]], columns[:, : lengths[1]]
    tape = Tape(recorded(lambda: [function(a, b)], [Input(a, 0), Input(b, 1)], {}), lengths)
    most = (len(rows), columns.shape[1])
    block = tape.workspace(most).at(most)
    for side in (0, 1):
        block.load(side, Side(tape, side, most[side], (rows, columns).__getitem__), 0)
    return block.run()[0]


def test_changes_in_place_products_and_sums():
    torch.manual_seed(0)
    rows, columns = torch.rand(20, 1, dtype=torch.float64), torch.rand(1, 33, dtype=torch.float64)

    def function(u, v):
        total = (u * 3.0 * v).mul_(2.0)
        total.add_(u, alpha=0.5)
        power = total.abs().sqrt_().mul_(u.rsqrt()).mul_(v)
        first = power.clone()
        power.addcmul_(total, power, value=-2.0)
        return (first * 0.3).add_(power).add_(1.0).mul_(v).expand(len(u), v.shape[1])

    torch.testing.assert_close(replayed(function, rows, columns), function(rows, columns), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "function",
    [
        lambda u, v: u * v * float(u.sum()),  # a number of the block
        lambda u, v: (u * v).cumsum(0),  # not a known operation
        lambda u, v: torch.from_numpy((u * v).detach().numpy().copy()) * v,  # computed elsewhere
        lambda u, v: u * v if bool((u * v).sum() > 0) else v,  # a decision on both sides
    ],
)
def test_what_is_no_fixed_list_of_operations(function):
    rows, columns = torch.rand(20, 1), torch.rand(1, 33)
    with pytest.raises(Refused):
        replayed(function, rows, columns)


def test_views_of_what_was_overwritten():
    def function(u, v):
        whole = u * v
        view = whole.view(-1)
        whole.mul_(2.0)
        return view.view(len(u), -1) * v

    with pytest.raises(Refused):
        replayed(function, torch.rand(20, 1), torch.rand(1, 33))


def test_a_first_call_imports_little() -> None:
    """Kernels need neither torch's compiler nor what else takes longer to import than they take: in a new process."""
    code = """
import sys, torch, tpcompile as tp
from torch import nn

def make(n):
    model = nn.Sequential(nn.Linear(3, n, bias=False), nn.ReLU(), nn.Linear(n, 1, bias=False))
    for weight in model.parameters():
        nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
    return model

x = torch.randn(300, 3, generator=torch.Generator().manual_seed(0))
tp.kernel(make, x[0])(x)
slow = ("torch._dynamo", "torch._decomp.decompositions_for_jvp", "torch.fx.experimental.symbolic_shapes", "networkx")
for name in slow:
    assert name not in sys.modules, name
"""
    subprocess.run([sys.executable, "-c", code], check=True)
