"""Training setups as people write them, sound and broken, to hold their exponents against real training."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_architectures import IMAGES, LABELS, LANGUAGE, NEXT, TOKENS, VISION, Adapted, Language, loss, maximal
from zoo_optimizers import Muon

import tpcompile as tp

Factory = Callable[[int], Any]
Optimizer = Callable[[Any, int], torch.optim.Optimizer]
X = torch.tensor([[1.0, -0.5, 0.2, 0.4], [0.3, 0.8, -0.7, 0.1], [-0.6, 0.5, 0.9, -0.2]])
OUTPUTS = 8  # several, so that sizes at initialisation scatter less
Y = torch.randn(3, OUTPUTS, generator=torch.Generator().manual_seed(5))
WIDE = (64, 128, 256, 512, 1024, 2048)
NARROW = WIDE[:4]  # a residual convolution network of width 2,048 takes 13 GB to train in double precision


@dataclass(frozen=True)
class Setup:
    """A factory, its data, what verify must find, and the widths at which it can be trained in reasonable time."""

    make: Factory
    verdict: str
    inputs: Tensor = X
    targets: Tensor = Y
    loss: Callable[..., Tensor] = F.mse_loss
    steps: int = 2
    widths: tuple[int, ...] = WIDE
    problem: str | None = None  # how the first problem begins


class Perceptron(nn.Module):
    """Three hidden layers, tanh; ``multiplier`` is behind the readout."""

    def __init__(self, n: int, bias: bool = False, readout: float = -1.0, multiplier: float = 0.0) -> None:
        super().__init__()
        self.hidden = nn.ModuleList(nn.Linear(4 if i == 0 else n, n, bias=bias) for i in range(3))
        self.readout = nn.Linear(n, OUTPUTS, bias=bias)
        for weight in [p for p in self.hidden.parameters() if p.ndim == 2]:
            nn.init.normal_(weight, std=weight.shape[1] ** -0.5)
        nn.init.normal_(self.readout.weight, std=n**readout)
        self.multiplier = n**multiplier

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.hidden:
            x = torch.tanh(layer(x))
        return self.readout(x) * self.multiplier


def trained(model: Callable[[int], nn.Module], kind: Optimizer, lr: float, *powers: float) -> Factory:
    """A factory with one learning rate ``lr * n**power`` a parameter; the last power serves all that follow."""

    def make(n: int) -> Any:
        made = model(n)
        params = list(made.parameters())
        each = [*powers, *([powers[-1]] * (len(params) - len(powers)))]
        groups = [{"params": [p], "lr": lr * n**power} for p, power in zip(params, each, strict=True)]
        return made, kind(groups, n)

    return make


def adam(groups: Any, n: int) -> torch.optim.Optimizer:
    """Adam with an epsilon far below its gradients, of which some are exactly zero."""
    return torch.optim.Adam(groups, eps=1e-8 * n**-3.0)


def sgd(groups: Any, n: int) -> torch.optim.Optimizer:
    return torch.optim.SGD(groups)


def muon(groups: Any, n: int) -> torch.optim.Optimizer:
    return Muon(groups, lr=0.1, eps=0.0)


def changed(model: Callable[[int], nn.Module], change: Callable[[nn.Module, int], Any]) -> Callable[[int], nn.Module]:
    """Models with something done to them."""

    def make(n: int) -> nn.Module:
        made = model(n)
        with torch.no_grad():
            change(made, n)
        return made

    return make


class Tied(nn.Module):
    """An embedding that is the readout as well; ``scale`` is in front of the embedding, ``out`` behind the readout."""

    def __init__(self, n: int, std: float, scale: float = 0.0, out: float = 0.0) -> None:
        super().__init__()
        self.embed, self.hidden = nn.Embedding(5, n), nn.Linear(n, n, bias=False)
        self.scale, self.out = n**scale, n**out
        nn.init.normal_(self.embed.weight, std=n**std)
        nn.init.normal_(self.hidden.weight, std=n**-0.5)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.embed(tokens) * self.scale
        return F.linear(h + torch.tanh(self.hidden(h)), self.embed.weight) * self.out


class Narrow(nn.Module):
    """A convolution to two channels inside of the network."""

    def __init__(self, n: int, power: float) -> None:
        super().__init__()
        self.first, self.narrow = nn.Conv1d(1, n, 3, bias=False), nn.Conv1d(n, 2, 1, bias=False)
        self.widen, self.readout = nn.Conv1d(2, n, 1, bias=False), nn.Linear(n, OUTPUTS, bias=False)
        nn.init.normal_(self.narrow.weight, std=n**power)
        nn.init.normal_(self.readout.weight, std=1 / n)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x[:, None]))
        return self.readout(torch.tanh(self.widen(torch.tanh(self.narrow(h)))).mean(-1))


class Recurrent(nn.Module):
    """nn.GRU as torch initialises it, on inputs of fixed size."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.gru, self.readout = nn.GRU(4, n, batch_first=True, bias=False), nn.Linear(n, OUTPUTS, bias=False)
        nn.init.normal_(self.readout.weight, std=1 / n)

    def forward(self, x: Tensor) -> Tensor:
        return self.readout(self.gru(x.unflatten(1, (2, 2)).repeat(1, 1, 2))[0][:, -1])


class Heads(nn.Module):
    """One head; the logits are named, so that their sizes can be seen."""

    def __init__(self, n: int, power: float, shared: int = 0) -> None:
        super().__init__()
        self.embed = nn.Linear(4, n, bias=False)
        self.query, self.key = (nn.Linear(n, shared or n, bias=False) for _ in range(2))
        self.value, self.readout = nn.Linear(n, n, bias=False), nn.Linear(n, OUTPUTS, bias=False)
        for layer in (self.query, self.key, self.value):
            nn.init.normal_(layer.weight, std=3 * n**-0.5)  # large, so that attention matters at these widths
        nn.init.normal_(self.readout.weight, std=1 / n)
        self.scale = (shared or n) ** power

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.embed(torch.stack([x, x.flip(-1), -x], 1)))
        logits = tp.tap(self.query(h) @ self.key(h).mT * self.scale, "logits")
        return self.readout(h + logits.softmax(-1) @ self.value(h)).mean(1)


def decayed(n: int) -> Any:
    """Coupled weight decay that does not scale, beside gradients of 1/n, in one hidden layer."""
    model = Perceptron(n)
    for name, p in model.named_parameters():
        p.requires_grad_(name == "hidden.1.weight")
    return model, torch.optim.Adam([model.get_parameter("hidden.1.weight")], lr=0.3 / n, weight_decay=0.3, eps=0.0)


def shared_rate(n: int) -> Any:
    """One tensor as the rate of two groups, changed in place for the second."""
    model = Perceptron(n)
    lr = torch.tensor(0.1, dtype=torch.float64)
    first, *others = model.parameters()
    optimizer = torch.optim.Adam([{"params": [first], "lr": lr}, {"params": others, "lr": lr}], eps=0.0)
    optimizer.param_groups[1]["lr"].div_(n)
    return model, optimizer


def derived(model: Callable[[int], nn.Module], kind: Optimizer, *data: Any) -> Factory:
    """A factory that follows the rules that tp.mup derives from the model, unscaled as it is."""
    rules = tp.mup(trained(model, kind, 0.1, 0), *data)

    def make(n: int) -> Any:
        made = rules.apply_multipliers_(rules.apply_init_(model(n), base_width=16), base_width=16)
        return made, kind(rules.param_groups(made, lr=0.02, base_width=16), n)

    return make


def language(make: Factory, verdict: str = "maximal update", **more: Any) -> Setup:
    return Setup(make, verdict, TOKENS, NEXT, loss, **more)


def vision(make: Factory, verdict: str = "maximal update", **more: Any) -> Setup:
    return Setup(make, verdict, IMAGES, LABELS, loss, **more)


def two_adapters(n: int) -> nn.Module:
    return Language(n, Adapted, Adapted)


MAXIMAL = "maximal update"
SOUND: dict[str, Callable[[], Setup]] = {
    "perceptron, Adam, Table 3": lambda: Setup(trained(Perceptron, adam, 0.1, 0, -1), MAXIMAL),
    "perceptron, SGD, Table 3": lambda: Setup(trained(Perceptron, sgd, 0.1, 1, 0, 0, -1), MAXIMAL),
    "perceptron, SGD of rate 1/n": lambda: Setup(
        trained(lambda n: Perceptron(n, readout=-0.5), sgd, 0.5, -1), "kernel regime"
    ),
    "perceptron, Adam of rate n^(-3/2)": lambda: Setup(
        trained(lambda n: Perceptron(n, readout=-0.5), adam, 0.1, -1.5), "kernel regime"
    ),
    "perceptron, Muon": lambda: Setup(trained(Perceptron, muon, 0.1, 0, 0, 0, -0.5), MAXIMAL),
    "perceptron, SGD, rules of tp.mup": lambda: Setup(derived(Perceptron, sgd, X, Y, F.mse_loss), MAXIMAL),
    "one head with 1/d, Adam": lambda: Setup(trained(lambda n: Heads(n, -1), adam, 0.1, 0, -1), MAXIMAL),
    "tied embedding, Adam, rules of tp.mup": lambda: language(
        derived(lambda n: Tied(n, -0.5), adam, TOKENS, NEXT, loss)
    ),
    "narrow convolution, Adam": lambda: Setup(trained(lambda n: Narrow(n, -1), adam, 0.1, 0, -1, 0, -1), MAXIMAL),
    **{
        f"{name}, AdamW": lambda f=f, name=name: language(maximal(f), steps=3 if "adapters" in name else 2)
        for name, f in LANGUAGE.items()
        if name not in ("tied embedding", "attention with the default scale")
    },
    **{
        f"{name}, SGD": lambda name=name: language(maximal(LANGUAGE[name], torch.optim.SGD))
        for name in ("grouped-query attention", "GRU", "LSTM")
    },
    **{
        f"{name}, AdamW": lambda f=f, name=name: vision(maximal(f), widths=NARROW if "ResNet" in name else WIDE)
        for name, f in VISION.items()
    },
    "ResNet, BatchNorm, SGD": lambda: vision(maximal(VISION["ResNet, BatchNorm"], torch.optim.SGD), widths=NARROW),
}
BROKEN: dict[str, Callable[[], Setup]] = {
    "parametrization switched off, SGD": lambda: Setup(
        trained(lambda n: Perceptron(n, readout=-0.5), sgd, 0.02, 0), "unstable", steps=1
    ),
    "rate of 1/n for all, Adam": lambda: Setup(
        trained(lambda n: Perceptron(n, readout=-0.5), adam, 0.1, -1), "unstable"
    ),
    "multiplier that never reaches the graph": lambda: Setup(
        trained(lambda n: Perceptron(n, readout=0), adam, 0.1, 0, -1), "unstable"
    ),
    "hidden weights divided by m": lambda: Setup(
        trained(
            changed(Perceptron, lambda m, n: nn.init.normal_(m.get_parameter("hidden.1.weight"), std=1 / n)),
            adam,
            0.1,
            0,
            -1,
        ),
        "unstable",
        problem="the 'hidden.1' at initialisation vanishes",
    ),
    "hidden rates unscaled, Adam": lambda: Setup(trained(Perceptron, adam, 0.1, 0, 0, 0, -1), "unstable"),
    "Muon with Adam's 1/n": lambda: Setup(trained(Perceptron, muon, 0.1, 0, -1, -1, -0.5), "feature learning"),
    "1/sqrt(d) attention": lambda: Setup(
        trained(lambda n: Heads(n, -0.5), adam, 0.1, 0, -1), "unstable", problem="a product of two activations"
    ),
    "keys of a fixed size from fan-in values": lambda: Setup(
        trained(lambda n: Heads(n, -0.5, shared=4), adam, 0.1, 0, -1), "unstable"
    ),
    "router from fan-in values": lambda: language(
        maximal(LANGUAGE["mixture of experts, softmax"], readouts=False), "unstable"
    ),
    "narrow convolution from fan-in values": lambda: Setup(
        trained(lambda n: Narrow(n, -0.5), adam, 0.1, 0, -1, 0, -1), "unstable"
    ),
    "two adapters from fan-in values": lambda: language(maximal(two_adapters, readouts=False), "unstable", steps=3),
    "tied embedding without a multiplier": lambda: language(
        trained(lambda n: Tied(n, 0), adam, 0.02, 0, -1), "unstable"
    ),
    "tied embedding times sqrt(m)": lambda: language(
        trained(lambda n: Tied(n, -0.5, 0.5), adam, 0.02, -0.5, -1), "unstable"
    ),
    "GRU left at 1/sqrt(n)": lambda: Setup(
        trained(Recurrent, adam, 0.1, 0, -1), "unstable", problem="the 'gru' at initialisation vanishes"
    ),
    "bias behind the output's multiplier": lambda: Setup(
        trained(lambda n: Perceptron(n, bias=True, readout=0, multiplier=-1), adam, 0.1, 0, 0, -1, 0, -1, 0, 0),
        "feature learning",
    ),
    "coupled weight decay left unscaled": lambda: Setup(decayed, "trivial"),
    "one tensor as two groups' rate": lambda: Setup(shared_rate, "feature learning"),
}


def package_setups() -> tuple[dict[str, Callable[[], Setup]], dict[str, Callable[[], Setup]]]:
    """The examples of the package mup, as it makes them, and misused; needs the package."""
    import mup  # pyright: ignore[reportMissingImports]
    from mup_package import Perceptron, ResNet, Transformer, shaped

    tied = functools.partial(Transformer, tied=True)

    def mu_sgd(params: Any, n: int) -> torch.optim.Optimizer:
        return mup.MuSGD(params, lr=0.1, momentum=0.9)

    def mu_adam(params: Any, n: int) -> torch.optim.Optimizer:
        return mup.MuAdam(params, lr=0.02, eps=1e-8 * n**-3.0)

    labels = torch.tensor([0, 2, 1])
    sound = {
        "mup's perceptron, MuSGD": lambda: Setup(shaped(Perceptron, mu_sgd), MAXIMAL, X, labels, F.cross_entropy),
        "mup's ResNet, MuSGD": lambda: vision(shaped(ResNet, mu_sgd), widths=NARROW),
        "mup's transformer, MuAdam": lambda: language(shaped(Transformer, mu_adam)),
        "mup's tied transformer, not rescaled": lambda: language(shaped(tied, mu_adam, rescale=False)),
    }
    broken = {
        "mup's transformer, torch's Adam": lambda: language(
            shaped(Transformer, lambda p, n: torch.optim.Adam(p, lr=0.02, eps=1e-8 * n**-3.0)), "unstable"
        ),
        "mup's tied transformer, as it rescales it": lambda: language(shaped(tied, mu_adam), "unstable"),
    }
    return sound, broken
