"""What PyTorch really traces of every activation: each operation that the registry knows is replaced by its record."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx
from torch.fx.experimental.proxy_tensor import make_fx

from tpcompile import nonlin

ACTIVATIONS = {
    "relu": F.relu,
    "relu_": lambda x: F.relu(x.clone(), inplace=True),
    "tanh": torch.tanh,
    "gelu": F.gelu,
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "softplus beta": lambda x: F.softplus(x, 2.0, 3.0),
    "leaky_relu": lambda x: F.leaky_relu(x, 0.2),
    "leaky_relu_": lambda x: F.leaky_relu(x.clone(), 0.2, inplace=True),
    "elu": lambda x: F.elu(x, 2.0),
    "elu_": lambda x: F.elu(x.clone(), 2.0, inplace=True),
    "celu": lambda x: F.celu(x, 2.0),
    "celu_": lambda x: F.celu(x.clone(), 2.0, inplace=True),
    "selu": F.selu,
    "erf": torch.erf,
    "erfc": torch.erfc,
    "ndtr": torch.special.ndtr,
    "sin": torch.sin,
    "cos": torch.cos,
    "atan": torch.atan,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "asinh": torch.asinh,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "2**x": lambda x: 2.0**x,
    "abs": torch.abs,
    "sign": torch.sign,
    "square": torch.square,
    "x**3": lambda x: x**3,
    "x**2.5": lambda x: x**2.5,
    "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt,
    "1/x": lambda x: 1 / x,
    "log": torch.log,
    "log2": torch.log2,
    "log10": torch.log10,
    "log1p": torch.log1p,
    "softsign": F.softsign,
    "tanhshrink": F.tanhshrink,
    "hardtanh": F.hardtanh,
    "relu6": F.relu6,
    "clamp": lambda x: torch.clamp(x, 0.2, 0.5),
    "clamp min": lambda x: torch.clamp(x, min=0.3),
    "clamp_min": lambda x: torch.clamp_min(x, 0.3),
    "clamp_max": lambda x: torch.clamp_max(x, 0.3),
    "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid,
    "mish": F.mish,
    "logsigmoid": F.logsigmoid,
    "hardshrink": F.hardshrink,
    "softshrink": F.softshrink,
    "threshold": lambda x: F.threshold(x, 0.3, 2.0),
}
# operations of the traces that are no pointwise function of one tensor: arithmetic, constants, selection
OTHERS = {
    "aten.add.Scalar",
    "aten.add.Tensor",
    "aten.clone.default",
    "aten.div.Tensor",
    "aten.empty_like.default",
    "aten.fill.Scalar",
    "aten.ge.Scalar",
    "aten.le.Scalar",
    "aten.logical_and.default",
    "aten.mul.Scalar",
    "aten.mul.Tensor",
    "aten.neg.default",
    "aten.scalar_tensor.default",
    "aten.sub.Tensor",
    "aten.where.self",
    "aten.zeros_like.default",
}


class ThroughTheRegistry(fx.Interpreter):
    """Runs a traced graph with every registered operation replaced by its record."""

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        name, expected = str(target), super().call_function(target, args, kwargs)
        if call := nonlin.bind(name, args, kwargs):
            value = nonlin.evaluate(call.nonlinearity.name, call.x, **call.parameters)
            if name in call.nonlinearity.tuple_targets:
                value, expected = (value, *expected[1:]), (expected[0], *expected[1:])
        elif back := nonlin.bind_backward(name, args, kwargs):
            value = back.grad * back.factor(nonlin.evaluate)
        else:
            assert name in OTHERS or "getitem" in name, f"{name} is not covered"
            return expected
        torch.testing.assert_close(value, expected)
        return value


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_what_pytorch_traces_is_covered(name: str) -> None:
    function = ACTIVATIONS[name]

    def forward_and_backward(x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
        y, pull, *_ = torch.func.vjp(function, x)
        return y, pull(grad)[0]

    x = torch.rand(64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 0.05
    x = x if name in ("sqrt", "rsqrt", "log", "log2", "log10", "log1p", "x**2.5") else 4 * x - 2
    grad = torch.randn(64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    graph = make_fx(torch.func.functionalize(forward_and_backward, remove="mutations_and_views"))(x, grad)
    assert isinstance(graph, fx.GraphModule)
    torch.testing.assert_close(ThroughTheRegistry(graph).run(x, grad), forward_and_backward(x, grad))
