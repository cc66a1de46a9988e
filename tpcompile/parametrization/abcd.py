"""abcd-parametrizations of multilayer perceptrons: the theorems on adaptive optimizers, and what ``verify`` finds.

As :mod:`~tpcompile.parametrization.abc`, with a learning rate exponent ``c_l`` for every layer and gradients multiplied
by ``n**d_l`` before an entrywise update function Q (Tensor Programs IVb, 2308.01814, Definition 2.2.1). For Adam,
``d_l`` is an epsilon of ``n**-d_l``; without epsilon, as for the sign of the gradient, it is irrelevant (Remark 2.2.6),
and None here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tpcompile.errors import UsageError
from tpcompile.parametrization.abc import Network, Number, class_of
from tpcompile.parametrization.report import Report
from tpcompile.parametrization.verify import verify

HALF = Fraction(1, 2)
Exponents = tuple[Fraction, ...]
Optimizer = Callable[[list[dict[str, Any]]], torch.optim.Optimizer]


@dataclass(frozen=True)
class Parametrization:
    """Exponents a, b, c and d of the L + 1 layers of a network with L hidden layers."""

    a: Exponents
    b: Exponents
    c: Exponents
    d: Exponents | None = None

    @property
    def hidden_layers(self) -> int:
        """L."""
        return len(self.a) - 1

    @property
    def faithful_d(self) -> Exponents:
        """The d for which the input of Q is Θ(1) at initialisation (Lemma 2.8.11)."""
        readout = self.a[-1] + self.b[-1]
        return (*(a + readout for a in self.a[:-1]), self.a[-1])

    @property
    def faithful_at_init(self) -> bool:
        """Definition 2.8.8; always true without epsilon, where Q does not see the size of the gradient."""
        return self.d is None or self.d == self.faithful_d

    @property
    def gradients(self) -> Exponents:
        """Exponents of the layers' gradients from the second step on: the readout's updates may outgrow its start."""
        readout = self.a[-1] + min(self.b[-1], self.rates[-1])
        return (*(-a - readout for a in self.a[:-1]), -self.a[-1])

    @property
    def rates(self) -> Exponents:
        """Updates of layer l are Θ(n**-rates_l): c where Q sees its input.

        Where epsilon is the larger one, Adam divides by it, and the update is as small as the gradient beside it: the
        theorems then hold with that exponent in the place of c, as in the reduction to SGD (Remark 2.2.4).
        """
        if self.d is None:
            return self.c
        last = self.c[-1] + max(Fraction(0), self.a[-1] - self.d[-1])
        readout = self.a[-1] + min(self.b[-1], last)
        below = (c + max(Fraction(0), a + readout - d) for a, c, d in zip(self.a, self.c, self.d, strict=True))
        return (*list(below)[:-1], last)

    @property
    def r_layers(self) -> Exponents:
        """Each layer's own share (Definition 2.8.5), the readout's included."""
        return tuple(c + a - (i > 0) for i, (a, c) in enumerate(zip(self.a, self.rates, strict=True)))

    @property
    def r(self) -> Fraction:
        """Features change by ``Θ(n**-r)``."""
        return min(self.r_layers[:-1])

    @property
    def stable_at_init(self) -> bool:
        """Lemma 2.8.10."""
        starts = [a + b for a, b in zip(self.a, self.b, strict=True)]
        return starts[0] == 0 and all(s == HALF for s in starts[1:-1]) and starts[-1] >= HALF

    @property
    def stable(self) -> bool:
        """Theorem 2.8.12 without its last condition, which is on faithfulness alone."""
        return self.stable_at_init and min(self.r_layers) >= 0 and self.a[-1] + self.b[-1] + self.r >= 1

    @property
    def faithful(self) -> bool:
        """Theorem 2.8.12: stays faithful, for a stable one; gradients keep the size that they have at the start."""
        return self.faithful_at_init and (self.d is None or self.b[-1] <= self.c[-1])

    @property
    def trivial(self) -> bool:
        """Theorem 2.8.15, for a stable one."""
        return self.r_layers[-1] != 0 and self.a[-1] + self.b[-1] + self.r != 1

    @property
    def maximal(self) -> bool:
        """Every layer updated maximally, and the readout initialised maximally."""
        return all(r == 0 for r in self.r_layers) and self.a[-1] + self.b[-1] + self.r == 1

    @property
    def verdict(self) -> str:
        """The class that the theorems say (2.8.12, 2.8.15, 2.8.19); "kernel regime" is the operator regime."""
        return class_of(self)

    def shifted(self, theta: Number) -> Parametrization:
        """The same training in other words (Proposition 2.2.3): a + theta, b - theta, c - theta, d + theta."""
        t = Fraction(theta)
        d = None if self.d is None else tuple(x + t for x in self.d)
        return Parametrization(
            tuple(x + t for x in self.a), tuple(x - t for x in self.b), tuple(x - t for x in self.c), d
        )

    def factory(
        self,
        inputs: int = 2,
        lr: float = 0.1,
        activation: Callable[[Tensor], Tensor] = torch.tanh,
        optimizer: Optimizer = torch.optim.Adam,
    ) -> Callable[[int], tuple[nn.Module, torch.optim.Optimizer]]:
        """``make(width)`` of this network with scalar output; ``optimizer`` is given groups with ``lr`` and ``eps``."""

        def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
            model = Network(self.a, self.b, n, inputs, activation)
            groups: list[dict[str, Any]] = []
            for i, (name, p) in enumerate(model.named_parameters()):
                epsilon = 0.0 if self.d is None else 1e-3 * n ** -float(self.d[i])
                groups.append({"params": [p], "lr": lr * n ** -float(self.c[i]), "eps": epsilon})
                assert name == f"layers.{i}.weight"
            return model, optimizer(groups)

        return make

    def report(self, steps: int = 3, inputs: int = 2, **options: Any) -> Report:
        """What :func:`tpcompile.verify` finds of the network, on two inputs."""
        x = torch.tensor([[1.0, -0.5], [0.3, 0.8]])[:, :inputs]
        return verify(
            self.factory(inputs, **options), x, torch.tensor([[1.0], [-1.0]]), F.mse_loss, steps=steps, advice=False
        )


def parametrization(
    a: Sequence[Number], b: Sequence[Number], c: Sequence[Number], d: Sequence[Number] | None = None
) -> Parametrization:
    """An abcd-parametrization from numbers; UsageError unless all have one entry a layer, two layers or more."""
    given = [x for x in (a, b, c, d) if x is not None]
    if len({len(x) for x in given}) > 1 or len(a) < 2:
        raise UsageError(f"a, b, c, d need one entry a layer, got {[len(x) for x in given]}", where="abcd")
    found = [tuple(Fraction(y) for y in x) for x in given]
    return Parametrization(found[0], found[1], found[2], found[3] if d is not None else None)


def standard(hidden_layers: int, c: Number = 0) -> Parametrization:
    """PyTorch's, one learning rate exponent: stable from ``c = 3/2`` on (operator regime), not from 1 on."""
    return parametrization([0] * (hidden_layers + 1), [0, *[HALF] * hidden_layers], [c] * (hidden_layers + 1))


def ntk(hidden_layers: int) -> Parametrization:
    """The neural tangent parametrization (Definition 2.4.1), faithful."""
    inner = hidden_layers - 1
    rates = [HALF, *[1] * inner, HALF]
    return parametrization([0, *[HALF] * hidden_layers], [0] * (hidden_layers + 1), rates, rates)


def mup(hidden_layers: int) -> Parametrization:
    """The maximal update parametrization (Definition 2.5.1), faithful."""
    inner = hidden_layers - 1
    return parametrization(
        [0, *[0] * inner, 1], [0, *[HALF] * inner, 0], [0, *[1] * inner, 0], [1] * (hidden_layers + 1)
    )


__all__ = ["Parametrization", "mup", "ntk", "parametrization", "standard"]
