"""``tp.kernel`` of layers of every kind against the kernels of finite networks.

Tangent kernels are means over seeds at width 512; covariances are means over many narrower networks. Both differ from
the limit by O(1/n), which is below the standard errors that they are compared with.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.tangent import tangent_kernel

WIDTH, SEEDS = 384, 12


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape))


class Base(nn.Module):
    """Parameters of the NTK parametrization and its linear map."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.u, self.w, self.v = parameter(n, 3), parameter(n, n), parameter(n, n)
        self.b, self.o = parameter(n), parameter(1, n)
        self.norm = nn.LayerNorm(n)

    def lin(self, weight: Tensor, x: Tensor) -> Tensor:
        return x @ weight.T * weight.shape[1] ** -0.5


class Residual(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.lin(self.u, x)
        h = h + self.lin(self.w, torch.relu(h)) + 0.3 * self.b
        return self.lin(self.o, h + torch.tanh(self.lin(self.v, h)))


class Gated(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.lin(self.u, x)
        return self.lin(self.o, self.lin(self.w, h) * F.silu(self.lin(self.v, h)))


class Normalised(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(torch.relu(self.lin(self.u, x) + self.b))
        return self.lin(self.o, F.gelu(self.lin(self.w, h)))


class PostActivation(Base):
    """Its second activation is of a sum of a rectified and a Gaussian value: no two-variable integral."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.lin(self.u, x))
        return self.lin(self.o, torch.relu(h + self.lin(self.w, h)))


class Transposed(Base):
    """A matrix and its transpose in the forward pass: response terms at initialisation."""

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.lin(self.w, self.lin(self.u, x)))
        return self.lin(self.o, torch.relu(self.lin(self.w.T, h)))


class Recurrent(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.b)
        for t in range(3):
            h = torch.tanh(self.lin(self.u, x[:, t]) + self.lin(self.w, h))
        return self.lin(self.o, h)


class Convolutional(nn.Module):
    pooled = False

    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.first, self.second = parameter(n, 2, 3, 3), parameter(n, n, 3, 3)
        self.o = parameter(1, n if self.pooled else 16 * n)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(F.conv2d(x, self.first, padding=1) * 18**-0.5)
        h = torch.relu(F.conv2d(h, self.second, padding=1) * (9 * self.n) ** -0.5)
        h = h.mean((-1, -2)) if self.pooled else h.flatten(1)
        return h @ self.o.T * h.shape[1] ** -0.5


class Pooled(Convolutional):
    pooled = True


class Attention(Base):
    """Two heads of growing size with tied queries and keys and logits over the head size: deterministic weights."""

    power = 1.0

    def heads(self, weight: Tensor, h: Tensor) -> Tensor:
        batch, length, _ = h.shape
        return self.lin(weight, h).view(batch, length, 2, self.n // 2).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.lin(self.u, x))
        key = self.w if self.power == 1.0 else self.get_parameter("key")
        logits = self.heads(self.w, h) @ self.heads(key, h).transpose(-1, -2) * (self.n // 2) ** -self.power
        out = torch.softmax(logits, -1) @ self.heads(self.v, h)
        return self.lin(self.o, out.transpose(1, 2).reshape(*h.shape).mean(1))


class RandomAttention(Attention):
    """Logits over the root of the head size: Gaussian at initialisation."""

    power = 0.5

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.key = parameter(n, n)


class Tokens(nn.Module):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n = n
        self.embedding = nn.Embedding(7, n)
        self.position, self.w, self.o = parameter(3, n), parameter(n, n), parameter(1, n)

    def forward(self, x: Tensor) -> Tensor:
        h = self.embedding(x) + self.position
        return torch.relu(h @ self.w.T * self.n**-0.5).mean(1) @ self.o.T * self.n**-0.5


MODELS: dict[str, tuple[Callable[[int], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, (3,)),
    "gated": (Gated, (3,)),
    "layer norm": (Normalised, (3,)),
    "post-activation residual": (PostActivation, (3,)),
    "a matrix and its transpose": (Transposed, (3,)),
    "recurrent": (Recurrent, (3, 3)),
    "convolution": (Convolutional, (2, 4, 4)),
    "pooled convolution": (Pooled, (2, 4, 4)),
    "attention": (Attention, (3, 3)),
    "attention with random logits": (RandomAttention, (3, 3)),
    "tokens": (Tokens, ()),
}


def inputs(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    if name == "tokens":
        return torch.randint(0, 7, (3, 3), generator=generator)
    return torch.randn(3, *MODELS[name][1], generator=generator, dtype=torch.float64)


def seeded(make: Callable[[int], nn.Module], width: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    return make(width).double()


@pytest.mark.slow
@pytest.mark.parametrize("name", list(MODELS))
def test_against_finite_networks(name: str) -> None:
    """Deviations in standard errors: bounds that a right kernel exceeds with a probability of about 1e-4 a model."""
    make, x = MODELS[name][0], inputs(name)
    kernel = tp.kernel(make, x[0].float() if x.is_floating_point() else x[0])
    assert kernel.nngp_exponent == kernel.ntk_exponent == 0
    (nngp, ntk), (nngp_error, ntk_error) = kernel(x, errors=True, dtype=torch.float64)
    found = torch.stack(
        [
            sum(tangent_kernel(m, x, {p: 1.0 for p, _ in m.named_parameters()}).values())[:, :, 0, 0]  # type: ignore[index]
            for m in (seeded(make, WIDTH, seed) for seed in range(SEEDS))
        ]
    )
    error = (found.var(0) / SEEDS + ntk_error**2).sqrt()
    assert float(((found.mean(0) - ntk) / error).abs().max()) < 4.5 + 2.0  # Student's t with 11 degrees of freedom
    outputs = torch.stack([seeded(make, 192, seed)(x).detach()[:, 0] for seed in range(1500)])
    products = outputs[:, :, None] * outputs[:, None, :]
    error = (products.var(0) / len(outputs) + nngp_error**2).sqrt()
    assert float(((products.mean(0) - nngp) / error).abs().max()) < 4.5
