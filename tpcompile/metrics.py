"""How much a training run learned features: numbers per activation and step.

For the kernel ``K_t`` of an activation over all inputs (test inputs included) and its change
``x_t - x_0``:

- ``feature_change``: ``sqrt(mean |x_t - x_0|^2 / mean |x_0|^2)``, the "relative change of features" by which
  Chizat, Oyallon & Bach (2019, arXiv:1812.07956) and Geiger, Spigler, Jacot & Wyart (2020,
  arXiv:1906.08034) tell lazy training from feature learning;
- ``kernel_change``: ``|K_t - K_0|_F / |K_0|_F``, the kernel evolution of Yang & Hu (2021, arXiv:2011.14522);
- ``target_alignment``: centred kernel alignment of ``K_t`` with ``y y^T`` on the training inputs
  (Cortes, Mohri & Rostamizadeh 2012, JMLR 13), class targets one-hot;
- ``start_alignment``: the same between ``K_t`` and ``K_0``, which is linear CKA (Kornblith, Norouzi, Lee &
  Hinton 2019, arXiv:1905.00414);
- ``participation_ratio``: ``tr(K)^2 / tr(K^2)``, an effective rank (Gao et al. 2017, bioRxiv 214262);
- ``entropy_rank``: the exponential of the entropy of the normalised eigenvalues (Roy & Vetterli 2007, EUSIPCO).

A ratio with a zero denominator (a feature that is zero) is NaN. Standard errors come from the replicas by the
jackknife (Efron & Stein 1981), as metrics are not linear in what is averaged.
"""

from __future__ import annotations

import difflib
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.results import MetricErrors, Result

METRIC_NAMES = (
    "feature_change",
    "kernel_change",
    "target_alignment",
    "start_alignment",
    "participation_ratio",
    "entropy_rank",
)


@dataclass(frozen=True, eq=False)
class Metrics:
    """Metrics of a run: ``metrics["hidden.0"]`` is a dict from a metric's name to a tensor ``(T+1,)``.

    ``function`` holds those of the network function: ``loss`` (where there is one) and
    ``output_change``, the root mean square of ``f_t - f_0`` over the training inputs. ``activations_stderr`` and
    ``function_stderr`` hold the standard errors in the same form, zeros where exact.
    """

    activations: Mapping[str, Mapping[str, Tensor]]
    function: Mapping[str, Tensor]
    activations_stderr: Mapping[str, Mapping[str, Tensor]]
    function_stderr: Mapping[str, Tensor]

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        if name not in self.activations:
            near = difflib.get_close_matches(name, self.activations, n=1)
            raise UsageError(
                f"unknown activation '{name}'",
                advice=(f"did you mean '{near[0]}'? " if near else "")
                + f"The activations are: {', '.join(map(repr, self.activations)) or 'none'}",
            )
        return self.activations[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.activations)

    def __len__(self) -> int:
        return len(self.activations)

    def table(self) -> list[dict[str, Any]]:
        """A row per activation and step: ``{"activation", "step", <metric>: float, ...}``."""
        return [
            {
                "activation": name,
                "step": step,
                **{metric: float(series[step]) for metric, series in values.items()},
            }
            for name, values in self.activations.items()
            for step in range(len(next(iter(values.values()))))
        ]

    def function_table(self) -> list[dict[str, Any]]:
        """A row per step: ``{"step", "output_change", "loss"}``."""
        return [
            {"step": step, **{metric: float(series[step]) for metric, series in self.function.items()}}
            for step in range(len(self.function["output_change"]))
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain lists for JSON; a number that is not finite is None."""
        return {
            "function": _plain_all(self.function),
            "activations": {name: _plain_all(values) for name, values in self.activations.items()},
            "function_stderr": _plain_all(self.function_stderr),
            "activations_stderr": {name: _plain_all(values) for name, values in self.activations_stderr.items()},
        }

    def __str__(self) -> str:
        from rich.console import Console

        from tpcompile.report.tables import metrics_table

        console = Console(file=io.StringIO(), width=110, color_system=None)
        with console.capture() as capture:
            console.print(metrics_table(self))
        return capture.get().rstrip()


def compute_metrics(result: Result) -> Metrics:
    """The metrics of the module's text for every activation of ``result``, and their standard errors."""
    activations, function = _values(result)
    errors = result.metric_errors()
    if errors is not None:
        return Metrics(activations, function, errors["activations"], errors["function"])
    zeros = {name: {m: torch.zeros_like(x) for m, x in values.items()} for name, values in activations.items()}
    return Metrics(activations, function, zeros, {m: torch.zeros_like(x) for m, x in function.items()})


def jackknife(without: Iterable[Result]) -> MetricErrors:
    """Standard errors of the metrics, from the results that leave out one replica each; NaN with one replica."""
    found = [_values(result) for result in without]
    activations, function = found[0]
    return {
        "activations": {
            name: {m: _spread([x[0][name][m] for x in found]) for m in values} for name, values in activations.items()
        },
        "function": {m: _spread([x[1][m] for x in found]) for m in function},
    }


def _spread(values: list[Tensor]) -> Tensor:
    if len(values) < 2:
        return torch.full_like(values[0], math.nan)
    x = torch.stack(values)
    return (x - x.mean(0)).square().mean(0).mul(len(values) - 1).sqrt()


def _values(result: Result) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    count = result.inputs_count
    labels = None if result.targets is None else target_matrix(result.targets, count)
    activations = {}
    for name in result.activations:
        kernels = result.kernels[name].double()
        start = kernels[0]
        size = start.diagonal().mean()
        change = result.feature_changes[name].double().mean(-1)
        if labels is None:
            aligned = torch.full_like(change, math.nan)
        else:
            wanted = labels @ labels.T
            aligned = torch.stack([alignment(kernel[:count, :count], wanted) for kernel in kernels])
        values = (
            (change / size).sqrt(),
            (kernels - start).flatten(1).norm(dim=1) / start.norm(),
            aligned,
            torch.stack([alignment(kernel, start) for kernel in kernels]),
            torch.stack([participation_ratio(kernel) for kernel in kernels]),
            torch.stack([entropy_rank(kernel) for kernel in kernels]),
        )
        activations[name] = dict(zip(METRIC_NAMES, values, strict=True))
    outputs = result.outputs.double()
    function = {"output_change": (outputs - outputs[0]).flatten(1).square().mean(1).sqrt()}
    if result.loss is not None:
        function["loss"] = result.loss
    return activations, function


def alignment(first: Tensor, second: Tensor) -> Tensor:
    """Centred kernel alignment ``<HKH, HLH>_F / (|HKH|_F |HLH|_F)`` of two (N, N) kernels, in [-1, 1]."""
    a, b = _centred(first), _centred(second)
    scale = a.norm() * b.norm()
    tiny = 1e-14 * first.norm() * second.norm()
    return (a * b).sum() / scale if scale > tiny else torch.tensor(math.nan, dtype=a.dtype)


def participation_ratio(kernel: Tensor) -> Tensor:
    """``tr(K)^2 / tr(K^2)`` of an (N, N) kernel: between 1 and N."""
    return kernel.trace().square() / kernel.square().sum()


def entropy_rank(kernel: Tensor) -> Tensor:
    """``exp(-sum p log p)`` with ``p`` the normalised eigenvalues of an (N, N) kernel: between 1 and N."""
    if not bool(kernel.isfinite().all()):
        return torch.tensor(math.nan, dtype=kernel.dtype)
    eigenvalues = torch.linalg.eigvalsh((kernel + kernel.T) / 2).clamp_min(0)
    share = eigenvalues / eigenvalues.sum()
    return torch.special.entr(share).sum().exp()


def target_matrix(targets: Tensor, count: int) -> Tensor:
    """Targets as an ``(N, m)`` float64 matrix; integers that can be class indices become one-hot."""
    if not targets.is_floating_point() and bool((targets >= 0).all()):
        targets = torch.nn.functional.one_hot(targets.long())
    return targets.reshape(count, -1).double()


def _centred(kernel: Tensor) -> Tensor:
    rows = kernel - kernel.mean(0, keepdim=True)
    return rows - rows.mean(1, keepdim=True)


def _plain_all(values: Mapping[str, Tensor]) -> dict[str, list[float | None]]:
    return {metric: _plain(series) for metric, series in values.items()}


def _plain(series: Tensor) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in series.tolist()]
