"""Build the user's model at one probe width and check what the factory returns."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LRScheduler

from tpcompile.capture.arguments import Arguments
from tpcompile.capture.initialisation import Recording, record
from tpcompile.capture.optimizers import Updates, read_optimizer
from tpcompile.capture.origin import failing_source, first_line
from tpcompile.capture.powers import size_of
from tpcompile.collector import put_off
from tpcompile.errors import CaptureError, FactoryError, ProportionError, TpcompileError, UsageError
from tpcompile.schedule import split

_WIDTHS_ADVICE = "choose other probe widths with widths=(...)"


@dataclass(frozen=True)
class Probe:
    """The model at one width, its recorded initialisation and its optimizer's settings."""

    width: int
    recording: Recording
    module: nn.Module
    updates: Updates


@contextmanager
def preserved_state() -> Iterator[None]:
    """Leave the caller's random states, default dtype, gradient mode and threads as they were.

    Inside, operations run on one thread each: on the small tensors of a probe, sharing work costs several times more.
    """
    numpy = sys.modules.get("numpy")
    states = torch.get_rng_state(), random.getstate(), numpy.random.get_state() if numpy else None
    dtype, grad = torch.get_default_dtype(), torch.is_grad_enabled()
    fastpath = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode(False), _without_compiler(), put_off():
            yield
    finally:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        if numpy:
            numpy.random.set_state(states[2])
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        torch.set_grad_enabled(grad)
        torch.backends.mha.set_fastpath_enabled(fastpath)


@contextmanager
def _without_compiler() -> Iterator[None]:
    """Optimizers keep methods out of torch.compile, for which their first call imports it, most of a second.

    Here nothing is compiled: what ``torch._disable_dynamo`` would cache on a method is the method itself.
    """
    if "torch._dynamo" in sys.modules:
        yield
        return
    wrapped = [getattr(method, "__wrapped__", None) for method in vars(torch.optim.Optimizer).values()]
    plain: list[Any] = [method for method in wrapped if method is not None]
    for method in plain:
        method.__dynamo_disable = method
    try:
        yield
    finally:
        for method in plain:
            del method.__dynamo_disable


def build(arguments: Arguments, width: int) -> Probe:
    """Run the factory at ``width`` under the recorder."""
    try:
        with torch.enable_grad():
            recording = record(arguments.make, width)
    except TpcompileError:
        raise
    except Exception as error:
        source = failing_source(error)
        raise FactoryError(
            f"the factory fails at width {width}: {first_line(error)}",
            where="make" + (f" ({source})" if source else ""),
            advice=_WIDTHS_ADVICE,
        ) from error
    module, optimizer, scheduler = _unpack(recording.result, arguments)
    _check_modules(module)
    _check_parameters(module)
    if optimizer is None and arguments.optimizer is not None:
        optimizer = _call_optimizer(arguments, module)
    if optimizer is None and arguments.steps > 0:
        raise UsageError(
            f"training for {arguments.steps} steps needs an optimizer",
            where="optimizer",
            advice="return (model, optimizer) from the factory or pass optimizer=lambda params: torch.optim.SGD(...)",
        )
    updates = read_optimizer(optimizer, module, scheduler)
    return Probe(width, recording, module, updates)


def _unpack(result: Any, arguments: Arguments) -> tuple[nn.Module, torch.optim.Optimizer | None, LRScheduler | None]:
    module, optimizer, scheduler = split(result)
    if optimizer is not None and arguments.optimizer is not None:
        raise UsageError(
            "the factory returns an optimizer, and optimizer= is given too",
            where="optimizer",
            advice="give it one way",
        )
    if not isinstance(module, nn.Module):
        kind = f"tuple of {[type(r).__name__ for r in result]}" if isinstance(result, tuple) else type(result).__name__
        raise FactoryError(
            f"the factory returns {kind}, not a torch.nn.Module",
            where="make",
            advice="return a module, or a tuple (module, torch.optim.Optimizer)",
        )
    return module, optimizer, scheduler


def _call_optimizer(arguments: Arguments, module: nn.Module) -> torch.optim.Optimizer:
    assert arguments.optimizer is not None
    try:
        optimizer = arguments.optimizer(list(module.parameters()))
    except Exception as error:
        raise UsageError(f"optimizer(params) fails: {first_line(error)}", where="optimizer") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise UsageError(
            f"optimizer(params) returns {type(optimizer).__name__}, not a torch.optim.Optimizer",
            where="optimizer",
        )
    return optimizer


def _check_modules(module: nn.Module) -> None:
    for path, child in module.named_modules():
        wrapped = isinstance(child, nn.DataParallel | nn.parallel.DistributedDataParallel)
        if wrapped or isinstance(child, torch.jit.ScriptModule):
            raise CaptureError(
                f"a module of type {type(child).__name__} cannot be traced",
                where=f"module '{path}'" if path else "the model",
                advice="return the module inside it" if wrapped else "return the module before torch.jit",
            )


def _check_parameters(module: nn.Module) -> None:
    for name, value in module.named_parameters():
        if value._backward_hooks or value._post_accumulate_grad_hooks:
            raise CaptureError(
                f"parameter '{name}' has a hook on its gradient, which the traced training would not run",
                where=f"parameter '{name}'",
                advice="change the gradient in the loss or in the optimizer",
            )
    for kind, named in (("parameter", module.named_parameters()), ("buffer", module.named_buffers())):
        for name, value in named:
            if torch.nn.parameter.is_lazy(value):
                raise CaptureError(
                    f"{kind} '{name}' has no shape yet (lazy module)",
                    where=f"{kind} '{name}'",
                    advice="run the model once on a dummy input in the factory, or use a module that is not lazy",
                )
            if value.is_complex() or value.layout != torch.strided or value.is_quantized or value.is_meta:
                kind_of = f"{value.dtype}, {value.layout}, {value.device}"
                raise CaptureError(
                    f"{kind} '{name}' must be a dense real tensor with entries, got {kind_of}",
                    where=f"{kind} '{name}'",
                )


def check_shapes(probes: Sequence[Probe]) -> None:
    """Parameters and buffers must agree in names, and grow in proportion to the width."""
    widths = [probe.width for probe in probes]
    tables = [{**dict(p.module.named_parameters()), **dict(p.module.named_buffers())} for p in probes]
    first = tables[0]
    for width, table in zip(widths[1:], tables[1:], strict=True):
        different = sorted(set(first) ^ set(table))
        if different:
            raise FactoryError(
                f"the parameters change with the width: '{different[0]}' exists at width "
                f"{widths[0] if different[0] in first else width} but not at width "
                f"{width if different[0] in first else widths[0]}",
                where=f"parameter '{different[0]}'",
                advice="the model must have the same modules at every width",
            )
    grows = False
    for name in first:
        shapes = [tuple(table[name].shape) for table in tables]
        shown = ", ".join(f"width {n}: {s}" for n, s in zip(widths, shapes, strict=True))
        sizes = (
            [size_of(lengths, widths) for lengths in zip(*shapes, strict=True)]
            if len({len(s) for s in shapes}) == 1
            else [None]
        )
        if any(size is None for size in sizes):
            raise ProportionError(
                f"the shape of '{name}' is not proportional to the width ({shown})",
                where=f"parameter '{name}'",
                advice="every axis must be constant or a multiple of the width; widths=(...) chooses the probe widths",
            )
        grows = grows or any(size is not None and size.power > 0 for size in sizes)
    if not grows:
        raise FactoryError(
            f"the factory ignores the width: all shapes are the same at widths {widths}",
            where="make",
            advice="make(width) must use its argument as the number of hidden units",
        )
