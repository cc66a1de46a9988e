"""Checks of what the user passes, before anything is traced."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tpcompile.errors import UsageError
from tpcompile.laws import Law

DEFAULT_WIDTHS = (16, 32, 64)


@dataclass(frozen=True)
class Arguments:
    """The user's call, checked: ``batches`` is empty for full-batch training."""

    make: Callable[[int], Any]
    inputs: torch.Tensor
    targets: torch.Tensor | None
    batches: tuple[tuple[torch.Tensor, torch.Tensor], ...]
    loss: Callable[[Any, Any], Any] | None
    optimizer: Callable[[Any], Any] | None
    steps: int
    test_inputs: torch.Tensor | None
    init: dict[str, Law]
    widths: tuple[int, ...]
    tangent: bool
    variation: bool
    exponents: bool = False

    def data(self) -> dict[str, torch.Tensor]:
        """All data tensors by the names of their placeholders."""
        named: dict[str, torch.Tensor | None] = {
            "inputs": self.inputs,
            "targets": self.targets,
            "test_inputs": self.test_inputs,
        }
        for t, (x, y) in enumerate(self.batches):
            named[f"inputs/{t}"], named[f"targets/{t}"] = x, y
        return {name: value for name, value in named.items() if value is not None}


def check_arguments(
    make: Any,
    inputs: Any,
    targets: Any,
    loss: Any,
    optimizer: Any,
    steps: Any,
    test_inputs: Any,
    init: Any,
    widths: Any,
    tangent: bool,
    variation: bool,
    exponents: bool = False,
) -> Arguments:
    """The arguments of :func:`tpcompile.capture.capture` in normal form, or a :class:`UsageError`."""
    check_make(make)
    _check_steps(steps)
    if loss is not None and not callable(loss):
        raise UsageError(f"loss must be callable(output, target), got {type(loss).__name__}", where="loss")
    if loss is None and steps > 0:
        raise UsageError(f"training for {steps} steps needs a loss", where="loss", advice="pass loss=F.mse_loss, ...")
    if optimizer is not None and (isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer)):
        raise UsageError(
            f"optimizer must be callable(params) -> torch.optim.Optimizer, got {type(optimizer).__name__}",
            where="optimizer",
            advice="pass `lambda params: torch.optim.SGD(params, lr=...)`",
        )
    x, x_batches = _batches(inputs, "inputs", steps)
    y, y_batches = (None, None) if targets is None else _batches(targets, "targets", steps)
    if loss is not None and y is None:
        raise UsageError(
            "a loss needs targets",
            where="targets",
            advice="pass targets= (the inputs themselves for an autoencoder)",
        )
    if y is not None and (x_batches is None) != (y_batches is None):
        raise UsageError("inputs and targets must both be tensors or both be lists of minibatches", where="targets")
    if y is not None:
        _check_lengths(x, y, "inputs", "targets")
    batches = tuple(zip(x_batches, y_batches, strict=True)) if x_batches and y_batches else ()
    for t, (a, b) in enumerate(batches):
        _check_lengths(a, b, f"inputs[{t}]", f"targets[{t}]")
    if test_inputs is not None:
        _check_tensor(test_inputs, "test_inputs")
        if test_inputs.shape[1:] != x.shape[1:]:
            raise UsageError(
                f"test_inputs have shape {tuple(test_inputs.shape)}, inputs have {tuple(x.shape)}",
                where="test_inputs",
                advice="all axes but the first must agree",
            )
    return Arguments(
        make=make,
        inputs=x,
        targets=y,
        batches=batches,
        loss=loss,
        optimizer=optimizer,
        steps=steps,
        test_inputs=None if test_inputs is None else test_inputs.detach(),
        init=_check_init(init),
        widths=_check_widths(widths),
        tangent=bool(tangent),
        variation=bool(variation),
        exponents=bool(exponents),
    )


def check_make(make: Any) -> None:
    """Refuse what is no function of the width; a finished model is callable, but has one width only."""
    if isinstance(make, torch.nn.Module) or not callable(make):
        kind = type(make).__name__
        found = f"a finished model ({kind})" if isinstance(make, torch.nn.Module) else kind
        raise UsageError(
            f"make must be a function of the width, got {found}",
            where="make",
            advice="pass `lambda width: MyModel(width)`",
        )


def _check_steps(steps: Any) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int):
        raise UsageError(f"steps must be an int, got {type(steps).__name__} {steps!r}", where="steps")
    if steps < 0:
        raise UsageError(f"steps must not be negative, got {steps}", where="steps")


def _check_widths(widths: Any) -> tuple[int, ...]:
    if widths is None:
        return DEFAULT_WIDTHS
    if not isinstance(widths, Sequence) or any(isinstance(w, bool) or not isinstance(w, int) for w in widths):
        raise UsageError(f"widths must be integers, got {widths!r}", where="widths")
    ordered = tuple(sorted(set(widths)))
    if len(ordered) < 3 or ordered[0] < 1:
        raise UsageError(
            f"widths must be at least three different positive integers, got {tuple(widths)}",
            where="widths",
            advice="for example widths=(16, 32, 64)",
        )
    return ordered


def _check_init(init: Any) -> dict[str, Law]:
    if init is None:
        return {}
    if not isinstance(init, dict):
        raise UsageError(f"init must be a dict of laws by parameter name, got {type(init).__name__}", where="init")
    for name, law in init.items():
        if not isinstance(law, Law):
            raise UsageError(
                f"the law must be tp.Normal, tp.Uniform, ..., got {type(law).__name__}",
                where=f"init[{name!r}]",
            )
    return dict(init)


def _batches(value: Any, name: str, steps: int) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
    """The whole data set, and its minibatches if ``value`` is a list."""
    if not isinstance(value, (list, tuple)):
        _check_tensor(value, name)
        return value.detach(), None
    if len(value) != steps or not value:
        raise UsageError(
            f"{name} is a {type(value).__name__} of {len(value)} but there are {steps} training steps",
            where=name,
            advice="pass one minibatch a step, or a single tensor for full-batch training",
        )
    for t, item in enumerate(value):
        _check_tensor(item, f"{name}[{t}]")
        if item.shape[1:] != value[0].shape[1:] or item.dtype != value[0].dtype:
            raise UsageError(
                f"shape {tuple(item.shape)} and {item.dtype} differ from those of the first minibatch, "
                f"{tuple(value[0].shape)} and {value[0].dtype}",
                where=f"{name}[{t}]",
                advice="all minibatches must agree but for their first axis",
            )
    items = tuple(item.detach() for item in value)
    return torch.cat(items), items


def _check_tensor(value: Any, name: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise UsageError(f"expected a tensor, got {type(value).__name__}", where=name, advice="use torch.as_tensor")
    if value.layout != torch.strided or value.is_quantized:
        kind = "a quantized tensor" if value.is_quantized else f"layout {value.layout}"
        raise UsageError(f"only dense tensors are supported, got {kind}", where=name)
    if value.is_nested or value.is_meta:
        kind = "a nested tensor" if value.is_nested else "a tensor without data (device 'meta')"
        raise UsageError(f"expected a tensor with entries, got {kind}", where=name)
    if value.is_complex():
        raise UsageError(f"complex numbers are not supported, got {value.dtype}", where=name)
    if value.dim() == 0:
        raise UsageError("the first axis must be the batch, got a tensor without axes", where=name)
    if value.numel() == 0:
        raise UsageError(f"empty batch, shape {tuple(value.shape)}", where=name)
    if value.is_floating_point() and not bool(torch.isfinite(value).all()):
        bad = (~torch.isfinite(value)).nonzero()[0].tolist()
        raise UsageError(
            f"not all entries are finite (first NaN or infinity at index {bad})",
            where=name,
            advice="clean the data",
        )


def _check_lengths(x: torch.Tensor, y: torch.Tensor, x_name: str, y_name: str) -> None:
    if len(x) != len(y):
        raise UsageError(f"{x_name} has {len(x)} examples but {y_name} has {len(y)}", where=y_name)
