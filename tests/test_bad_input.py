"""Whatever is wrong, the user gets one of our errors, and it names the place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import tpcompile as tp
from tpcompile.capture import capture, tap
from tpcompile.errors import CaptureError, FactoryError, TpcompileError, UsageError
from tpcompile.laws import Normal

X, Y = torch.linspace(-1, 1, 15).reshape(5, 3), torch.linspace(0, 1, 10).reshape(5, 2)


def mlp(n: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, n), nn.Tanh(), nn.Linear(n, 2))


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.1)


def factory_of(forward: Callable[[Any, torch.Tensor], Any]) -> Callable[[int], nn.Module]:
    """A model with layers ``fc`` and ``out`` and the given forward."""

    class Model(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            self.n, self.fc, self.out = n, nn.Linear(3, n), nn.Linear(n, 2)
            self.drop = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> Any:
            return forward(self, x)

    return Model


def refused(kind: type[TpcompileError], *parts: str, make: Any = mlp, inputs: Any = X, **arguments: Any) -> None:
    """Capture must raise ``kind`` with every part in its message, on one line, and say where."""
    with pytest.raises(kind) as caught:
        capture(make, inputs, **arguments)
    message = str(caught.value)
    assert caught.value.where
    assert "\n" not in message
    for part in parts:
        assert part in message, message


def training(**changes: Any) -> dict[str, Any]:
    return {"targets": Y, "loss": F.mse_loss, "optimizer": sgd, "steps": 1} | changes


def half_written(m: Any, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(h := m.fc(x))
    out[0] = h[0]
    return m.out(out)


NAN = torch.where(torch.arange(15).reshape(5, 3) == 7, torch.nan, X)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"inputs": NAN}, ["inputs", "[2, 1]"]),
        ({"inputs": X / 0}, ["inputs", "finite"]),
        ({"targets": Y / 0}, ["targets", "finite"]),
        ({"inputs": X[:0], "targets": Y[:0]}, ["inputs", "empty"]),
        ({"inputs": X.long()}, ["inputs", "int64", "float32"]),
        ({"inputs": X.to(torch.complex64)}, ["inputs", "complex"]),
        ({"inputs": X.to_sparse()}, ["inputs", "sparse"]),
        ({"inputs": [[1.0, 2.0]]}, ["inputs[0]", "list"]),
        ({"inputs": "x"}, ["inputs", "str"]),
        ({"inputs": torch.tensor(1.0)}, ["inputs", "batch"]),
        ({"inputs": X[:4]}, ["4 examples", "targets has 5"]),
        ({"inputs": [X, X], "targets": [Y, Y]}, ["inputs", "2", "1 training steps"]),
        ({"inputs": [X]}, ["targets"]),
        ({"inputs": [X], "targets": [Y[:3]]}, ["targets"]),
        ({"inputs": [X, X[:, :2]], "targets": [Y, Y], "steps": 2}, ["inputs[1]"]),
        ({"targets": None}, ["targets"]),
        ({"steps": -1}, ["steps", "-1"]),
        ({"steps": 1.0}, ["steps", "float"]),
        ({"steps": True}, ["steps", "bool"]),
        ({"inputs": X.to("meta")}, ["inputs", "meta"]),
        ({"loss": None}, ["loss", "1 steps"]),
        ({"loss": "mse"}, ["loss", "str"]),
        ({"loss": lambda o, y: (o - y) ** 2}, ["the loss", "(5, 2)", "scalar"]),
        ({"loss": lambda o, y: 1.0}, ["the loss", "float"]),
        ({"optimizer": None}, ["optimizer"]),
        ({"optimizer": "sgd"}, ["optimizer", "str"]),
        ({"optimizer": sgd([nn.Parameter(X)])}, ["optimizer", "SGD", "callable"]),
        ({"optimizer": lambda p: 3}, ["optimizer", "int"]),
        ({"optimizer": lambda p: 1 / 0}, ["optimizer", "ZeroDivisionError"]),
        ({"test_inputs": X[:, :2]}, ["test_inputs", "(5, 2)"]),
        ({"test_inputs": 3}, ["test_inputs", "int"]),
        ({"make": mlp(3)}, ["make", "finished model", "Sequential", "lambda width"]),
        ({"make": None}, ["make", "NoneType"]),
        ({"make": lambda n: (m := mlp(n), sgd(m.parameters()))}, ["optimizer", "factory"]),
        ({"widths": (16, 32)}, ["widths", "three"]),
        ({"widths": 16}, ["widths", "16"]),
        ({"init": {"nope": Normal(1.0)}}, ["nope", "init"]),
        ({"init": {"0.weight": 1.0}}, ["0.weight", "float"]),
    ],
)
def test_bad_arguments(changes: dict[str, Any], parts: list[str]) -> None:
    refused(UsageError, *parts, **training(**changes))


def fails_at_32(n: int) -> nn.Module:
    if n == 32:
        raise ValueError("bad width")
    return mlp(n)


def deeper_when_wide(n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(3, n), *(nn.Tanh() for _ in range(2 if n > 20 else 1)), nn.Linear(n, 2))


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (lambda n: mlp(8), ["make", "ignores the width"]),
        (lambda n: 3, ["make", "int"]),
        (lambda n: (mlp(n), 3), ["make", "tuple"]),
        (fails_at_32, ["width 32", "bad width", "widths="]),
        (lambda n: nn.Sequential(nn.Linear(3, n + 1), nn.Linear(n + 1, 2)), ["0.weight", "width 16: (17, 3)"]),
        (lambda n: nn.Sequential(nn.Linear(3, n // 3), nn.Linear(n // 3, 2)), ["0.weight", "proportional"]),
        (lambda n: nn.Sequential(nn.Linear(3, min(n, 32)), nn.Linear(min(n, 32), 2)), ["0.weight", "width 64"]),
        (lambda n: nn.Sequential(*(nn.Linear(3, n) if n < 20 else nn.Identity() for _ in range(1))), ["0.bias"]),
        (deeper_when_wide, ["2.", "width"]),
        (lambda n: nn.Linear(3, n), ["output grows"]),
        (factory_of(lambda m, x: m.out(m.fc(x)) / m.n.bit_length()), ["aten.div", "forward", "test_bad_input.py"]),
        (
            factory_of(lambda m, x: m.out(m.fc(x) if m.n < 20 else torch.tanh(m.fc(x)))),
            ["graph changes", "aten.tanh", "width 32", "step 0"],
        ),
        (factory_of(lambda m, x: m.out(F.pad(m.fc(x), (0, 1))[:, 1:])), ["aten.constant_pad_nd", "not proportional"]),
    ],
)
def test_bad_factories(make: Callable[[int], Any], parts: list[str]) -> None:
    refused(FactoryError, *parts, make=make)


def numpy_forward(model: Any, x: torch.Tensor) -> torch.Tensor:
    return model.out(torch.from_numpy(model.fc(x).detach().numpy()))


def branching(model: Any, x: torch.Tensor) -> torch.Tensor:
    h = model.fc(x)
    if h.sum() > 0:
        h = h * 2
    return model.out(h)


def changes_weight(model: Any, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        model.fc.weight.mul_(0.9)
    return model.out(model.fc(x))


def changes_leaf(model: Any, x: torch.Tensor) -> torch.Tensor:
    model.fc.weight.mul_(0.9)
    return model.out(model.fc(x))


@pytest.mark.parametrize(
    ("forward", "parts"),
    [
        (branching, ["the model's own forward", "step 0", "if tensor"]),
        (lambda m, x: m.out(m.fc(x) * m.fc(x).mean().item()), [".item()", "test_bad_input.py"]),
        (lambda m, x: m.out(m.fc(x)[m.fc(x) > 0].sum() + m.fc(x)), ["aten.", "own forward"]),
        (numpy_forward, ["numpy", "own forward"]),
        (lambda m, x: m.out(m.drop(m.fc(x))), ["module 'drop'", "model.eval()"]),
        (lambda m, x: m.out(m.fc(x) + torch.randn(m.n)), ["aten.randn", "own forward"]),
        (changes_weight, ["parameter 'fc.weight'", "in place"]),
        (changes_leaf, ["in-place", "own forward"]),
        (lambda m, x: m.out(m.fc(x.mul_(2))), ["inputs", "in place"]),
        (lambda m, x: m.out(x), ["module 'out'", "step 0"]),
        (lambda m, x: (m.out(m.fc(x)), x), ["tuple"]),
        (lambda m, x: m.out(m.fc(x)).mean(0), ["batch", "(2,)"]),
        (lambda m, x: torch.complex(m.out(m.fc(x)), m.out(m.fc(x))), ["complex"]),
        (lambda m, x: 1 // 0, ["ZeroDivisionError", "own forward"]),
        (half_written, ["NaN", "torch.empty", "own forward, step 0"]),
        (lambda m, x: m.out(F.linear(m.fc(x), nn.Parameter(torch.zeros(m.n, m.n)))), ["does not own"]),
    ],
)
def test_models_that_cannot_be_traced(forward: Callable[..., Any], parts: list[str]) -> None:
    refused(CaptureError, *parts, make=factory_of(forward), **training())


def test_bad_optimizers() -> None:
    other = nn.Linear(2, 2)
    refused(CaptureError, "optimizer", "(2, 2)", **training(optimizer=lambda p: sgd(other.parameters())))
    refused(CaptureError, "optimizer", "LBFGS", **training(optimizer=torch.optim.LBFGS))

    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = mlp(n)
        return model, torch.optim.SGD(model.parameters(), lr=0.1 + 1 / n)

    refused(FactoryError, "0.weight", "c * n^e", make=make, **training(optimizer=None))


def test_loss_problems_in_the_trace() -> None:
    refused(CaptureError, "the loss", "IndexError", **training(targets=torch.full((5,), 9), loss=F.cross_entropy))
    refused(CaptureError, "backward", "depend", **training(loss=lambda o, y: (y**2).mean()))
    refused(
        CaptureError, "the loss", "(5, 2)", **training(targets=Y[:, :1].expand(5, 3), loss=lambda o, y: (o @ y).sum())
    )


def test_frozen_model() -> None:
    refused(CaptureError, "depend", make=lambda n: mlp(n).requires_grad_(False), **training())


def test_lazy_and_complex_parameters() -> None:
    refused(CaptureError, "0.weight", "lazy", make=lambda n: nn.Sequential(nn.LazyLinear(n), nn.Linear(n, 2)))
    refused(CaptureError, "0.weight", "complex", make=lambda n: nn.Sequential(nn.Linear(3, n, dtype=torch.cfloat)))


@pytest.mark.parametrize("wrap", [torch.jit.script, lambda m: torch.jit.trace(m, X), nn.DataParallel])
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_wrapped_modules(wrap: Callable[[nn.Module], nn.Module]) -> None:
    refused(CaptureError, "cannot be traced", make=lambda n: wrap(mlp(n)), **training())


@pytest.mark.parametrize("name", ["register_hook", "register_post_accumulate_grad_hook"])
def test_hooks_on_gradients(name: str) -> None:
    def make(n: int) -> nn.Module:
        model = mlp(n)
        getattr(model[0].weight, name)(lambda value: None)
        return model

    refused(CaptureError, "'0.weight'", "hook", make=make, **training())


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_nested_and_quantized_inputs() -> None:
    refused(UsageError, "nested", inputs=torch.nested.nested_tensor([X[0], X[1]]))
    refused(UsageError, "quantized", inputs=torch.quantize_per_tensor(X, 0.1, 0, torch.qint8))


def test_attributes_that_change_from_call_to_call() -> None:
    class Counting(nn.Module):
        def __init__(self, n: int, counts: bool) -> None:
            super().__init__()
            self.inner, self.counts, self.calls, self.size = mlp(n), counts, 1, 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.calls += self.counts
            self.size = len(x)
            return self.inner(x) * self.calls

    refused(CaptureError, "'calls'", "from 2 to 3", make=lambda n: Counting(n, True), **training())
    capture(lambda n: Counting(n, False), X, **training(), test_inputs=X[:2])  # an attribute may be set


def test_steps_that_are_no_number() -> None:
    with pytest.raises(UsageError, match="steps must be an int"):
        tp.compile(mlp, X, Y, F.mse_loss, sgd, steps="2")  # pyright: ignore[reportArgumentType]


def test_bfloat16_data_and_a_model_of_half_precision() -> None:
    plain = tp.compile(mlp, X.bfloat16().float(), Y, F.mse_loss, sgd, steps=0)
    for dtype in (torch.bfloat16, torch.float16):
        made = tp.compile(
            lambda n, d=dtype: mlp(n).to(d), X.bfloat16().to(dtype), Y.to(dtype), F.mse_loss, sgd, steps=0
        )
        a, b = (c.evaluate(particles=256, replicas=1).kernels["1"] for c in (plain, made))
        assert torch.allclose(a, b, atol=1e-3)


def test_no_tangent_of_batch_norm_in_training() -> None:
    make = lambda n: nn.Sequential(nn.Linear(3, n), nn.BatchNorm1d(n), nn.Linear(n, 2))
    refused(CaptureError, "per-sample Jacobian", "'1'", make=make, tangent=True)


def test_tap_checks_its_arguments() -> None:
    with pytest.raises(UsageError, match="tensor"):
        tap(3, "a")  # pyright: ignore[reportArgumentType]
    with pytest.raises(UsageError, match="name"):
        tap(X, "")
    assert tap(X, "a") is X


def test_an_undefined_branch_of_where_is_named() -> None:
    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = factory_of(lambda m, x: m.out(torch.where((h := m.fc(x)) > 0, h.log(), 0.0)) / m.n)(n)
        for p in model.parameters():
            nn.init.normal_(p)
        return model, torch.optim.SGD(model.parameters(), lr=0.1 * n)

    with pytest.raises(TpcompileError, match=r"where\(\) does not take"):
        tp.compile(make, X, Y, F.mse_loss, steps=1).evaluate(particles=256, replicas=1)
