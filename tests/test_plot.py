from __future__ import annotations

import builtins
from typing import Any

import pytest
import torch
from torch import nn

from tpcompile.errors import MissingExtraError
from tpcompile.report.plot import chosen_outputs, plot_training
from tpcompile.results import LimitResult, SimulationResult
from tpcompile.simulate import simulate

X = torch.linspace(-1, 1, 12).reshape(6, 2)
Y = X.sum(1, keepdim=True)


def make(n: int) -> nn.Module:
    return nn.Sequential(nn.Linear(2, n), nn.ReLU(), nn.Linear(n, n), nn.ReLU(), nn.Linear(n, n), nn.Linear(n, 1))


def run(width: int, steps: int = 3, **kw: Any) -> SimulationResult:
    def optimizer(p):
        return torch.optim.SGD(p, lr=0.01)

    return simulate(make, X, Y, nn.functional.mse_loss, optimizer, steps, width=width, **kw)


def test_picture_is_written(tmp_path):
    result = run(32, test_inputs=X[:2])
    figure = plot_training(result, [run(8), run(8, seed=1), run(16)], tmp_path / "run.png")
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    axes = figure.axes
    titles = [axis.get_title(loc="left") or axis.get_title() for axis in axes]
    assert titles[0] == "Training loss"
    assert titles[1] == "Outputs; dashed: width 16"
    assert [t for t in titles[2:] if t] == ["0", "1", "3", "4"]  # four of five activations
    lines = axes[0].get_lines()
    assert [line.get_label() for line in lines if not line.get_label().startswith("_")] == [
        "width 8",
        "width 16",
        "width 32",
    ]
    images = [axis.images[0] for axis in axes if axis.images]
    assert len(images) == 8
    assert images[0].get_clim() == images[4].get_clim()  # before and after share the scale


def test_network_at_initialisation(tmp_path):
    result = run(8, steps=0)
    figure = plot_training(result, path=tmp_path / "run.svg")
    assert "Training loss" not in [axis.get_title(loc="left") for axis in figure.axes]


def test_a_readable_selection_of_outputs():
    outputs = torch.randn(4, 10, 5)
    result = SimulationResult(outputs=outputs, outputs_stderr=0 * outputs, width=4)
    chosen = chosen_outputs(result)
    assert len(set(chosen)) == 8
    final = outputs[-1].flatten()
    assert chosen[0] == int(final.argmin())
    assert chosen[-1] == int(final.argmax())
    assert len(plot_training(result).axes) == 1


def test_ensemble_of_random_outputs():
    outputs = torch.zeros(3, 2, 1)
    cov = torch.eye(2).expand(3, 2, 2)
    result = LimitResult(outputs=outputs, outputs_stderr=outputs, outputs_cov=cov, evaluator="gaussian")
    axis = plot_training(result).axes[0]
    assert "standard deviations" in axis.get_xlabel()
    assert axis.get_ylim()[1] == pytest.approx(2, abs=0.5)


def test_missing_matplotlib(monkeypatch):
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kw: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *args, **kw)

    monkeypatch.setattr(builtins, "__import__", refuse)
    outputs = torch.zeros(1, 2, 1)
    with pytest.raises(MissingExtraError, match=r"pip install 'tpcompile\[plot\]'"):
        plot_training(SimulationResult(outputs=outputs, outputs_stderr=outputs, width=4))
