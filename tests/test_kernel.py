"""``tp.kernel``: closed forms, and the finite network's own kernels."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import kernel_specs
import pytest
import torch
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.errors import CaptureError
from tpcompile.kernels import plan


def scaled_mlp(
    act: Callable[[Tensor], Tensor], depth: int = 2, *, d: int = 3, k: int = 2, w: float = 2.0, b: float = 0.1
) -> Callable[[int], nn.Module]:
    """An MLP in the NTK parametrization: weight variance ``w`` over the fan-in, bias variance ``b``, as multipliers."""

    class Net(nn.Module):
        def __init__(self, n: int) -> None:
            super().__init__()
            sizes = [d, *[n] * depth, k]
            self.weights = nn.ParameterList([torch.randn(o, i) for i, o in itertools.pairwise(sizes)])
            self.biases = nn.ParameterList([torch.randn(o) for o in sizes[1:]])

        def forward(self, x: Tensor) -> Tensor:
            for i, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
                x = x if i == 0 else act(x)
                x = x @ weight.T * math.sqrt(w / weight.shape[1]) + math.sqrt(b) * bias
            return x

    return Net


def relu_kernels(x: Tensor, depth: int, w: float, b: float) -> tuple[Tensor, Tensor]:
    """Cho & Saul (2009) and Jacot et al. (2018), written out."""
    k = w * x @ x.T / x.shape[1] + b
    theta = k
    for _ in range(depth):
        scale = k.diagonal().outer(k.diagonal()).sqrt()
        angle = torch.arccos((k / scale).clamp(-1, 1))
        dual = scale / (2 * math.pi) * (angle.sin() + (math.pi - angle) * angle.cos())
        slope = (math.pi - angle) / (2 * math.pi)
        k = w * dual + b
        theta = k + w * theta * slope
    return k, theta


def test_relu_against_the_recursion_of_the_papers() -> None:
    x = torch.randn(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for depth in (1, 4):
        kernel = tp.kernel(scaled_mlp(torch.relu, depth), torch.zeros(3))
        nngp, ntk = kernel(x)
        expected = relu_kernels(x, depth, 2.0, 0.1)
        torch.testing.assert_close(nngp, expected[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(ntk, expected[1], rtol=1e-12, atol=1e-12)
        assert kernel.nngp_exponent == kernel.ntk_exponent == 0


def test_blocks_triangles_and_diagonals_agree() -> None:
    x = torch.randn(9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    kernel = tp.kernel(scaled_mlp(torch.tanh), torch.zeros(3))
    whole = kernel.ntk(x)
    torch.testing.assert_close(kernel.ntk(x, block=4), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernel.ntk(x, x), whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(kernel.ntk(x, diagonal=True), whole.diagonal(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(kernel.ntk(x[:2], x), whole[:2], rtol=1e-9, atol=1e-9)


class PooledBias(nn.Module):
    """The mean over positions of a sum of which one part does not depend on the position."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(n, 3)), nn.Parameter(torch.randn(n))
        self.readout = nn.Parameter(torch.randn(1, n))

    def forward(self, x: Tensor) -> Tensor:
        h = x @ self.weight.T + self.bias
        return h.mean(1) @ self.readout.T * self.readout.shape[1] ** -0.5


def test_a_mean_over_positions_counts_what_does_not_depend_on_them() -> None:
    x = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    nngp, ntk = tp.kernel(PooledBias, torch.zeros(5, 3))(x)
    mean = x.mean(1)
    torch.testing.assert_close(nngp, mean @ mean.T + 1, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(ntk, 2 * (mean @ mean.T + 1), rtol=1e-12, atol=1e-12)


def test_the_derivative_of_an_error_function_has_a_closed_form() -> None:
    k = tp.kernel(kernel_specs.make(kernel_specs.deep(2, kernel_specs.ERF, 1.4, 0.1), (3,)), torch.zeros(3))
    k.ntk(torch.randn(2, 3, generator=torch.Generator().manual_seed(0)))
    assert "closed: Gaussian x Gaussian" in [form for form, _ in k.forms]
    assert all(form.startswith("closed") for form, _ in k.forms)


def test_one_trace_serves_both_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is traced once for NNGP and tangent kernel; without a derivative it still has an NNGP."""
    traced: list[bool] = []
    original = plan.capture

    def counted(*args: Any, variation: bool, **options: Any) -> Any:
        traced.append(variation)
        if failing and variation:
            raise CaptureError("no derivative", where="here")
        return original(*args, variation=variation, **options)

    monkeypatch.setattr(plan, "capture", counted)
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    failing = False
    whole = tp.kernel(scaled_mlp(torch.relu), x[0])
    expected = whole(x)
    assert traced == [True]
    assert not any("direction" in str(node.op) for node in whole.program_of("nngp").nodes)
    failing = True
    partial = tp.kernel(scaled_mlp(torch.relu), x[0])
    torch.testing.assert_close(partial.nngp(x), expected.nngp, rtol=0, atol=0)
    with pytest.raises(CaptureError, match="no derivative"):
        partial.ntk(x)
