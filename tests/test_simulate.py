from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tpcompile.capture.tap import tap
from tpcompile.errors import FactoryError, UsageError
from tpcompile.recording import forward_with_activations
from tpcompile.results import load_result
from tpcompile.simulate import Batches, simulate

X = torch.linspace(-1, 1, 15).reshape(5, 3)
Y = torch.linspace(-1, 1, 5).reshape(5, 1)
XT = torch.ones(2, 3)


class Net(nn.Module):
    def __init__(self, n, k=1):
        super().__init__()
        self.hidden = nn.Sequential(nn.Linear(3, n), nn.Tanh(), nn.Linear(n, n), nn.Tanh())
        self.readout = nn.Linear(n, k, bias=False)
        nn.init.normal_(self.readout.weight, std=1 / n)

    def forward(self, x):
        return self.readout(self.hidden(x))


def make(n):
    model = Net(n)
    groups = [{"params": model.hidden.parameters(), "lr": 0.1}, {"params": model.readout.parameters(), "lr": 0.5 / n}]
    return model, torch.optim.SGD(groups, lr=0.1, momentum=0.5)


def run(factory: Any = make, inputs: Batches = X, targets: Batches = Y, width=16, steps=3, **kw):
    return simulate(factory, inputs, targets, F.mse_loss, steps=steps, width=width, **kw)


def by_hand(dtype=torch.float64, steps=3, batches=None):
    """The same training written out, to compare with."""
    state = torch.random.get_rng_state()
    torch.manual_seed(7)
    model, optimizer = make(16)
    torch.random.set_rng_state(state)
    kept = list(model.parameters())
    model.to(dtype)
    assert all(a is b for a, b in zip(kept, model.parameters(), strict=True))
    outputs = []
    for step in range(steps + 1):
        outputs.append(model(X.to(dtype)).detach())
        x, y = (X, Y) if batches is None or step == steps else batches[step]
        optimizer.zero_grad()
        F.mse_loss(model(x.to(dtype)), y.to(dtype)).backward()
        optimizer.step()
    return torch.stack(outputs)


def test_it_is_the_users_training():
    result = run(seed=7, test_inputs=XT)
    torch.testing.assert_close(result.outputs, by_hand(), rtol=1e-12, atol=1e-14)
    assert result.outputs.dtype == torch.float64
    assert result.outputs.shape == (4, 5, 1)
    assert result.test_outputs is not None
    assert result.test_outputs.shape == (4, 2, 1)
    assert result.activations == ("hidden.0", "hidden.1", "hidden.2", "hidden.3")
    assert result.loss is not None
    torch.testing.assert_close(result.loss, (result.outputs - Y).square().mean((1, 2)))
    assert result.loss[-1] < result.loss[0]
    assert not result.outputs_stderr.any()


def test_float32_starts_from_the_same_model():
    low = run(seed=7, dtype=torch.float32)
    torch.testing.assert_close(low.outputs, by_hand(), rtol=1e-4, atol=1e-5)


def test_kernels_and_changes():
    result = run(seed=1, test_inputs=XT)
    torch.manual_seed(1)
    model, _ = make(16)
    x = model.hidden(torch.cat([X, XT])).double().detach()
    kernel = result.feature_kernel("hidden.3")
    torch.testing.assert_close(kernel[0], x @ x.T / 16, rtol=1e-4, atol=1e-6)
    change = result.feature_change("hidden.3")
    assert not change[0].any()
    assert (change[1:] > 0).all()


def test_seeds_and_random_state():
    torch.manual_seed(3)
    np.random.seed(3)
    random.seed(3)
    before = (torch.random.get_rng_state().clone(), np.random.get_state()[1].copy(), random.getstate())  # type: ignore
    a, b, c = run(seed=5), run(seed=5), run(seed=6)
    assert torch.equal(before[0], torch.random.get_rng_state())
    assert (before[1] == np.random.get_state()[1]).all()  # type: ignore
    assert before[2] == random.getstate()
    assert torch.get_default_dtype() == torch.float32
    assert torch.equal(a.outputs, b.outputs)
    assert not torch.equal(a.outputs, c.outputs)


def test_minibatches():
    batches = [(X[:2], Y[:2]), (X[2:4], Y[2:4]), (X[3:], Y[3:])]
    result = run(inputs=[x for x, _ in batches], targets=[y for _, y in batches], seed=7)
    expected = by_hand(batches=batches)
    torch.testing.assert_close(result.outputs, expected[:, [0, 1, 2, 3, 3, 4]], rtol=1e-12, atol=1e-14)
    assert result.loss is not None
    assert result.loss.shape == (4,)
    with pytest.raises(UsageError, match="2 minibatches for 3 steps"):
        run(inputs=[X, X], targets=[Y, Y])


def test_zero_output_at_initialisation():
    result = run(output_init="zero", seed=2, test_inputs=XT)
    plain = run(seed=2, test_inputs=XT)
    assert not result.outputs[0].any()
    assert result.test_outputs is not None
    assert not result.test_outputs[0].any()
    assert plain.outputs[0].any()
    # one step of a centred network: the same kernel, another residual
    assert result.loss is not None
    assert float(result.loss[0]) == pytest.approx(float(Y.double().square().mean()))
    assert result.loss[-1] < result.loss[0]
    with pytest.raises(UsageError, match="output_init"):
        run(output_init="no")


@pytest.mark.parametrize("k", [1, 2])
def test_tangent_kernel_is_the_change_of_the_function(k):
    def factory(n):
        torch.manual_seed(0)
        model = Net(n, k)
        return model, torch.optim.SGD(model.parameters(), lr=1e-5)

    y = Y.expand(5, k)
    result = run(factory, targets=y, steps=1)
    kernel = result.ntk()
    assert kernel.shape == ((2, 5, 5) if k == 1 else (2, 5, 5, k, k))
    full = kernel.reshape(2, 5, 5, k, k)[0]
    residual = 2 * (result.outputs[0] - y) / (5 * k)
    predicted = -torch.einsum("abij,bj->ai", full, residual)
    torch.testing.assert_close(result.outputs[1] - result.outputs[0], predicted, rtol=1e-3, atol=1e-9)
    assert list(result.ntk(by_parameter=True)) == [name for name, _ in factory(4)[0].named_parameters()]


def test_tangent_kernel_uses_learning_rates_of_groups():
    result = run(width=16, steps=2)
    parts = result.ntk(by_parameter=True)
    torch.manual_seed(0)
    model, _ = make(16)
    x = model.hidden(X).double().detach()
    torch.testing.assert_close(parts["readout.weight"][0], 0.5 / 16 * x @ x.T, rtol=1e-4, atol=1e-6)
    assert parts["hidden.0.weight"].shape == (3, 5, 5)


class Normed(nn.Module):
    """Outputs depend on the whole batch, and buffers change in the forward pass."""

    def __init__(self, n):
        super().__init__()
        self.first = nn.Linear(3, n)
        self.norm = nn.BatchNorm1d(n)
        self.last = nn.Linear(n, 1)

    def forward(self, x):
        return self.last(torch.tanh(self.norm(self.first(x)))).squeeze(-1)


def test_batch_normalisation():
    result = run(Normed, targets=Y[:, 0], optimizer=lambda p: torch.optim.SGD(p, lr=1e-5), steps=1, width=8)
    assert result.output_shape == ()
    assert result.outputs.shape == (2, 5, 1)
    residual = 2 * (result.outputs[0, :, 0] - Y[:, 0]) / 5
    predicted = -result.ntk()[0] @ residual
    torch.testing.assert_close(result.outputs[1, :, 0] - result.outputs[0, :, 0], predicted, rtol=1e-3, atol=1e-9)
    model = Normed(8)
    forward_with_activations(model, X)
    assert model.norm.running_mean is not None
    assert not model.norm.running_mean.any()


class Loop(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.inject = nn.Linear(3, n)
        self.cell = nn.Sequential(nn.Linear(n, n), nn.ReLU(inplace=True))
        self.out = nn.Linear(n, 2)
        self.n = n

    def forward(self, x):
        u = self.inject(x)
        h = torch.zeros(x.shape[0], self.n)  # of the default dtype
        for _ in range(3):
            h = self.cell(u + h)
        return self.out(h)


def test_names_of_repeated_calls_and_operations_in_place():
    _, found = forward_with_activations(Loop(4), X)
    assert list(found) == [
        "inject",
        "cell.0",
        "cell.1",
        "cell.0:1",
        "cell.1:1",
        "cell.0:2",
        "cell.1:2",
        "out",
    ]
    assert (found["cell.0"] < 0).any()  # not overwritten by the relu
    result = simulate(Loop, X, width=6)
    assert "out" not in result.activations  # it does not grow with the width
    assert result.steps == 0
    assert result.loss is None
    chosen = simulate(Loop, X, width=6, activations=["cell.1:2"])
    assert chosen.activations == ("cell.1:2",)
    with pytest.raises(UsageError, match=r"no activation 'cell\.9'"):
        simulate(Loop, X, width=6, activations=["cell.9"])


class Tapped(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.block = Loop(n)
        self.same = nn.Identity()

    def forward(self, x):
        y = self.same(self.block.cell(self.block.inject(x)))
        tap(y + 1, "shifted")
        return self.block.out(tap(y, "y"))


def test_taps():
    _, found = forward_with_activations(Tapped(4), X)
    assert list(found) == ["block.inject", "block.cell.0", "block.cell.1", "shifted", "y", "block.out"]
    torch.testing.assert_close(found["shifted"], found["y"] + 1)
    result = simulate(Tapped, X, width=6)
    assert result.activations == ("block.inject", "block.cell.0", "block.cell.1", "shifted", "y")


def test_names_agree_with_the_compiler():
    from tpcompile.capture import capture

    for factory in (make, Loop, Tapped):
        captured = capture(factory, X).activations
        assert simulate(factory, X, width=8).activations == captured


def test_sequences_and_file(tmp_path):
    class Tokens(nn.Module):
        def __init__(self, n):
            super().__init__()
            self.embed = nn.Embedding(7, n)
            self.head = nn.Linear(n, 7)

        def forward(self, x):
            return self.head(self.embed(x))

    tokens = torch.arange(6).reshape(2, 3)
    result = simulate(
        Tokens,
        tokens,
        tokens,
        lambda out, t: F.cross_entropy(out.flatten(0, 1), t.flatten()),
        lambda p: torch.optim.Adam(p, lr=0.1),
        2,
        width=8,
    )
    assert result.outputs.shape == (3, 2, 3, 7)
    assert result.ntk().shape == (3, 2, 2, 21, 21)
    result.save(tmp_path / "r.npz")
    assert torch.equal(load_result(tmp_path / "r.npz").ntk(), result.ntk())
    assert torch.isfinite(result.metrics()["embed"]["target_alignment"]).all()


def test_refusals():
    with pytest.raises(UsageError, match="needs an optimizer"):
        run(Net)
    with pytest.raises(UsageError, match="leave out"):
        run(optimizer=lambda p: torch.optim.SGD(p, lr=0.1))
    with pytest.raises(UsageError, match="needs a loss"):
        simulate(make, X, Y, steps=1, width=4)
    with pytest.raises(UsageError, match="targets of shape"):
        run(targets=Y[:2])
    with pytest.raises(FactoryError, match=r"make\(4\) fails: ZeroDivisionError.*at test_simulate.py:"):
        simulate(lambda n: 1 / 0, X, width=4)
    with pytest.raises(FactoryError, match="must return"):
        simulate(lambda n: 3, X, width=4)
    with pytest.raises(UsageError, match="finished model"):
        simulate(Net(4), X, width=4)


def test_a_buffer_set_anew_changes_once_a_step():
    class Growing(nn.Module):
        def __init__(self, n: int, in_place: bool) -> None:
            super().__init__()
            self.weight, self.in_place = nn.Parameter(torch.ones(1, 2) / n), in_place
            self.register_buffer("factor", torch.tensor(1.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if self.in_place:
                self.get_buffer("factor").mul_(2)
            else:
                self.factor = self.factor * 2
            return self.factor * x @ self.weight.T

    x, sgd = torch.eye(2), lambda p: torch.optim.SGD(p, lr=0.1)
    data = (x, torch.ones(2, 1), nn.functional.mse_loss, sgd, 2)
    a, b = (simulate(lambda n, f=flag: Growing(n, f), *data, width=4, activations=()) for flag in (True, False))
    assert torch.equal(a.outputs, b.outputs)
