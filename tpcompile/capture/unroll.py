"""One probe width: run the training of the user's model under the tracer."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tpcompile.capture.arguments import Arguments
from tpcompile.capture.forward import Model, snapshot
from tpcompile.capture.functionalize import functionalized
from tpcompile.capture.optimizers import State, Updates
from tpcompile.capture.origin import Position, reraise
from tpcompile.capture.stepper import Stepper
from tpcompile.capture.tangent import jacobians
from tpcompile.capture.tracer import ReadGuard, Tracer
from tpcompile.capture.variation import variation
from tpcompile.errors import CaptureError, UsageError


@dataclass(frozen=True)
class ProbeTrace:
    """The functional graph of the training run at one width.

    ``placeholders`` gives (kind, name) of each input of the graph, in order; ``outputs`` the nodes of
    the named outputs, all candidates for activations among them; ``taps`` those named by the user.
    """

    width: int
    graph: fx.Graph
    constants: dict[str, Tensor]
    placeholders: tuple[tuple[str, str], ...]
    outputs: dict[str, fx.Node]
    taps: frozenset[str]
    output_shape: tuple[int, ...]
    learning_rates: tuple[dict[str, float], ...]  # of every trained parameter, one a step, as the schedule has them


def trace_run(module: nn.Module, updates: Updates, arguments: Arguments, width: int) -> ProbeTrace:
    """Trace ``arguments.steps`` training steps of ``module`` and all the forward passes around them."""
    run = _Run(module, updates, arguments)
    try:
        with run.recording():
            run.unroll()
    except Exception as error:
        run.explain_integer_inputs(error)
        raise
    finally:
        run.tracer.release()
    tracer = run.tracer
    if tracer.fresh_memory:
        _refuse_nan(run.outputs["outputs/0"], tracer.fresh_memory, width)
    outputs = {name: tracer.node_of(value) for name, value in run.outputs.items()}
    graph, constants = tracer.graph, tracer.constants
    if tracer.mutates:
        inputs = [value.detach().clone() for value in run.inputs]
        graph, constants, outputs = functionalized(graph, constants, inputs, outputs)
    return ProbeTrace(
        width=width,
        graph=graph,
        constants=constants,
        placeholders=tuple(run.placeholders),
        outputs=outputs,
        taps=frozenset(run.taps),
        output_shape=run.output_shape,
        learning_rates=tuple(run.rates),
    )


def _refuse_nan(outputs: Tensor, where: str, width: int) -> None:
    """The tracer fills fresh memory with NaN: an output that shows it depends on what was never written."""
    bad = outputs.isnan().nonzero()
    if len(bad):
        raise CaptureError(
            f"the output at initialisation is NaN (at width {width}, index {bad[0].tolist()}): it reads memory that is "
            "made without values and never written (torch.empty)",
            where=where,
            advice="make it with torch.zeros, or write all of it",
        )


class _Run:
    """State of the unrolled run: parameters, buffers and optimizer state at the current step."""

    def __init__(self, module: nn.Module, updates: Updates, arguments: Arguments) -> None:
        self.arguments = arguments
        self.updates = updates
        self.position = Position()
        self.tracer = Tracer(self.position)
        self.model = Model(module, self.position)
        self.placeholders: list[tuple[str, str]] = []
        self.inputs: list[Tensor] = []
        self.outputs: dict[str, Tensor] = {}
        self.taps: set[str] = set()
        self.output_shape: tuple[int, ...] = ()
        self.rates = [updates.learning_rates]
        self.alive: dict[str, Tensor] = {}  # activations of this step's forward pass, for their gradients
        named = dict(module.named_parameters())
        self.dtype = next((p.dtype for p in named.values() if p.is_floating_point()), torch.get_default_dtype())
        self.learnable = {n for n, p in named.items() if p.requires_grad}
        self.trained = [n for n in named if n in self.learnable and n in updates.groups]
        for name, p in named.items():
            self.tracer.forbid(p, name)
        self.parameters = {n: self._input("parameter", n, p) for n, p in named.items()}
        self.buffers = {n: self._input("buffer", n, b) for n, b in module.named_buffers()}
        self.data = {n: self._input("data", n, self._cast(v)) for n, v in self._data().items()}
        self.states: dict[str, State] = {n: {} for n in self.trained}
        self.stepper: Stepper | None = None
        if arguments.steps and updates.optimizer is not None and not updates.has_rule:
            self.stepper = Stepper(updates.optimizer, {id(p): n for n, p in named.items()}, self.tracer)
        self.directions: dict[str, Tensor] = {}
        if arguments.variation:
            self.directions = {n: self._input("direction", n, torch.randn_like(named[n])) for n in self.moving}

    def _data(self) -> dict[str, Tensor]:
        data = self.arguments.data()
        return data if self.arguments.loss is not None else {k: v for k, v in data.items() if k[:7] != "targets"}

    def _cast(self, value: Tensor) -> Tensor:
        return value.to(self.dtype) if value.is_floating_point() else value

    def _input(self, kind: str, name: str, value: Tensor) -> Tensor:
        copy = value.detach().clone()
        description = name if kind == "data" else f"{kind} '{name}'"
        prefix = {"data": "", "direction": "dir_"}.get(kind, f"{kind[0]}_")
        self.tracer.placeholder(f"{prefix}{name}", copy, description, protect=True)
        self.placeholders.append((kind, name))
        self.inputs.append(copy)
        return copy

    @contextmanager
    def recording(self) -> Iterator[None]:
        """The tracer and the settings that keep composite operations decomposed."""
        with ExitStack() as stack:
            stack.enter_context(torch.enable_grad())
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message="TF32 acceleration")
            stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            if "torch._dynamo" in sys.modules:  # what the user has compiled is traced as it was written
                stack.enter_context(torch.compiler.set_stance("force_eager"))
            stack.enter_context(self.model.hooked())
            stack.enter_context(ReadGuard(self.tracer))
            stack.enter_context(self.tracer)
            yield

    def unroll(self) -> None:
        """Every step: forward, loss, gradient, update; then the test forward and the Jacobians."""
        steps = self.arguments.steps
        for t in range(steps + 1):
            self.position.step = t
            parameters = self._leaves()
            if self.arguments.exponents:
                self.outputs.update((f"parameter/{n}/{t}", self.parameters[n]) for n in self.trained)
            buffers = self._copied_buffers()
            loss, after = self._evaluate(t, parameters, buffers)
            if self.arguments.test_inputs is not None:
                self._test(t, parameters)
            if self.arguments.tangent:
                self._tangent(t)
            if self.arguments.variation:
                self._variation(t)
            if t < steps:
                if self.arguments.batches:
                    loss, after = self._minibatch(t, parameters)
                assert loss is not None
                self._update(t, parameters, loss)
                self.buffers = after
                self.updates = self.updates.advanced()
                self.rates.append(self.updates.learning_rates)

    def _leaves(self) -> dict[str, Tensor]:
        return {n: p.detach().requires_grad_(n in self.learnable) for n, p in self.parameters.items()}

    def _copied_buffers(self) -> dict[str, Tensor]:
        return {n: snapshot(b) for n, b in self.buffers.items()}

    def _evaluate(
        self, t: int, parameters: dict[str, Tensor], buffers: dict[str, Tensor]
    ) -> tuple[Tensor | None, dict[str, Tensor]]:
        """The forward pass on all inputs that gives the outputs, activations and loss at ``t``."""
        self.position.phase = "forward"
        out, after, collector = self.model(parameters, buffers, self.data["inputs"])
        self.output_shape = tuple(out.shape[1:])
        self.outputs[f"outputs/{t}"] = snapshot(out)
        for name, value in collector.values.items():
            self.outputs[f"activation/{name}/{t}"] = value
        self.taps |= collector.taps
        self.alive = collector.alive if self.arguments.exponents else {}
        if self.arguments.loss is None:
            return None, after
        loss = self._loss(out, self.data["targets"])
        self.outputs[f"loss/{t}"] = snapshot(loss)
        return loss, after

    def _minibatch(self, t: int, parameters: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        self.position.phase = "forward"
        out, after, _ = self.model(parameters, self._copied_buffers(), self.data[f"inputs/{t}"])
        return self._loss(out, self.data[f"targets/{t}"]), after

    def _test(self, t: int, parameters: dict[str, Tensor]) -> None:
        self.position.phase = "test"
        out, _, collector = self.model(parameters, self._copied_buffers(), self.data["test_inputs"])
        self.outputs[f"test_outputs/{t}"] = snapshot(out)
        for name, value in collector.values.items():
            self.outputs[f"test_activation/{name}/{t}"] = value

    def _loss(self, out: Tensor, targets: Tensor) -> Tensor:
        self.position.phase = "loss"
        self.position.modules.clear()
        function: Callable[[Any, Any], Any] | None = self.arguments.loss
        assert function is not None
        try:
            loss = function(out, targets)
        except Exception as error:
            shapes = f"outputs have shape {tuple(out.shape)}, targets {tuple(targets.shape)} ({targets.dtype})"
            reraise(error, self.position, "the loss fails", shapes)
        where = str(self.position.origin())
        if not isinstance(loss, Tensor):
            raise UsageError(f"the loss returns {type(loss).__name__}, not a tensor", where=where)
        if loss.dim() != 0:
            raise UsageError(
                f"the loss returns shape {tuple(loss.shape)}, not a scalar",
                where=where,
                advice="reduce it, e.g. .mean()",
            )
        if not loss.is_floating_point():
            raise UsageError(f"the loss returns {loss.dtype}, not a floating point number", where=where)
        return loss

    def _update(self, t: int, parameters: dict[str, Tensor], loss: Tensor) -> None:
        """Gradient of the loss, then the optimizer's rule for every trained parameter."""
        self.position.phase = "backward"
        self.position.modules.clear()
        names = self.trained
        watched = {f"activation/{n}": x for n, x in self.alive.items() if x.requires_grad}
        if not loss.requires_grad:
            grads: tuple[Tensor | None, ...] = (None,) * len(names)
        else:
            try:
                sources = [*(parameters[n] for n in names), *watched.values()]
                found = torch.autograd.grad(loss, sources, allow_unused=True)
                grads = found[: len(names)]
                seen = zip([*names, *watched], found, strict=True) if self.arguments.exponents else ()
                self.outputs.update((f"gradient/{n}/{t}", snapshot(g)) for n, g in seen if g is not None)
            except Exception as error:
                reraise(error, self.position, "the gradient of the loss fails")
        if all(g is None for g in grads):
            raise CaptureError(
                "the loss does not depend on any parameter that the optimizer updates",
                where=str(self.position.origin()),
                advice="check for detach(), torch.no_grad() and requires_grad=False in the model",
            )
        self.position.phase = "update"
        if self.stepper is not None:
            self.parameters |= self.stepper.step(
                self.parameters, {n: g for n, g in zip(names, grads, strict=True) if g is not None}
            )
            return
        with torch.no_grad():
            for name, grad in zip(names, grads, strict=True):
                if grad is not None:  # as torch.optim, which leaves parameters without gradient alone
                    self.position.parameter = name
                    self.parameters[name], self.states[name] = self.updates.apply(
                        name, self.parameters[name], grad, self.states[name], t
                    )

    @property
    def moving(self) -> list[str]:
        """Parameters that the optimizer would move, all learnable ones without an optimizer."""
        return self.trained if self.updates.kind is not None else [n for n in self.parameters if n in self.learnable]

    def _variation(self, t: int) -> None:
        self.position.phase = "variation"
        self.position.modules.clear()
        try:
            moved = variation(
                self.model.bare, self.parameters, self.directions, self._copied_buffers(), self.data["inputs"]
            )
        except Exception as error:
            reraise(error, self.position, "the model has no forward-mode derivative")
        self.outputs[f"variation/{t}"] = moved

    def _tangent(self, t: int) -> None:
        self.position.phase = "tangent"
        self.position.modules.clear()
        names = self.moving
        try:
            found = jacobians(self.model.bare, self.parameters, self.buffers, names, self.data["inputs"])
        except Exception as error:
            reraise(error, self.position, "the model has no per-sample Jacobian (torch.func.vmap fails)")
        for name, value in found.items():
            self.outputs[f"jacobian/{name}/{t}"] = value

    def explain_integer_inputs(self, error: Exception) -> None:
        """Raise a :class:`UsageError` if the model fails only because its inputs are integers."""
        inputs = self.arguments.inputs
        if inputs.is_floating_point() or self.position.step > 0:
            return
        try:
            self.model.module(inputs.to(self.dtype))
        except Exception:
            return
        raise UsageError(
            f"the inputs are {inputs.dtype} but the model computes with {self.dtype}",
            where="inputs",
            advice="pass inputs.float()",
        ) from error
