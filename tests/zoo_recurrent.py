"""Recurrent modules of torch, with default and custom initialisations, trained through time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from zoo import ABC, Case, data


class Unrolled(nn.Module):
    """A recurrent module and a muP readout of its last output; weights of the module are n^-1/2 normals."""

    def __init__(self, n: int, core: nn.Module, default: bool = False, last: int = 1) -> None:
        super().__init__()
        self.core = core
        self.readout = ABC(n, last * n, 1, 0.5, 0.5)
        for name, p in core.named_parameters() if not default else []:
            fan_in = p.shape[-1]
            if "weight" in name:
                nn.init.normal_(p, std=1.0 if fan_in < 8 else fan_in**-0.5)
            else:
                nn.init.normal_(p, std=0.5)

    def forward(self, x: Tensor) -> Tensor:  # (N, time, d)
        if isinstance(self.core, nn.RNNBase):
            out, _ = self.core(x if self.core.batch_first else x.transpose(0, 1))
            return self.readout(out[:, -1] if self.core.batch_first else out[-1])
        h = None
        for t in range(x.shape[1]):
            h = self.core(x[:, t], h)
        return self.readout(h[0] if isinstance(h, tuple) else h)


def _recurrent(core: Callable[[int], nn.Module], **options: object) -> Callable[[int], object]:
    def make(n: int) -> tuple[nn.Module, torch.optim.Optimizer]:
        model = Unrolled(n, core(n), **options)  # type: ignore[arg-type]
        wide = [p for p in model.parameters() if min(p.shape) > 8 and p.dim() == 2]
        narrow = [p for p in model.core.parameters() if all(p is not w for w in wide)]
        groups = [
            {"params": wide, "lr": 0.1},
            {"params": narrow, "lr": 0.1 * n},
            {"params": model.readout.parameters(), "lr": 0.1},
        ]
        return model, torch.optim.SGD(groups, lr=1.0)

    return make


def recurrent_cases() -> dict[str, Case]:
    """Training setups by name."""
    x, y = data(3, 6)[0].reshape(3, 3, 2), data()[1]
    models = {
        "rnn": _recurrent(lambda n: nn.RNN(2, n, batch_first=True)),
        "rnn relu, time first, no bias": _recurrent(lambda n: nn.RNN(2, n, nonlinearity="relu", bias=False)),
        "rnn of two layers": _recurrent(lambda n: nn.RNN(2, n, num_layers=2, batch_first=True)),
        "rnn of both directions": _recurrent(lambda n: nn.RNN(2, n, batch_first=True, bidirectional=True), last=2),
        "gru": _recurrent(lambda n: nn.GRU(2, n, batch_first=True)),
        "gru, default": _recurrent(lambda n: nn.GRU(2, n, batch_first=True), default=True),
        "lstm": _recurrent(lambda n: nn.LSTM(2, n, batch_first=True)),
        "lstm, default": _recurrent(lambda n: nn.LSTM(2, n), default=True),
        "lstm of two layers": _recurrent(lambda n: nn.LSTM(2, n, num_layers=2, batch_first=True)),
        "rnn cell": _recurrent(lambda n: nn.RNNCell(2, n)),
        "gru cell": _recurrent(lambda n: nn.GRUCell(2, n)),
        "lstm cell": _recurrent(lambda n: nn.LSTMCell(2, n)),
    }
    return {name: Case(make, x, y, steps=2) for name, make in models.items()}
