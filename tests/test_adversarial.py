"""Models made to break the compiler: correlated, tied and degenerate weights, odd losses, random abc-parametrizations.

Each limit is compared with the mean over seeds of the same model at a finite width, in standard errors, or
with a closed form.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tpcompile as tp
from tpcompile.errors import TpcompileError, UnstableError

G = torch.Generator().manual_seed(0)
X, Y = torch.randn(3, 4, generator=G), torch.randn(3, 1, generator=G)
SEQUENCE, SEQUENCE_Y = torch.randn(2, 3, 4, generator=G), torch.randn(2, 3, 1, generator=G)
SIGNS, BITS, CLASSES = (
    torch.tensor([[1.0], [-1.0], [1.0]]),
    torch.tensor([[0.0], [1.0], [1.0]]),
    torch.tensor([0, 2, 1]),
)
T = torch.tanh


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small networks are slower on several threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Model(nn.Module):
    """Named parameters and a forward function of them."""

    def __init__(self, forward: Callable[[Any, Tensor], Tensor], **parameters: Tensor) -> None:
        super().__init__()
        self.function = forward
        for name, value in parameters.items():
            setattr(self, name, nn.Parameter(value))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def mup(
    forward: Callable[[Any, Tensor], Tensor],
    *,
    ratio: float = 1,
    k: int = 1,
    lr: float = 0.3,
    extra: Any = None,
    **sgd: Any,
) -> Callable[[int], Any]:
    """U (n, 4), W (ratio n, n), v (k, n of the readout) in muP; ``extra(n)`` are more parameters, vectors by name."""

    def make(n: int) -> Any:
        parameters = {
            "U": torch.randn(n, 4) / 2,
            "W": torch.randn(int(ratio * n), n) / n**0.5,
            "v": torch.randn(k, n) / n,
            **(extra(n) if extra else {}),
        }
        model = Model(forward, **parameters)
        groups = []
        for p in model.parameters():
            power = {("n", 4): 1, ("n",): 1, (1, "n"): -1, (k, "n"): -1}.get(
                tuple("n" if d == n else d for d in p.shape), 0
            )
            groups.append({"params": [p], "lr": lr * n**power})
        return model, torch.optim.SGD(groups, lr=lr, **sgd)

    return make


def plain(m: Any, x: Tensor) -> Tensor:
    return T(T(x @ m.U.T) @ m.W.T) @ m.v.T


def tied(m: Any, x: Tensor) -> Tensor:
    h = T(x @ m.U.T)
    c = T(T(T(h @ m.W.T) @ m.W + h) @ m.W.T)
    return c @ m.W @ m.v.T


def symmetric(m: Any, x: Tensor) -> Tensor:
    h = T(T(x @ m.U.T) @ (m.W + m.W.T))
    return T(h @ (m.W + m.W.T)) @ m.v.T


def embedding(m: Any, x: Tensor) -> Tensor:
    h = x @ m.U.T
    return (h + T(h @ m.W.T)) @ m.U / m.U.shape[0]


def rms(m: Any, x: Tensor) -> Tensor:
    h = x @ m.U.T
    h = m.gain * h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-5)
    return T(h @ m.W.T) @ m.v.T


def attention(m: Any, x: Tensor) -> Tensor:
    h = x @ m.U.T
    weights = torch.softmax(h @ m.W.T @ (h @ m.K.T).transpose(1, 2) / m.U.shape[0], -1)
    return T(h + weights @ (h @ m.V.T)) @ m.v.T


def shared_vector(m: Any, x: Tensor) -> Tensor:
    h = m.a * (T(x @ m.U.T) @ m.W.T) + m.a
    return T(h + (h @ m.a)[:, None] / m.U.shape[0] * m.a) @ m.v.T


def over_the_batch(m: Any, x: Tensor) -> Tensor:
    h = T(x @ m.U.T)
    k = T(h @ m.W.T)
    s = torch.softmax(h @ k.T / m.U.shape[0], -1) @ k
    q = (s * h).mean(-1, keepdim=True)
    return T(s * q) @ m.v.T + q


def residual(phi: Callable[[Tensor], Tensor]) -> Callable[[Any, Tensor], Tensor]:
    def forward(m: Any, x: Tensor) -> Tensor:
        h = T(x @ m.U.T)
        return (h + phi(h @ m.W.T)) @ m.v.T

    return forward


def matrices(n: int) -> dict[str, Tensor]:
    return {"K": torch.randn(n, n) / n**0.5, "V": torch.randn(n, n) / n**0.5}


def decayed(n: int) -> Any:
    """Weight decays with powers of n that undo those of the learning rates."""
    model, _ = mup(plain)(n)
    groups = [("U", 0.3 * n, 0.5 / n), ("W", 0.3, 0.5), ("v", 0.3 / n, 0.5 * n)]
    return model, torch.optim.SGD(
        [{"params": [getattr(model, p)], "lr": r, "weight_decay": w} for p, r, w in groups], lr=1.0
    )


CASES: dict[str, tuple[Callable[[int], Any], dict[str, Any]]] = {
    "tied, half as wide": (mup(tied, ratio=0.5), {}),
    "W + W^T twice": (mup(symmetric), {}),
    "readout tied to the embedding": (mup(embedding), {"y": torch.randn(3, 4, generator=G)}),
    "RMS norm by hand": (mup(rms, extra=lambda n: {"gain": torch.ones(n)}), {}),
    "attention 1/d": (mup(attention, extra=matrices, lr=0.2), {"x": SEQUENCE, "y": SEQUENCE_Y}),
    "a vector as gate, bias and rank one": (mup(shared_vector, extra=lambda n: {"a": torch.rand(n)}), {}),
    "dot products of hidden vectors": (mup(over_the_batch), {}),
    "zero readout": (mup(plain, extra=lambda n: {"v": torch.zeros(1, n)}), {"steps": 2}),
    "zero branch, selu": (mup(residual(F.selu), extra=lambda n: {"W": torch.zeros(n, n)}), {"steps": 2}),
    "matrix of non-zero mean": (mup(residual(T), extra=lambda n: {"W": 3 * torch.rand(n, n) / n}), {}),
    "readout of non-zero mean": (mup(residual(F.relu), extra=lambda n: {"v": torch.rand(1, n) / n}), {}),
    "decay by powers of n": (decayed, {"steps": 2}),
    "nesterov": (mup(plain, lr=0.2, momentum=0.9, nesterov=True), {"steps": 2}),
    "cross entropy": (mup(plain, k=3), {"y": CLASSES, "loss": F.cross_entropy}),
    "log cosh": (mup(plain), {"loss": lambda a, b: torch.log(torch.cosh(a - b)).mean()}),
    "hinge": (mup(plain), {"y": SIGNS, "loss": lambda a, b: F.relu(1 - a * b).mean()}),
    "binary cross entropy": (mup(plain), {"y": BITS, "loss": F.binary_cross_entropy_with_logits}),
}


@pytest.mark.parametrize("name", CASES)
def test_mean_of_wide_networks(name: str) -> None:
    """Feature-learning runs: the mean over seeds at width 512 is the limit within 5 standard errors."""
    make, options = CASES[name]
    x, y = options.get("x", X), options.get("y", Y)
    compiled = tp.compile(make, x, y, options.get("loss", F.mse_loss), steps=options.get("steps", 2))
    limit = compiled.evaluate(particles=4096)
    runs = torch.stack([compiled.simulate(512, seed=s).outputs[-1].flatten() for s in range(24)])
    error = (runs.var(0) / len(runs) + limit.outputs_stderr[-1].flatten().square()).sqrt()
    z = (runs.mean(0) - limit.outputs[-1].flatten()) / error
    assert z.abs().max() < 5, (name, limit.outputs[-1].flatten(), runs.mean(0), z)
    assert (limit.outputs[-1] - limit.outputs[0]).abs().max() > 0.02, "nothing was learned: nothing was tested"


def abc(a: list[float], b: list[float], c: float) -> Callable[[int], Any]:
    """A tanh perceptron of two hidden layers."""

    def forward(m: Any, x: Tensor) -> Tensor:
        n = m.w1.shape[0]
        h = m.phi(n ** -a[0] * (x / 2 @ m.w0.T))
        return n ** -a[2] * (m.psi(n ** -a[1] * (h @ m.w1.T)) @ m.w2.T)

    def make(n: int) -> Any:
        shapes = ((n, 4), (n, n), (1, n))
        model = Model(forward, **{f"w{i}": torch.randn(s) * n ** -b[i] for i, s in enumerate(shapes)})
        model.phi, model.psi = nn.Tanh(), nn.Tanh()
        return model, torch.optim.SGD(model.parameters(), lr=0.4 * n**-c)

    return make


def points(count: int) -> list[tuple[list[float], list[float], float]]:
    """Random points that are stable at initialisation, and UP_s for s = 0, 1/4, 1/2 (TP-IV, appendix G)."""
    rng = random.Random(3)
    out = [([s - 0.5, s, 0.5], [0.5 - s, 0.5 - s, 0.5 - s], 0.0) for s in (0, 0.25, 0.5)]
    for _ in range(count):
        a = [rng.choice([-0.5, -0.25, 0, 0.25, 0.5]) for _ in range(2)] + [rng.choice([0, 0.25, 0.5, 0.75, 1])]
        b = [-a[0], 0.5 - a[1], rng.choice([0.5, 0.75, 1]) - a[2]]
        out.append((a, b, rng.choice([-0.5, 0, 0.25, 0.5, 0.75, 1, 1.25])))
    return out


@pytest.mark.parametrize("point", points(16), ids=str)
def test_theorem_of_tensor_programs_iv(point: tuple[list[float], list[float], float]) -> None:
    """Stability (theorem 3.3), triviality (3.4), feature learning (3.6) of abc-parametrizations, quarters included."""
    a, b, c = point
    r = min(a[2] + b[2], 2 * a[2] + c) + c - 1 + min(2 * a[0] + 1, 2 * a[1])
    stable = r >= 0 and 2 * a[2] + c >= 1 and a[2] + b[2] + r >= 1
    if not stable:
        with pytest.raises(UnstableError):
            tp.compile(abc(a, b, c), X, Y, F.mse_loss, steps=2)
        return
    trivial = a[2] + b[2] + r > 1 and 2 * a[2] + c > 1
    compiled = tp.compile(abc(a, b, c), X, Y, F.mse_loss, steps=2)
    limit = compiled.evaluate(particles=256, replicas=2)
    assert (float((limit.outputs[-1] - limit.outputs[0]).abs().max()) < 1e-9) == trivial
    assert compiled.activations == ("phi", "psi")
    assert (float(limit.feature_changes["psi"][-1].max()) > 1e-9) == (r == 0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_degenerate_batches(dtype: torch.dtype) -> None:
    """Repeated, zero and linearly dependent inputs, more of them than dimensions."""
    x = torch.cat(
        [X, X[:1], torch.zeros(1, 4), X[:1] + X[1:2], torch.randn(1, 4, generator=torch.Generator().manual_seed(1))]
    )
    y = torch.sin(x.sum(1, keepdim=True))
    compiled = tp.compile(mup(plain), x, y, F.mse_loss, steps=2)
    limit = compiled.evaluate(particles=1000, dtype=dtype)
    exact = 1e-5 if dtype == torch.float32 else 1e-12
    assert (limit.outputs[:, 0] - limit.outputs[:, 3]).abs().max() < exact
    assert limit.outputs[:, 4].abs().max() < exact
    finer = compiled.evaluate(particles=2048)
    error = (limit.outputs_stderr.square() + finer.outputs_stderr.square()).sqrt()
    assert ((limit.outputs - finer.outputs).abs() < 8 * error + exact).all()
    with pytest.raises(TpcompileError, match="particles"):
        compiled.evaluate(particles=32)


def test_a_random_learnable_scalar() -> None:
    """A temperature drawn from a uniform law: mean and covariance of the outputs over its draws."""

    def forward(m: Any, x: Tensor) -> Tensor:
        return plain(m, m.t * x) * m.t

    compiled = tp.compile(mup(forward, extra=lambda n: {"t": torch.rand(1) + 0.5}), X, Y, F.mse_loss, steps=1)
    limit = compiled.evaluate(particles=512, ensemble=64)
    runs = torch.stack([compiled.simulate(128, seed=s).outputs[-1].flatten() for s in range(80)])
    error = (runs.var(0) / len(runs) + limit.outputs_stderr[-1].flatten().square()).sqrt()
    assert ((runs.mean(0) - limit.outputs[-1].flatten()) / error).abs().max() < 5
    assert limit.outputs_cov is not None
    spread = runs.var(0) / torch.diagonal(limit.outputs_cov[-1])
    assert ((spread > 0.6) & (spread < 1.6)).all()


class InnerProduct(nn.Module):
    """``<W a, W b> / sqrt(n)``: its variance is 2, one from W and one from ``<a, b>``; ``E[psi^2]`` alone gives 1."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.randn(n))
        self.b = nn.Parameter(torch.randn(n))
        self.w = nn.Parameter(torch.randn(n, n) * n**-0.5)
        self.n = n

    def forward(self, x: Tensor) -> Tensor:
        return x * ((self.w @ self.a) * (self.w @ self.b)).sum() / self.n**0.5


def test_a_sum_that_sees_an_earlier_inner_product_is_refused():
    """Its Gaussian limit has more variance than that of its summands: no number rather than a wrong one."""
    with pytest.raises(tp.TpcompileError, match="inner product in an earlier layer"):
        tp.compile(InnerProduct, torch.ones(1, 1)).evaluate(particles=256, replicas=1)
