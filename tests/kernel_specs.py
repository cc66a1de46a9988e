"""Models whose kernels another library knows too: each as a list of layers, built here as plain torch modules.

A layer is a tuple of a name and its numbers. :func:`module` builds it from torch operations in the NTK parametrization
(standard normal parameters, multipliers in the forward pass); ``tests/benchmarks/nt_worker.py`` builds it from the
layers of neural-tangents. This file imports torch only inside :func:`module`, so that both sides can read the lists.

    ("dense", weight std, bias std), ("conv", filter, stride, padding, weight std, bias std), ("pool", window, stride),
    ("norm",), ("flatten",), ("mean",), ("attention", heads, key std, value std, output std),
    ("sum", branch, branch), ("product", branch, branch), and pointwise functions by name.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

Spec = list[tuple[Any, ...]]

RELU, ERF = ("relu",), ("erf",)


def deep(depth: int, phi: tuple[Any, ...], weight: float, bias: float) -> Spec:
    """``depth`` hidden layers and a readout."""
    return [*([("dense", weight, bias), phi] * depth), ("dense", weight, bias)]


def convolutional(dims: int, stride: int, padding: str, end: str, depth: int = 2, bias: float = 0.2) -> Spec:
    """Convolutions of width 3, of which the first has a stride, and a readout after ``end``."""
    layers: Spec = []
    for i in range(depth):
        layers += [("conv", (3,) * dims, stride if i == 0 else 1, padding, 1.3, bias), RELU]
    return [*layers, (end,), ("dense", 1.2, 0.1)]


def fully_connected() -> dict[str, Spec]:
    """Pointwise functions, depths 1 to 10."""
    specs: dict[str, Spec] = {}
    for depth in (1, 2, 3, 5, 10):
        specs[f"relu, depth {depth}"] = deep(depth, RELU, 2**0.5, 0.1)
        specs[f"erf, depth {depth}"] = deep(depth, ERF, 1.5, 0.05)
    for depth in (1, 4, 10):
        specs[f"gelu, depth {depth}"] = deep(depth, ("gelu",), 1.5, 0.1)
    specs["relu without biases, depth 6"] = deep(6, RELU, 2**0.5, 0.0)
    for phi in (
        ("leaky", 0.2),
        ("abs",),
        ("sin", 0.7, 1.3, 0.4),
        ("cos", 1.1, 0.9, 0.2),
        ("exp", 0.5, 0.6),
        ("gaussian", 1.2, -0.4),
        ("monomial", 3),
        ("sign",),
        ("sigmoid_like",),
    ):
        specs[f"{phi[0]}, depth 3"] = deep(3, phi, 0.8 if phi[0] in ("exp", "monomial") else 1.3, 0.2)
    specs["polynomial, depth 1"] = deep(1, ("polynomial", (0.3, 0.5, -0.2, 0.1)), 1.3, 0.2)
    specs["rectified, depth 1"] = deep(1, ("rectified", 2), 0.8, 0.2)
    return specs


def others() -> dict[str, Spec]:
    """Convolutions, residual and gated networks, normalisation, attention."""
    first, hidden, last = ("dense", 1.4, 0.1), ("dense", 1.3, 0.2), ("dense", 1.1, 0.1)
    block = ("sum", [], [RELU, hidden, RELU, hidden])
    post = ("sum", [], [("norm",), ERF, hidden])
    attend = ("attention", 2, 1.1, 0.9, 1.2)
    specs: dict[str, Spec] = {
        "residual": [first, block, block, block, RELU, last],
        "residual, three branches": [first, ("sum", [RELU, hidden], [ERF, hidden], []), RELU, last],
        "gated": [first, ("product", [hidden, ("sigmoid_like",)], [hidden]), last],
        "gated twice": [first, RELU, ("product", [hidden, ERF], [hidden, RELU]), last],
        "bilinear": [first, ("product", [hidden], [hidden]), hidden, last],
        "norm, relu": [first, ("norm",), RELU, hidden, ("norm",), RELU, last],
        "norm, relu, no biases": [("dense", 1.4, 0.0), ("norm",), RELU, ("dense", 1.3, 0.0), ("norm",), RELU, last],
        "norm, erf": [first, ("norm",), ERF, hidden, ("norm",), ERF, last],
        "norm, gelu": [first, ("norm",), ("gelu",), hidden, ("norm",), ("gelu",), last],
        "residual, norm": [first, post, post, ("norm",), ERF, last],
        "attention": [first, attend, RELU, hidden, ("mean",), last],
        "attention twice": [first, RELU, attend, ("norm",), RELU, attend, ("flatten",), last],
        "attention, residual": [first, ("sum", [], [attend]), ("sum", [], [RELU, hidden]), ("mean",), last],
    }
    for dims in (1, 2):
        for padding in ("SAME", "CIRCULAR", "VALID"):
            for end in ("flatten", "mean"):
                specs[f"conv{dims}d {padding.lower()} {end}"] = convolutional(dims, 1, padding, end)
    for dims, end in ((1, "flatten"), (1, "mean"), (2, "flatten"), (2, "mean")):
        specs[f"conv{dims}d stride {end}"] = convolutional(dims, 2, "SAME", end)
    conv = ("conv", (3, 3), 1, "SAME", 1.3, 0.0)
    specs["conv2d, pools"] = [conv, RELU, ("pool", 2, 2), conv, ERF, ("pool", 2, 1), ("flatten",), last]
    specs["conv2d, residual"] = [conv, ("sum", [], [RELU, conv, RELU, conv]), RELU, ("mean",), last]
    specs["conv2d, norm"] = [conv, ("norm",), RELU, conv, ("norm",), ("gelu",), ("flatten",), last]
    specs["conv2d, circular, depth 4"] = convolutional(2, 1, "CIRCULAR", "mean", 4, 0.0)
    specs["conv2d, erf, dense at the end"] = [conv, ERF, conv, ERF, ("flatten",), first, RELU, last]
    return specs


SPECS: dict[str, Spec] = fully_connected() | others()


def input_shape(spec: Spec) -> tuple[int, ...]:
    """Of one input, positions first and channels last."""
    names = [layer[0] for layer in spec]
    if "conv" in names:
        return (5,) * len(spec[0][1]) + (3,)
    return (4, 6) if any("attention" in repr(layer) for layer in spec) else (7,)


def inputs(spec: Spec, count: int = 4) -> np.ndarray:
    """Float64 inputs of variance about one, the last a multiple of the first."""
    x = np.random.default_rng(0).normal(size=(count, *input_shape(spec)))
    x[-1] = -0.5 * x[0]
    return x


def make(spec: Spec, shape: tuple[int, ...] | None = None) -> Callable[[int], Any]:
    """A factory of torch modules of any width for inputs of that shape, positions first and channels last."""
    sizes, first = (shape or input_shape(spec))[:-1], (shape or input_shape(spec))[-1]
    import torch
    from torch import Tensor, nn

    class Model(nn.Module):
        def __init__(self, width: int) -> None:
            super().__init__()
            self.width = width
            self.weights = nn.ParameterList()
            self.layers, _ = self.build(spec, (first, len(sizes), sizes))

        def parameter(self, *shape: int) -> int:
            self.weights.append(nn.Parameter(torch.randn(*shape)))
            return len(self.weights) - 1

        def build(self, layers: Spec, shape: Any) -> tuple[list[Callable[[Tensor], Tensor]], Any]:
            steps = []
            for i, layer in enumerate(layers):
                last = layers is spec and i == len(layers) - 1
                step, shape = self.layer(layer, shape, 1 if last else self.width)
                steps.append(step)
            return steps, shape

        def layer(self, layer: tuple[Any, ...], shape: Any, out: int) -> tuple[Callable[[Tensor], Tensor], Any]:
            (channels, dims, sizes), (name, *numbers) = shape, layer
            if name == "dense":
                return self.dense(channels, out, *numbers), (out, dims, sizes)
            if name == "conv":
                step, sizes = self.conv(channels, out, sizes, *numbers)
                return step, (out, dims, sizes)
            if name == "pool":
                (window, stride), size = numbers, sizes
                sizes = tuple((n - window) // stride + 1 for n in size)
                pool = torch.nn.functional.avg_pool1d if dims == 1 else torch.nn.functional.avg_pool2d
                return lambda x: pool(x.movedim(-1, 1), window, stride).movedim(1, -1), (channels, dims, sizes)
            if name == "flatten":
                return lambda x: x.flatten(1), (channels * int(np.prod(sizes)), 0, ())
            if name == "mean":
                return lambda x: x.mean(tuple(range(1, 1 + dims))), (channels, 0, ())
            if name == "norm":
                return lambda x: torch.nn.functional.layer_norm(x, (channels,), eps=0.0), shape
            if name == "attention":
                return self.attention(channels, *numbers), shape
            if name in ("sum", "product"):
                branches = [self.build(branch, shape) for branch in numbers]
                return self.joined(name, [steps for steps, _ in branches]), branches[0][1]
            return pointwise(name, *numbers), shape

        def dense(self, channels: int, out: int, weight: float, bias: float) -> Callable[[Tensor], Tensor]:
            w = self.parameter(out, channels)
            b = self.parameter(out) if bias else None

            def step(x: Tensor) -> Tensor:
                y = x @ self.weights[w].T * (weight / channels**0.5)
                return y if b is None else y + bias * self.weights[b]

            return step

        def conv(
            self,
            channels: int,
            out: int,
            sizes: tuple[int, ...],
            window: tuple[int, ...],
            stride: int,
            padding: str,
            weight: float,
            bias: float,
        ) -> tuple[Callable[[Tensor], Tensor], tuple[int, ...]]:
            w = self.parameter(out, channels, *window)
            b = self.parameter(out) if bias else None
            run = torch.nn.functional.conv1d if len(window) == 1 else torch.nn.functional.conv2d
            scale = weight / (channels * int(np.prod(window))) ** 0.5
            around = [0 if padding == "VALID" else k // 2 for k in window]  # odd sizes: the same on either side
            after = tuple((n + 2 * p - k) // stride + 1 for n, p, k in zip(sizes, around, window, strict=True))

            def step(x: Tensor) -> Tensor:
                x = x.movedim(-1, 1)
                if padding != "VALID":
                    sides = [p for p in reversed(around) for _ in range(2)]
                    mode = "circular" if padding == "CIRCULAR" else "constant"
                    x = torch.nn.functional.pad(x, sides, mode=mode)
                y = run(x, self.weights[w], stride=stride).movedim(1, -1) * scale
                return y if b is None else y + bias * self.weights[b]

            return step, after

        def attention(self, n: int, heads: int, key: float, value: float, out: float) -> Callable[[Tensor], Tensor]:
            """Queries and keys are tied and their product is over the head size."""
            k, v, o = (self.parameter(n, n) for _ in range(3))

            def step(x: Tensor) -> Tensor:
                def split(weight: int, std: float) -> Tensor:
                    y = x @ self.weights[weight].T * (std / n**0.5)
                    return y.view(*y.shape[:-1], heads, n // heads).transpose(-2, -3)

                keys = split(k, key)
                weights = torch.softmax(keys @ keys.transpose(-1, -2) * (heads / n), -1)
                y = (weights @ split(v, value)).transpose(-2, -3).reshape(x.shape)
                return y @ self.weights[o].T * (out / n**0.5)

            return step

        def joined(self, name: str, branches: Any) -> Callable[[Tensor], Tensor]:
            def step(x: Tensor) -> Tensor:
                values = []
                for branch in branches:
                    y = x
                    for f in branch:
                        y = f(y)
                    values.append(y)
                total = values[0]
                for y in values[1:]:
                    total = total + y if name == "sum" else total * y
                return total

            return step

        def forward(self, x: Tensor) -> Tensor:
            for f in self.layers:
                x = f(x)
            return x

    def pointwise(name: str, *p: Any) -> Callable[[Tensor], Tensor]:
        functions: dict[str, Callable[[Tensor], Tensor]] = {
            "relu": torch.relu,
            "erf": torch.erf,
            "gelu": torch.nn.functional.gelu,
            "leaky": lambda x: torch.nn.functional.leaky_relu(x, p[0]),
            "abs": torch.abs,
            "sin": lambda x: p[0] * torch.sin(p[1] * x + p[2]),
            "cos": lambda x: p[0] * torch.cos(p[1] * x + p[2]),
            "exp": lambda x: p[0] * torch.exp(p[1] * x),
            "gaussian": lambda x: p[0] * torch.exp(p[1] * x**2),
            "polynomial": lambda x: sum(c * x**i for i, c in enumerate(p[0])),  # type: ignore[return-value]
            "monomial": lambda x: x ** p[0],
            "rectified": lambda x: torch.relu(x) ** p[0],
            "sign": torch.sign,
            "sigmoid_like": lambda x: 0.5 * torch.erf(x / 2.4020563531719796) + 0.5,
        }
        return functions[name]

    return Model
