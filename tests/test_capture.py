"""The captured graph: sizes and numbers as powers of the width, and the same numbers as real training."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tpcompile.capture import Capture, Ref, Scaled, Size, capture, tap
from tpcompile.capture.powers import power_of, size_of
from tpcompile.laws import Normal, Uniform

ONE, N = Size(Fraction(1), 0), Size(Fraction(1), 1)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def data(n: int = 5, d: int = 3, k: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(n, d), torch.randn(n, k)


def values_of(captured: Capture, model: nn.Module) -> list[torch.Tensor]:
    """The inputs of the graph module, with the model's parameters."""
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    dtype = next(model.parameters()).dtype
    values = []
    for node in captured.nodes:
        if node.kind in ("parameter", "buffer"):
            values.append(state[node.target].detach().clone())
        elif node.kind == "data":
            value = captured.data[node.target]
            values.append(value.to(dtype) if value.is_floating_point() else value)
    return values


def assert_same_as_training(
    captured: Capture,
    make: Callable[[int], Any],
    inputs: Any,
    targets: Any,
    loss: Callable[..., torch.Tensor],
    optimizer: Callable[..., torch.optim.Optimizer] | None = None,
    test_inputs: torch.Tensor | None = None,
) -> None:
    """Replay the graph at the first probe width beside the real optimizer."""
    made = make(captured.widths[0])
    if isinstance(made, tuple):
        model, real = made
    else:
        assert optimizer is not None
        model, real = made, optimizer(made.parameters())
    assert captured.graph_module is not None
    replayed = captured.graph_module(*values_of(captured, model))
    batches = isinstance(inputs, (list, tuple))
    all_inputs = torch.cat(list(inputs)) if batches else inputs
    all_targets = torch.cat(list(targets)) if batches else targets
    for t in range(captured.steps + 1):
        with torch.no_grad():
            still = copy.deepcopy(model)
            output = still(all_inputs)
            torch.testing.assert_close(replayed[f"outputs/{t}"], output)
            torch.testing.assert_close(replayed[f"loss/{t}"], loss(output, all_targets))
            if test_inputs is not None:
                torch.testing.assert_close(replayed[f"test_outputs/{t}"], copy.deepcopy(model)(test_inputs))
        if t < captured.steps:
            real.zero_grad()
            loss(model(inputs[t] if batches else inputs), targets[t] if batches else targets).backward()
            real.step()


class MuMLP(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(n, 3))
        self.w2 = nn.Parameter(torch.randn(n, n) / n**0.5)
        self.w3 = nn.Parameter(torch.randn(2, n))
        self.scale = 1 / n

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = tap(torch.tanh(x @ self.w1.t()), "first")
        return (F.relu(h @ self.w2.t()) @ self.w3.t()) * self.scale


class Residual(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed = nn.Linear(3, n)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(n), nn.Linear(n, 4 * n), nn.GELU(), nn.Linear(4 * n, n)) for _ in range(2)
        )
        self.readout = nn.Linear(n, 2, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = x + block(x)
        return self.readout(x)


class Loop(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed, self.cell, self.readout = nn.Linear(3, n), nn.Linear(n, n), nn.Linear(n, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        for _ in range(3):
            h = torch.tanh(self.cell(h))
        return self.readout(h)


class Tied(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(n, 3) / n**0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(torch.relu(F.linear(x, self.w)), self.w.t())


class Attention(nn.Module):
    mask: torch.Tensor

    def __init__(self, n: int) -> None:
        super().__init__()
        self.embed, self.qkv, self.readout = nn.Linear(3, n), nn.Linear(n, 3 * n), nn.Linear(n, 2)
        self.register_buffer("mask", torch.tril(torch.ones(4, 4)).bool())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.embed(x)
        q, k, v = (z.view(*z.shape[:2], 4, -1).transpose(1, 2) for z in self.qkv(h).chunk(3, -1))
        logits = tap(q @ k.transpose(-1, -2) / q.shape[-1], "logits").masked_fill(~self.mask, -torch.inf)
        return self.readout((logits.softmax(-1) @ v).transpose(1, 2).flatten(2).mean(1))


def mlp(n: int, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, n), activation(), nn.Linear(n, n), activation(), nn.Linear(n, 2))


def batch_norm(n: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, n), nn.BatchNorm1d(n), nn.ReLU(inplace=True), nn.Linear(n, 2))


def sgd(parameters: Any) -> torch.optim.SGD:
    return torch.optim.SGD(parameters, lr=0.1)


def seeded(make: Callable[[int], Any]) -> Callable[[int], Any]:
    def seeded_make(n: int) -> Any:
        torch.manual_seed(7)
        return make(n)

    return seeded_make


def test_mup_mlp_multipliers_laws_and_sizes() -> None:
    x, y = data()
    captured = capture(MuMLP, x, y, F.mse_loss, sgd, 2, test_inputs=x[:2])
    by_name = {node.name: node for node in captured.nodes}
    assert captured.laws["p_w2"] == Normal(1.0, width_exponent=Fraction(-1, 2))
    assert by_name["p_w2"].shape == (N, N)
    assert captured.activations == ("first",)
    first = captured.outputs["activation/first/0"]
    assert by_name[first.name].shape == (Size(Fraction(5), 0), N)
    scales = [n for n in captured.nodes if Scaled(1.0, Fraction(-1)) in n.args]
    assert {n.origin.phase for n in scales} == {"forward", "backward", "test"}
    assert captured.learning_rates["w1"] == Scaled(0.1, Fraction(0))
    assert captured.output_shape == (2,)
    assert_same_as_training(captured, seeded(MuMLP), x, y, F.mse_loss, sgd, x[:2])


def test_linear_defaults_activations_and_origins() -> None:
    x, y = data()
    captured = capture(mlp, x, y, F.mse_loss, sgd, 1)
    assert captured.activations == ("0", "1", "2", "3")
    assert captured.laws["p_2_weight"] == Uniform(-1.0, 1.0, Fraction(-1, 2))
    phases = {(n.origin.phase, n.origin.module) for n in captured.nodes if n.kind == "call"}
    assert {("forward", "2"), ("backward", "2"), ("update", "2.weight")} <= phases
    names = [n.name for n in captured.nodes]
    known: set[str] = set()
    for node in captured.nodes:  # every reference points backwards
        assert all(a.name in known for a in node.args if isinstance(a, Ref))
        known.add(node.name)
    assert len(names) == len(known)
    assert not any(n.target in (torch.ops.aten.detach.default, torch.ops.aten.clone.default) for n in captured.nodes)


@pytest.mark.parametrize("make", [mlp, Residual, Loop, lambda n: mlp(n, nn.SiLU), batch_norm])
def test_replay_equals_training(make: Callable[[int], nn.Module]) -> None:
    x, y = data()
    captured = capture(make, x, y, F.mse_loss, sgd, 3, test_inputs=x[1:3])
    assert_same_as_training(captured, seeded(make), x, y, F.mse_loss, sgd, x[1:3])


def test_several_widths() -> None:
    def make(n: int) -> nn.Module:
        return nn.Sequential(
            nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 2 * n), nn.ReLU(), nn.Linear(2 * n, 4 * n), nn.Linear(4 * n, 2)
        )

    x, y = data()
    captured = capture(make, x, y, F.mse_loss, sgd, 1)
    shapes = {n.target: n.shape for n in captured.nodes if n.kind == "parameter"}
    assert shapes["4.weight"] == (Size(Fraction(4), 1), Size(Fraction(2), 1))


def test_repeated_module_names() -> None:
    x, y = data()
    assert capture(Loop, x, y, F.mse_loss).activations == ("embed", "cell", "cell:1", "cell:2")


def test_tied_autoencoder() -> None:
    x, _ = data()
    captured = capture(Tied, x, x, F.mse_loss, sgd, 2)
    assert [n.target for n in captured.nodes if n.kind == "parameter"] == ["w"]
    assert_same_as_training(captured, seeded(Tied), x, x, F.mse_loss, sgd)


def test_attention_with_tap_and_mask() -> None:
    x, y = torch.randn(3, 4, 3), torch.randn(3, 2)
    captured = capture(Attention, x, y, F.mse_loss, sgd, 1)
    assert captured.activations == ("embed", "qkv", "logits")
    assert torch.equal(captured.data["b_mask"], torch.tril(torch.ones(4, 4)).bool())
    assert any(Scaled(0.25, Fraction(1)) in n.args for n in captured.nodes)
    assert_same_as_training(captured, seeded(Attention), x, y, F.mse_loss, sgd)


def test_minibatches() -> None:
    xs, ys = [torch.randn(4, 3) for _ in range(3)], [torch.randn(4, 2) for _ in range(3)]
    captured = capture(mlp, xs, ys, F.mse_loss, sgd, 3)
    assert captured.data["inputs"].shape == (12, 3)
    assert_same_as_training(captured, seeded(mlp), xs, ys, F.mse_loss, sgd)


@pytest.mark.parametrize(
    "settings",
    [
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.5, "weight_decay": 0.01},
        {"momentum": 0.9, "nesterov": True, "weight_decay": 0.1},
        {"maximize": True, "weight_decay": 0.1},
    ],
)
def test_sgd_variants(settings: dict[str, Any]) -> None:
    def optimizer(parameters: Any) -> torch.optim.SGD:
        return torch.optim.SGD(parameters, lr=0.05, **settings)

    x, y = data()
    captured = capture(mlp, x, y, F.mse_loss, optimizer, 3)
    assert_same_as_training(captured, seeded(mlp), x, y, F.mse_loss, optimizer)


def test_parameter_groups_and_frozen_parameters() -> None:
    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = mlp(n)
        model[0].bias.requires_grad_(False)
        groups = [
            {"params": [model[0].weight], "lr": 0.1 * n},
            {"params": [model[2].weight], "weight_decay": 0.5 / n},
            {"params": [model[4].weight], "lr": 0.1 / n**0.5},
        ]
        return model, torch.optim.SGD(groups, lr=0.1)

    x, y = data()
    captured = capture(make, x, y, F.mse_loss, steps=2)
    assert captured.learning_rates["0.weight"] == Scaled(0.1, Fraction(1))
    assert captured.learning_rates["4.weight"] == Scaled(0.1, Fraction(-1, 2))
    assert captured.learning_rates["2.bias"].coefficient == 0
    assert "0.bias" not in captured.learning_rates
    updated = {n.origin.module for n in captured.nodes if n.origin.phase == "update"}
    assert updated == {"0.weight", "2.weight", "4.weight"}
    assert any(Scaled(0.5, Fraction(-1)) in n.args for n in captured.nodes)
    assert_same_as_training(captured, seeded(make), x, y, F.mse_loss)


def test_cross_entropy_and_scalar_output() -> None:
    x, _ = data()
    labels = torch.tensor([0, 1, 1, 0, 1])
    captured = capture(mlp, x, labels, F.cross_entropy, sgd, 2)
    assert_same_as_training(captured, seeded(mlp), x, labels, F.cross_entropy, sgd)

    def scalar(n: int) -> nn.Module:
        return nn.Sequential(nn.Linear(3, n), nn.ReLU(), nn.Linear(n, 1), nn.Flatten(0))

    captured = capture(scalar, x, labels.float(), F.mse_loss, sgd, 1, tangent=True)
    assert captured.output_shape == ()
    jacobian = captured.outputs["jacobian/0.weight/0"]
    shape = next(n for n in captured.nodes if n.name == jacobian.name).shape
    assert shape == (Size(Fraction(5), 0), ONE, N, Size(Fraction(3), 0))


@pytest.mark.parametrize("make", [MuMLP, Residual, lambda n: mlp(n, nn.SiLU)])
def test_tangent(make: Callable[[int], nn.Module]) -> None:
    x, _ = data()
    captured = capture(make, x, tangent=True)
    model = make(16)
    assert captured.graph_module is not None
    replayed = captured.graph_module(*values_of(captured, model))
    for name, parameter in model.named_parameters():
        found = replayed[f"jacobian/{name}/0"]
        for sample in range(2):
            for k in range(2):
                (expected,) = torch.autograd.grad(model(x)[sample, k], parameter)
                torch.testing.assert_close(found[sample, k], expected)


def test_constants_and_dtypes() -> None:
    class Model(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.n, self.fc, self.out = n, nn.Linear(3, n), nn.Linear(n, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = torch.relu(self.fc(x)) + torch.full((self.n,), 1 / self.n) + torch.zeros(self.n)
            return self.out(h) + torch.arange(2)

    x = torch.randn(4, 3, dtype=torch.float64)
    captured = capture(Model, x)
    assert captured.data["inputs"].dtype == torch.float64
    exponents = {law.width_exponent for name, law in captured.laws.items() if not name.startswith("p_")}
    assert exponents == {Fraction(-1), Fraction(0)}
    assert any(torch.equal(v, torch.arange(2)) for v in captured.data.values())


def test_what_is_written_on_a_parameter_is_seen() -> None:
    class Model(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.fc = nn.Linear(n, 2, bias=False)
            vars(self.fc.weight)["fan_in"] = n

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x.sum(1, keepdim=True).expand(-1, self.fc.in_features)) / vars(self.fc.weight)["fan_in"]

    captured = capture(Model, torch.ones(4, 3))
    numbers = [a for node in captured.nodes for a in node.args if isinstance(a, Scaled)]
    assert Scaled(1.0, Fraction(1)) in numbers


def test_global_state_is_unchanged() -> None:
    x, y = data()
    before = torch.get_rng_state(), torch.get_default_dtype(), torch.is_grad_enabled()
    with torch.no_grad():
        capture(mlp, x, y, F.mse_loss, sgd, 1)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (torch.get_default_dtype(), torch.is_grad_enabled())


def test_powers() -> None:
    assert size_of([32, 64, 128], [16, 32, 64]) == Size(Fraction(2), 1)
    assert size_of([8, 16, 32], [16, 32, 64]) == Size(Fraction(1, 2), 1)
    assert size_of([256, 1024, 4096], [16, 32, 64]) == Size(Fraction(1), 2)
    assert size_of([17, 33, 65], [16, 32, 64]) is None
    assert power_of([3 * n ** (-2 / 3) for n in (16, 32, 64)], [16, 32, 64]) == Scaled(3.0, Fraction(-2, 3))
    assert power_of([1 / (n + 1) for n in (16, 32, 64)], [16, 32, 64]) is None
    assert power_of([16, -32, 64], [16, 32, 64]) is None


def test_buffers_that_nothing_reads_need_no_law():
    class Idle(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.fc = nn.Linear(3, n)
            self.register_buffer("grid", torch.arange(n).float().sin())

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.fc(x)

    captured = capture(Idle, torch.ones(2, 3), growing=True)
    assert not any(node.kind == "buffer" for node in captured.nodes)


def test_compiled_modules_are_traced_as_they_were_written():
    def make(n: int, wrap=lambda module: module) -> nn.Module:
        return nn.Sequential(nn.Linear(3, n), wrap(nn.Tanh()), nn.Linear(n, 1))

    plain = capture(make, torch.ones(2, 3), growing=True)
    compiled = capture(lambda n: make(n, torch.compile), torch.ones(2, 3), growing=True)
    assert [node.target for node in plain.nodes] == [node.target for node in compiled.nodes]


def test_a_capture_does_not_import_the_compiler_of_torch():
    """Nor the optimizer of the factory, of which torch imports it to keep it out; afterwards all is as it was."""
    code = (
        "import sys, torch, tpcompile as tp\n"
        "def make(n):\n"
        "    model = torch.nn.Sequential(torch.nn.Linear(3, n), torch.nn.Linear(n, 1))\n"
        "    return model, torch.optim.Adam(model.parameters())\n"
        "tp.kernel(lambda n: torch.nn.Linear(3, n), torch.zeros(3))\n"
        "loss = torch.nn.functional.mse_loss\n"
        "tp.verify(make, torch.ones(1, 3), torch.ones(1, 1), loss, steps=1, advice=False)\n"
        "print([name for name in ('torch._dynamo', 'scipy.optimize') if name in sys.modules])\n"
        "methods = [getattr(f, '__wrapped__', None) for f in vars(torch.optim.Optimizer).values()]\n"
        "print([f for f in methods if hasattr(f, '__dynamo_disable')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["[]", "[]"]


def test_forward_derivatives_by_decomposition() -> None:
    """An operation whose derivative along directions torch decomposes; in a new process, where nothing is loaded."""
    code = """
import sys, torch
from tpcompile.capture import capture

class Model(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.last = torch.nn.Linear(3, width), torch.nn.Linear(width, 3)

    def forward(self, x):
        y = self.last(torch.tanh(self.first(x)))
        p = torch.softmax(y, -1)
        return torch.ops.aten._softmax_backward_data(y, p, -1, p.dtype)

found = capture(Model, torch.randn(1, 3), variation=True, growing=True)
assert "variation/0" in found.outputs
assert "torch._decomp.decompositions_for_jvp" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
