"""What the limit and a finite-width simulation have in common: the functions and kernels of a training run.

Shapes: ``T`` training steps (so ``T + 1`` moments: before each step and after the last), ``N`` inputs,
``N_all`` inputs followed by the test inputs, ``k`` outputs of the network per input.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from tpcompile.errors import TpcompileError, UsageError

if TYPE_CHECKING:
    from tpcompile.metrics import Metrics


@dataclass(frozen=True)
class TangentKernel:
    """The tangent kernel as the sum of the parameters' shares.

    ``shares[p]`` is ``lr_p <df_i(a)/dp, df_j(b)/dp>`` of shape ``(T+1, N, N, k, k)`` with ``k`` the
    flattened output. ``shares_stderr`` (per share) and ``stderr`` (of the sum) are None where exact.
    """

    shares: Mapping[str, Tensor]
    shares_stderr: Mapping[str, Tensor] | None = None
    stderr: Tensor | None = None

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            if share.ndim != 5 or share.shape[1] != share.shape[2] or share.shape[3] != share.shape[4]:
                raise UsageError(
                    f"the tangent kernel's share of '{name}' must have shape (T+1, N, N, k, k), "
                    f"found {tuple(share.shape)}"
                )


TangentSource = Callable[[], "Mapping[str, Tensor] | TangentKernel"]
MetricErrors = Mapping[str, Any]
"""``{"function": {metric: (T+1,)}, "activations": {name: {metric: (T+1,)}}}``, the form of ``Metrics``."""


class _Cache:
    """The mutable cells of a frozen result: what is computed at its first use."""

    __slots__ = ("errors", "tangent")

    def __init__(self) -> None:
        self.tangent: TangentKernel | None = None
        self.errors: MetricErrors | None = None


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Result:
    """A training run seen from outside; see the module's text for the letters in the shapes.

    ``outputs`` is ``(T+1, N, k)`` (a model that returns ``(N, S, k)`` keeps ``S``), ``output_shape`` the
    shape of one input's output as the model returns it. ``feature_changes[name]`` is
    ``(1/n) |x_t(a) - x_0(a)|^2`` of shape ``(T+1, N_all)``. The tangent kernel comes either as
    ``ntk_shares`` or from ``ntk_source``, which is called at the first use; the standard errors of the metrics
    as ``metrics_stderr`` or from ``metrics_stderr_source``, and are zero without. An empty
    ``feature_changes_stderr`` stands for zeros.

    Raises :class:`UsageError` if the shapes do not fit together.
    """

    outputs: Tensor
    outputs_stderr: Tensor
    test_outputs: Tensor | None = None
    test_outputs_stderr: Tensor | None = None
    loss: Tensor | None = None
    loss_stderr: Tensor | None = None
    activations: tuple[str, ...] = ()
    kernels: Mapping[str, Tensor] = field(default_factory=dict)
    kernels_stderr: Mapping[str, Tensor] = field(default_factory=dict)
    feature_changes: Mapping[str, Tensor] = field(default_factory=dict)
    feature_changes_stderr: Mapping[str, Tensor] = field(default_factory=dict)
    metrics_stderr: MetricErrors | None = None
    metrics_stderr_source: Callable[[], MetricErrors] | None = None
    targets: Tensor | None = None
    output_shape: tuple[int, ...] | None = None
    ntk_shares: Mapping[str, Tensor] | TangentKernel | None = None
    ntk_source: TangentSource | None = None
    _cache: _Cache = field(default_factory=_Cache)

    def __post_init__(self) -> None:
        if self.outputs.ndim < 3:
            raise UsageError(f"outputs must be (T+1, N, k), found {tuple(self.outputs.shape)}")
        if self.output_shape is None:
            object.__setattr__(self, "output_shape", tuple(self.outputs.shape[2:]))
        _same_shape("outputs_stderr", self.outputs_stderr, self.outputs)
        _same_shape("test_outputs_stderr", self.test_outputs_stderr, self.test_outputs)
        _same_shape("loss_stderr", self.loss_stderr, self.loss)
        if not self.feature_changes_stderr:
            zeros = {name: torch.zeros_like(change) for name, change in self.feature_changes.items()}
            object.__setattr__(self, "feature_changes_stderr", zeros)
        moments, total = self.steps + 1, self.inputs_count + self.test_inputs_count
        if self.loss is not None and tuple(self.loss.shape) != (moments,):
            raise UsageError(f"loss must be ({moments},), found {tuple(self.loss.shape)}")
        expected = {
            "kernels": (moments, total, total),
            "kernels_stderr": (moments, total, total),
            "feature_changes": (moments, total),
            "feature_changes_stderr": (moments, total),
        }
        for label, shape in expected.items():
            values: Mapping[str, Tensor] = getattr(self, label)
            if set(values) != set(self.activations):
                raise UsageError(
                    f"{label} must have the activations' names {list(self.activations)}, found {list(values)}"
                )
            for name, value in values.items():
                if tuple(value.shape) != shape:
                    raise UsageError(f"{label}['{name}'] must be {shape}, found {tuple(value.shape)}")
            ordered = {name: values[name] for name in self.activations}
            object.__setattr__(self, label, MappingProxyType(ordered))
        if self.ntk_shares is not None:
            self._cache.tangent = _tangent(self.ntk_shares)

    @property
    def steps(self) -> int:
        """``T``, the number of training steps."""
        return self.outputs.shape[0] - 1

    @property
    def inputs_count(self) -> int:
        """``N``; minibatches count together."""
        return self.outputs.shape[1]

    @property
    def test_inputs_count(self) -> int:
        """The number of test inputs, 0 without."""
        return 0 if self.test_outputs is None else self.test_outputs.shape[1]

    def feature_kernel(self, name: str) -> Tensor:
        """``(1/n) <x(a), x(b)>`` of an activation, ``(T+1, N_all, N_all)``: inputs, then test inputs.

        Raises :class:`UsageError` for an unknown name.
        """
        return self.kernels[self._known(name)]

    def feature_kernel_stderr(self, name: str) -> Tensor:
        """Standard errors of :meth:`feature_kernel`, zeros where exact."""
        return self.kernels_stderr[self._known(name)]

    def feature_change(self, name: str) -> Tensor:
        """``(1/n) |x_t(a) - x_0(a)|^2`` of an activation, ``(T+1, N_all)``."""
        return self.feature_changes[self._known(name)]

    def feature_change_stderr(self, name: str) -> Tensor:
        """Standard errors of :meth:`feature_change`, zeros where exact."""
        return self.feature_changes_stderr[self._known(name)]

    def ntk(self, by_parameter: bool = False) -> Any:
        """The tangent kernel ``sum_p lr_p <df(a)/dp, df(b)/dp>`` at each moment, over the inputs.

        ``(T+1, N, N)`` for a network with one output and ``(T+1, N, N, k, k)`` otherwise (``k`` the
        flattened output); with ``by_parameter`` a dict of the parameters' shares of the same shape.
        Computed at the first call where it was not yet; raises :class:`TpcompileError` where it
        cannot be (a result saved without it).
        """
        shares = self._tangent_kernel().shares
        if by_parameter:
            return {name: _squeeze(share) for name, share in shares.items()}
        return _squeeze(_total(shares, self.outputs))

    def ntk_stderr(self, by_parameter: bool = False) -> Any:
        """Standard errors of :meth:`ntk` in the same form, zeros where exact."""
        tangent = self._tangent_kernel()
        if by_parameter:
            errors = tangent.shares_stderr or {}
            return {name: _squeeze(errors.get(name, torch.zeros_like(share))) for name, share in tangent.shares.items()}
        if tangent.stderr is not None:
            return _squeeze(tangent.stderr)
        return torch.zeros_like(self.ntk())

    def metrics(self) -> Metrics:
        """Feature-learning metrics per activation and step, see :mod:`tpcompile.metrics`."""
        from tpcompile.metrics import compute_metrics

        return compute_metrics(self)

    def save(self, path: str | Path, ntk: bool = True) -> None:
        """Write everything losslessly to an ``.npz`` file that :func:`load_result` reads back.

        The tangent kernel is computed first where it was not yet, unless ``ntk`` is False.
        """
        from tpcompile.storage import save_result

        save_result(self, path, ntk=ntk)

    def metric_errors(self) -> MetricErrors | None:
        """Standard errors of the metrics in their form, computed at the first call; None where exact."""
        if self.metrics_stderr is None and self._cache.errors is None and self.metrics_stderr_source is not None:
            self._cache.errors = self.metrics_stderr_source()
        return self.metrics_stderr if self.metrics_stderr is not None else self._cache.errors

    def __repr__(self) -> str:
        shape = tuple(self.outputs.shape)
        return (
            f"{type(self).__name__}({self._headline()}, steps={self.steps}, outputs={shape}, "
            f"activations={list(self.activations)})"
        )

    def _headline(self) -> str:
        return ""

    def _known(self, name: str) -> str:
        if name in self.kernels:
            return name
        near = difflib.get_close_matches(name, self.activations, n=1)
        listed = ", ".join(f"'{known}'" for known in self.activations) or "none"
        raise UsageError(
            f"unknown activation '{name}'",
            advice=(f"did you mean '{near[0]}'? " if near else "") + f"The activations are: {listed}",
        )

    def _tangent_kernel(self) -> TangentKernel:
        if self._cache.tangent is None:
            if self.ntk_source is None:
                raise TpcompileError(
                    "this result has no tangent kernel",
                    advice="it was saved with ntk=False or evaluated without it: evaluate or simulate again, "
                    "and save with ntk=True",
                )
            self._cache.tangent = _tangent(self.ntk_source())
        return self._cache.tangent


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class LimitResult(Result):
    """The infinite-width limit of a training run.

    ``evaluator`` is "exact", "gaussian" or "particles", ``why`` the reason for that choice. With a
    random output at initialisation ``outputs`` is the mean over its Gaussian ensemble and
    ``outputs_cov`` its covariance ``(T+1, N*k, N*k)``, with its standard errors ``outputs_cov_stderr`` (NaN from a
    single replica); None where the output is deterministic.
    """

    evaluator: str
    why: str = ""
    particles: int = 0
    replicas: int = 0
    seed: int = 0
    outputs_cov: Tensor | None = None
    outputs_cov_stderr: Tensor | None = None
    test_outputs_cov: Tensor | None = None
    test_outputs_cov_stderr: Tensor | None = None

    def _headline(self) -> str:
        return f"evaluator={self.evaluator!r}"


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class SimulationResult(Result):
    """One training run of the user's own model at a finite width. The standard errors are zero."""

    width: int
    seed: int = 0

    def _headline(self) -> str:
        return f"width={self.width}, seed={self.seed}"


def load_result(path: str | Path) -> LimitResult | SimulationResult:
    """Read what :meth:`Result.save` wrote, bit for bit. Raises :class:`UsageError` for any other file."""
    from tpcompile.storage import read_result

    return read_result(path)


def _same_shape(label: str, value: Tensor | None, like: Tensor | None) -> None:
    if (value is None) != (like is None):
        raise UsageError(f"{label} must be given with the value that it belongs to")
    if value is not None and like is not None and value.shape != like.shape:
        raise UsageError(f"{label} must be {tuple(like.shape)}, found {tuple(value.shape)}")


def _tangent(data: Mapping[str, Tensor] | TangentKernel) -> TangentKernel:
    return data if isinstance(data, TangentKernel) else TangentKernel(dict(data))


def _total(shares: Mapping[str, Tensor], outputs: Tensor) -> Tensor:
    moments, count = outputs.shape[:2]
    size = outputs[0, 0].numel()
    total = torch.zeros(moments, count, count, size, size, dtype=outputs.dtype)
    for share in shares.values():
        total = total + share
    return total


def _squeeze(share: Tensor) -> Tensor:
    return share[..., 0, 0] if share.shape[-1] == 1 else share
