"""Kernels at the edge of the numbers: coincident, opposite, zero, tiny and huge inputs, and deep networks."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernel import relu_kernels, scaled_mlp
from torch import Tensor

import tpcompile as tp

ACTS = {"relu": torch.relu, "erf": torch.erf, "abs": torch.abs}
EPS = torch.finfo(torch.float64).eps


@functools.cache
def kernel(act: str, depth: int, bias: float) -> tp.Kernel:
    return tp.kernel(scaled_mlp(ACTS[act], depth, b=bias), torch.zeros(3))


@st.composite
def edge_inputs(draw: st.DrawFn) -> Tensor:
    """Directions, copies of them, opposites, zero, and the same at lengths from 1e-8 to 1e8."""
    entries = st.floats(-2, 2, allow_subnormal=False).filter(lambda v: v == 0 or abs(v) > 1e-3)
    base = torch.tensor(draw(st.lists(st.tuples(entries, entries, entries), min_size=2, max_size=3))).double()
    scales = draw(st.lists(st.sampled_from([1e-8, 1.0, 1e8]), min_size=2, max_size=3))
    scaled = [base[i % len(base)] * s for i, s in enumerate(scales)]
    return torch.stack([*base, base[0], -base[0], torch.zeros(3).double(), *scaled])


def correlations(matrix: Tensor) -> Tensor:
    """A kernel with its rows and columns scaled to a diagonal of ones (zero rows stay)."""
    root = matrix.diagonal().sqrt()
    scale = torch.where(root > 0, 1 / root, 0.0)
    return matrix * scale[:, None] * scale[None, :]


@settings(max_examples=8, deadline=None, derandomize=True)
@given(edge_inputs(), st.sampled_from(list(ACTS)), st.sampled_from([0.0, 0.1]))
def test_finite_symmetric_and_positive(x: Tensor, act: str, bias: float) -> None:
    """Tiny inputs beside a bias are almost equal, and known as those are (see below)."""
    almost_equal = bias > 0 and bool(((x.norm(dim=1) > 0) & (x.norm(dim=1) < 1e-6)).any()) and act != "erf"
    healthy(kernel(act, 2, bias), x, nngp=64 * EPS, ntk=EPS**0.5 if almost_equal else 64 * EPS)


def healthy(k: tp.Kernel, x: Tensor, nngp: float, ntk: float) -> None:
    """Finite, symmetric, diagonal alike, correlations of at most one, no eigenvalue below zero: to these roundings."""
    for get, rounding in (("nngp", nngp), ("ntk", ntk)):
        found = k(x, get=get)
        assert torch.isfinite(found).all()
        assert torch.equal(found, found.T)
        assert torch.equal(found.diagonal(), k(x, get=get, diagonal=True))
        scaled = correlations(found)
        assert float(scaled.abs().max()) <= 1 + rounding
        assert float(torch.linalg.eigvalsh(scaled).min()) >= -rounding * len(x)


SMOOTH = {"silu": F.silu, "tanh": torch.tanh, "softplus": F.softplus, "gelu": lambda h: F.gelu(h, approximate="tanh")}
RARE = pytest.mark.slow


@pytest.mark.parametrize("act", ["tanh", *(pytest.param(x, marks=RARE) for x in SMOOTH if x != "tanh")])
@pytest.mark.parametrize("depth", [1, pytest.param(3, marks=RARE)])
def test_quadrature_at_all_lengths(act: str, depth: int) -> None:
    """Functions without closed forms, by panels where lengths are large; their stated error is 1e-10."""
    d = torch.tensor([[0.3, -0.5, 0.8], [-0.6, 0.1, 0.4]], dtype=torch.float64)
    x = torch.cat([d[:1], d[:1], -d[:1], 0 * d[:1], 1e8 * d, 1e-8 * d[1:]])
    healthy(tp.kernel(scaled_mlp(SMOOTH[act], depth), torch.zeros(3)), x, nngp=1e-10, ntk=1e-10)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("length", [1e-8, 1.0])
def test_almost_equal_inputs(act: str, length: float) -> None:
    """A correlation is known to a few units of rounding, and the slope of a kink at it to their root.

    Nothing that is computed from inner products does better: those of inputs that differ by the root of the precision
    are those of equal ones. For error functions of lengths of 1e8, which are steps there, the same holds.
    """
    generator = torch.Generator().manual_seed(0)
    base, noise = torch.randn(2, 3, 3, dtype=torch.float64, generator=generator)
    x = length * torch.cat([base, base + 1e-8 * noise, base * (1 + 1e-9), -base + 1e-7 * noise, base + 1e-5 * noise])
    for bias in (0.0, 0.1):
        healthy(kernel(act, 3, bias), x, nngp=64 * EPS, ntk=64 * EPS if act == "erf" else EPS**0.5)


@settings(max_examples=5, deadline=None, derandomize=True)
@given(edge_inputs(), st.sampled_from(list(ACTS)))
def test_derivatives_are_finite_at_coincident_inputs(x: Tensor, act: str) -> None:
    k = kernel(act, 2, 0.1)
    moved = x.clone().requires_grad_()
    for get in ("nngp", "ntk"):
        value = k(moved, get=get)
        torch.testing.assert_close(value.detach(), k(x, get=get), rtol=1e-9, atol=1e-12)
        (slope,) = torch.autograd.grad(value.sum(), moved)
        assert torch.isfinite(slope).all()


def test_derivatives_through_quadrature() -> None:
    """Of a kernel without a closed form, against differences."""
    x = torch.tensor([[0.3, -0.5, 0.8], [0.3, -0.5, 0.8], [-0.6, 0.1, 0.4]], dtype=torch.float64)
    k = tp.kernel(scaled_mlp(torch.erf, 2), torch.zeros(3))
    moved = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(k.ntk(moved)[0, 2], moved)
    step = torch.zeros_like(x)
    step[0, 1] = 1e-5
    expected = (k.ntk(x + step)[0, 2] - k.ntk(x - step)[0, 2]) / 2e-5
    assert float(slope[0, 1]) == pytest.approx(float(expected), rel=1e-6)


def test_a_hundred_layers() -> None:
    r = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.cat([r, r[:1], -r[:1]])
    k = kernel("relu", 100, 0.1)
    nngp = k.nngp(x)
    torch.testing.assert_close(nngp, relu_kernels(x, 100, 2.0, 0.1)[0], rtol=1e-11, atol=0)
    assert torch.equal(nngp, nngp.T)
    moved = x.clone().requires_grad_()
    (slope,) = torch.autograd.grad(k.nngp(moved).sum(), moved)
    assert torch.isfinite(slope).all()


@pytest.mark.parametrize("depth", [20, pytest.param(100, marks=pytest.mark.slow)])
def test_the_tangent_kernel_of_many_layers(depth: int) -> None:
    """Deep enough that parities of the variation's summands are joined."""
    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    k = kernel("relu", depth, 0.1)
    found = k.ntk(x)
    torch.testing.assert_close(found, relu_kernels(x, depth, 2.0, 0.1)[1], rtol=1e-11, atol=0)
    assert torch.equal(found, found.T)
    moved = torch.cat([x, x[:1], -x[:1]]).requires_grad_()
    (slope,) = torch.autograd.grad(k.ntk(moved).sum(), moved)
    assert torch.isfinite(slope).all()


def test_the_error_of_a_quadrature_reaches_the_forms() -> None:
    x = torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    k = tp.kernel(scaled_mlp(lambda h: torch.tanh(h) / (1 + torch.exp(h))), torch.zeros(3))
    k.nngp(x)
    errors = [e for name, e in k.forms if name.startswith("quadrature") and e is not None]  # None: of the other copy
    assert errors
    assert max(errors) < 1e-9
