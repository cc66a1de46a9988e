"""The models of the examples of the package ``mup`` 1.0.0, made small, with its own layers, shapes and optimizers.

Perceptron, ResNet and transformer (github.com/microsoft/mup, folder examples), written anew on the package's interface.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mup  # pyright: ignore[reportMissingImports]
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from zoo_architectures import VOCABULARY, Basic

BASE = 16


class Perceptron(nn.Module):
    """Two hidden layers without biases and a readout from zero."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.fc_1, self.fc_2 = nn.Linear(4, n, bias=False), nn.Linear(n, n, bias=False)
        self.fc_3 = mup.MuReadout(n, 3, bias=False)
        nn.init.kaiming_normal_(self.fc_1.weight, a=1, mode="fan_in")
        nn.init.kaiming_normal_(self.fc_2.weight, a=1, mode="fan_in")
        nn.init.zeros_(self.fc_3.weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc_3(torch.tanh(self.fc_2(torch.tanh(self.fc_1(x)))))


class ResNet(nn.Module):
    """A first convolution, two basic blocks, the second twice as wide, pooling and a readout."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(2, n, 3, padding=1, bias=False), nn.BatchNorm2d(n)
        self.layer1, self.layer2 = Basic(n, n), Basic(n, 2 * n)
        self.linear = mup.MuReadout(2 * n, VOCABULARY)
        for p in self.parameters():
            if p.ndim == 4:
                nn.init.kaiming_normal_(p, mode="fan_in")

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return self.linear(F.avg_pool2d(self.layer2(self.layer1(h)), 3).flatten(1))


class Layer(nn.Module):
    """Post-norm encoder layer; queries are divided by the size of a head."""

    def __init__(self, n: int, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj, self.out_proj = nn.Linear(n, 3 * n), nn.Linear(n, n)
        self.linear1, self.linear2 = nn.Linear(n, 2 * n), nn.Linear(2 * n, n)
        self.norm1, self.norm2 = nn.LayerNorm(n), nn.LayerNorm(n)
        for layer in (self.in_proj, self.out_proj, self.linear1, self.linear2):
            nn.init.normal_(layer.weight, std=n**-0.5)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        batch, length, n = x.shape
        size = n // self.heads
        q, k, v = (t.view(batch, length, -1, size).transpose(1, 2) for t in self.in_proj(x).chunk(3, -1))
        weights = (q / size @ k.transpose(-1, -2) + mask).softmax(-1)
        x = self.norm1(x + self.out_proj((weights @ v).transpose(1, 2).reshape(batch, length, n)))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class Transformer(nn.Module):
    """Language model; the readout starts at zero, or is the embedding."""

    def __init__(self, n: int, tied: bool = False) -> None:
        super().__init__()
        self.encoder, self.layer = nn.Embedding(VOCABULARY, n), Layer(n)
        if tied:
            self.decoder = mup.MuSharedReadout(self.encoder.weight, bias=False)
        else:
            self.decoder = mup.MuReadout(n, VOCABULARY, bias=False)
            nn.init.zeros_(self.decoder.weight)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        mask = torch.triu(torch.full((length, length), float("-inf")), 1)
        return self.decoder(self.layer(self.encoder(tokens), mask))


def shaped(
    model: Callable[[int], nn.Module], optimizer: Callable[[Any, int], torch.optim.Optimizer], rescale: bool = True
) -> Callable[[int], Any]:
    """A factory as the package's manual says: shapes set against a base model, then its optimizer."""

    def make(n: int) -> Any:
        made = model(n)
        mup.set_base_shapes(made, model(BASE), delta=model(2 * BASE), rescale_params=rescale)
        return made, optimizer(made.parameters(), n)

    return make
