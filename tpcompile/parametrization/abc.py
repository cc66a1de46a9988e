"""abc-parametrizations of multilayer perceptrons: names, the theorems, and what ``verify`` finds of them.

``W^l = n**-a_l w^l`` with ``w^l ~ N(0, n**(-2 b_l))`` trainable and learning rate ``eta n**-c_l``, for layers 1 to L+1
(Tensor Programs IV, 2011.14522, equation 1). The theorems here are the paper's, for SGD and smooth activations; the
classes that :func:`tpcompile.verify` finds come from the traced network, and each tests the other.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpcompile.capture.tap import tap
from tpcompile.errors import UsageError
from tpcompile.parametrization.report import Report
from tpcompile.parametrization.verify import verify

Number = Fraction | int | float
HALF = Fraction(1, 2)


class Classified(Protocol):
    """What the theorems say of a point of a space of parametrizations."""

    @property
    def stable(self) -> bool: ...
    @property
    def trivial(self) -> bool: ...
    @property
    def maximal(self) -> bool: ...
    @property
    def r(self) -> Fraction: ...


def class_of(p: Classified) -> str:
    """The verdict that follows."""
    if not p.stable:
        return "unstable"
    if p.trivial:
        return "trivial"
    if p.r > 0:
        return "kernel regime"
    return "maximal update" if p.maximal else "feature learning"


@dataclass(frozen=True)
class Parametrization:
    """Exponents a, b and c of the L + 1 layers of a network with L hidden layers, and one learning rate exponent."""

    a: tuple[Fraction, ...]
    b: tuple[Fraction, ...]
    c: Fraction

    @property
    def hidden_layers(self) -> int:
        """L."""
        return len(self.a) - 1

    @property
    def r(self) -> Fraction:
        """Features change by ``Θ(n**-r)`` (Definition 3.2)."""
        readout = min(self.a[-1] + self.b[-1], 2 * self.a[-1] + self.c)
        return readout + self.c - 1 + min(2 * a + (i == 0) for i, a in enumerate(self.a[:-1]))

    @property
    def stable(self) -> bool:
        """Theorem 3.3."""
        starts = [a + b for a, b in zip(self.a, self.b, strict=True)]
        at_init = starts[0] == 0 and all(s == HALF for s in starts[1:-1]) and starts[-1] >= HALF
        return at_init and self.r >= 0 and 2 * self.a[-1] + self.c >= 1 and starts[-1] + self.r >= 1

    @property
    def trivial(self) -> bool:
        """Theorem 3.4, for a stable one."""
        return self.a[-1] + self.b[-1] + self.r != 1 and 2 * self.a[-1] + self.c != 1

    @property
    def maximal(self) -> bool:
        """Definition 5.2 and 5.4: every layer is updated maximally, and the readout initialised maximally."""
        readout = min(self.a[-1] + self.b[-1], 2 * self.a[-1] + self.c)
        layers = [readout + self.c - 1 + 2 * a + (i == 0) for i, a in enumerate(self.a[:-1])]
        return all(r == 0 for r in layers) and 2 * self.a[-1] + self.c == 1 and self.a[-1] + self.b[-1] + self.r == 1

    @property
    def verdict(self) -> str:
        """The class that the theorems say (3.3, 3.4, 3.6, 3.8 and 5.6)."""
        return class_of(self)

    def shifted(self, theta: Number) -> Parametrization:
        """The same training in other words (equation 5): a + theta, b - theta, c - 2 theta."""
        t = Fraction(theta)
        return Parametrization(tuple(x + t for x in self.a), tuple(x - t for x in self.b), self.c - 2 * t)

    def factory(
        self, inputs: int = 2, lr: float = 0.1, activation: Callable[[Tensor], Tensor] = torch.tanh
    ) -> Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]:
        """``make(width)`` of this network with scalar output, and its SGD."""

        def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
            model = Network(self.a, self.b, n, inputs, activation)
            return model, torch.optim.SGD(model.parameters(), lr=lr * n ** -float(self.c))

        return make

    def report(self, steps: int = 3, inputs: int = 2, **options: Any) -> Report:
        """What :func:`tpcompile.verify` finds of the network, on two inputs."""
        x = torch.tensor([[1.0, -0.5], [0.3, 0.8]])[:, :inputs]
        return verify(
            self.factory(inputs, **options), x, torch.tensor([[1.0], [-1.0]]), F.mse_loss, steps=steps, advice=False
        )


class _Layer(nn.Module):
    def __init__(self, into: int, out: int, std: float, multiplier: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out, into) * std)
        self.multiplier = multiplier

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * self.multiplier


class Network(nn.Module):
    """A multilayer perceptron of width n with scalar output, layers of multiplier ``n**-a_l`` and std ``n**-b_l``."""

    def __init__(
        self,
        a: Sequence[Fraction],
        b: Sequence[Fraction],
        n: int,
        inputs: int,
        activation: Callable[[Tensor], Tensor],
    ) -> None:
        super().__init__()
        sizes = [inputs, *[n] * (len(a) - 1), 1]
        self.layers = nn.ModuleList(
            _Layer(into, out, n ** -float(std), n ** -float(multiplier))
            for into, out, multiplier, std in zip(sizes[:-1], sizes[1:], a, b, strict=True)
        )
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        *hidden, readout = self.layers
        for layer in hidden:
            x = tap(self.activation(layer(x)), "activation")
        return readout(x)


def parametrization(a: Sequence[Number], b: Sequence[Number], c: Number) -> Parametrization:
    """An abc-parametrization from numbers; UsageError unless a and b have one entry a layer, two or more."""
    if len(a) != len(b) or len(a) < 2:
        raise UsageError(f"a and b need one entry a layer, got {len(a)} and {len(b)}", where="abc")
    return Parametrization(tuple(Fraction(x) for x in a), tuple(Fraction(x) for x in b), Fraction(c))


def standard(hidden_layers: int, c: Number = 0) -> Parametrization:
    """PyTorch's: no multipliers, fan-in initialisation; ``c=1`` is its largest stable learning rate."""
    return parametrization([0] * (hidden_layers + 1), [0, *[HALF] * hidden_layers], c)


def ntk(hidden_layers: int) -> Parametrization:
    """The neural tangent parametrization."""
    return parametrization([0, *[HALF] * hidden_layers], [0] * (hidden_layers + 1), 0)


def mup(hidden_layers: int) -> Parametrization:
    """The maximal update parametrization (Definition 5.1)."""
    return parametrization([-HALF, *[0] * (hidden_layers - 1), HALF], [HALF] * (hidden_layers + 1), 0)


def mean_field() -> Parametrization:
    """Of one hidden layer."""
    return parametrization([0, 1], [0, 0], -1)


def picture(path: str | Path, hidden_layers: int = 2, step: Number = HALF) -> list[tuple[Fraction, Fraction, str]]:
    """Draw a slice of the space of abc-parametrizations, each cell's class found by tracing its network.

    The plane is the readout's initial exponent ``b_{L+1}`` against the learning rate's c, with the multipliers of the
    maximal update parametrization and initial activations Θ(1). Returns the cells. Needs matplotlib.
    """
    from tpcompile.report.plot_verdicts import verdict_map

    base = mup(hidden_layers)
    grid = [Fraction(step) * i for i in range(-2, 6)]
    cells = []
    for b in grid:
        for c in grid:
            p = Parametrization(base.a, (*base.b[:-1], b), c)
            cells.append((b, c, p.report().verdict))
    verdict_map(cells, path, f"{hidden_layers} hidden layers, SGD")
    return cells


__all__ = ["Parametrization", "mean_field", "mup", "ntk", "parametrization", "picture", "standard"]
