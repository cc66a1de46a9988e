"""The user's own model at a finite width, really built and really trained with its own optimizer."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler

from tpcompile.capture.arguments import check_make
from tpcompile.capture.origin import failing_source, first_line
from tpcompile.errors import FactoryError, TpcompileError, UsageError
from tpcompile.recording import forward_with_activations, unchanged
from tpcompile.results import SimulationResult
from tpcompile.schedule import advance, split
from tpcompile.tangent import tangent_kernel

Make = Callable[[int], Any]
Batches = Tensor | Sequence[Tensor]
Loss = Callable[[Tensor, Any], Tensor]
OptimizerFactory = Callable[[Any], torch.optim.Optimizer]


@dataclass(frozen=True)
class TrainingRun:
    """All that decides a training run; ``batches`` holds one pair per step, or one for all steps."""

    make: Make
    batches: tuple[tuple[Tensor, Tensor | None], ...]
    loss: Loss | None
    optimizer: OptimizerFactory | None
    steps: int
    width: int
    seed: int
    dtype: torch.dtype
    centred: bool

    @property
    def inputs(self) -> Tensor:
        return torch.cat([batch for batch, _ in self.batches])

    @property
    def targets(self) -> Tensor | None:
        targets = [target for _, target in self.batches if target is not None]
        return torch.cat(targets) if targets else None

    def train(self, observe: Observer) -> None:
        """Build the model and train it, showing it to ``observe`` before every step and after the last."""
        _train(self, observe)


# What sees the network at each moment: (step, model, learning rate of each trained parameter).
Observer = Callable[[int, nn.Module, dict[str, float]], None]


def simulate(
    make: Make,
    inputs: Batches,
    targets: Batches | None = None,
    loss: Loss | None = None,
    optimizer: OptimizerFactory | None = None,
    steps: int = 0,
    test_inputs: Tensor | None = None,
    *,
    width: int,
    seed: int = 0,
    dtype: torch.dtype = torch.float64,
    activations: Sequence[str] | None = None,
    output_init: str | None = None,
) -> SimulationResult:
    """Build ``make(width)`` with ``seed``, train it for ``steps`` steps and report it like the limit.

    ``inputs`` is ``(N, ...)``, or a list with a minibatch for each step; outputs, kernels and loss are
    then over all minibatches together. The model is cast to ``dtype`` in place, so that its optimizer
    keeps its parameters. ``activations`` names those to report; without it all that grow with the width.
    ``output_init="zero"`` trains ``f - f_0``, the network minus its own initial function, which is what the
    limit conditioned on a zero output is to be compared with. The random state (torch, NumPy,
    ``random``) is the same afterwards.

    Raises :class:`UsageError` for arguments that do not fit, :class:`FactoryError` if ``make`` fails.
    """
    if output_init not in (None, "zero"):
        raise UsageError(f"output_init must be None or 'zero', found {output_init!r}")
    if width < 1 or steps < 0:
        raise UsageError(f"width must be at least 1 and steps at least 0, found {width} and {steps}")
    if steps > 0 and loss is None:
        raise UsageError("training needs a loss", advice="pass loss=, for example torch.nn.functional.mse_loss")
    run = TrainingRun(
        make=make,
        batches=_batches(inputs, targets, steps, dtype),
        loss=loss,
        optimizer=optimizer,
        steps=steps,
        width=width,
        seed=seed,
        dtype=dtype,
        centred=output_init == "zero",
    )
    tests = None if test_inputs is None else _cast(test_inputs, dtype)
    record = _Record(run, tests, tuple(activations) if activations is not None else _growing(run))
    _train(run, record.observe)
    return record.result()


def training_run(
    make: Make, inputs: Batches, targets: Batches | None, loss: Loss | None, optimizer: OptimizerFactory | None,
    steps: int, *, width: int, seed: int, dtype: torch.dtype = torch.float64,
) -> TrainingRun:  # fmt: skip
    """A run of the user's model at a finite width, for observers of their own."""
    return TrainingRun(make, _batches(inputs, targets, steps, dtype), loss, optimizer, steps, width, seed, dtype, False)


class _Record:
    """Observer that keeps what a result reports; activations themselves only from the start."""

    def __init__(self, run: TrainingRun, tests: Tensor | None, activations: tuple[str, ...]) -> None:
        self.run, self.tests, self.activations = run, tests, activations
        self.inputs, self.targets = run.inputs, run.targets
        self.outputs: list[Tensor] = []
        self.test_outputs: list[Tensor] = []
        self.loss: list[Tensor] = []
        self.kernels: dict[str, list[Tensor]] = {name: [] for name in activations}
        self.changes: dict[str, list[Tensor]] = {name: [] for name in activations}
        self.start: dict[str, Tensor] = {}
        self.start_outputs: tuple[Tensor, Tensor | None] | None = None

    def observe(self, step: int, model: nn.Module, rates: dict[str, float]) -> None:
        output, found = forward_with_activations(model, self.inputs)
        _check_output(output, self.inputs)
        test_output = None
        if self.tests is not None:
            test_output, test_found = forward_with_activations(model, self.tests)
            found = {name: torch.cat([x, test_found[name]]) for name, x in found.items() if name in test_found}
        if self.start_outputs is None:
            self.start_outputs = (output, test_output) if self.run.centred else None
        if self.run.centred and self.start_outputs is not None:
            output = output - self.start_outputs[0]
            if test_output is not None and self.start_outputs[1] is not None:
                test_output = test_output - self.start_outputs[1]
        if self.run.loss is not None:
            self.loss.append(self.run.loss(output, self.targets).detach())
        self.outputs.append(output)
        if test_output is not None:
            self.test_outputs.append(test_output)
        for name in self.activations:
            if name not in found:
                raise UsageError(
                    f"the model has no activation '{name}'", advice=f"it has: {', '.join(found) or 'none'}"
                )
            x = found[name].flatten(1).double()
            self.start.setdefault(name, x)
            self.kernels[name].append(x @ x.T / self.run.width)
            self.changes[name].append((x - self.start[name]).square().sum(1) / self.run.width)

    def result(self) -> SimulationResult:
        outputs, shape = _stack(self.outputs)
        tests = _stack(self.test_outputs)[0] if self.test_outputs else None
        loss = torch.stack(self.loss).double() if self.loss else None
        kernels = {name: torch.stack(values) for name, values in self.kernels.items()}
        return SimulationResult(
            outputs=outputs,
            outputs_stderr=torch.zeros_like(outputs),
            test_outputs=tests,
            test_outputs_stderr=None if tests is None else torch.zeros_like(tests),
            loss=loss,
            loss_stderr=None if loss is None else torch.zeros_like(loss),
            activations=self.activations,
            kernels=kernels,
            kernels_stderr={name: torch.zeros_like(value) for name, value in kernels.items()},
            feature_changes={name: torch.stack(values) for name, values in self.changes.items()},
            targets=self.targets,
            output_shape=shape,
            ntk_source=lambda: _tangent_shares(self.run),
            width=self.run.width,
            seed=self.run.seed,
        )


def _tangent_shares(run: TrainingRun) -> dict[str, Tensor]:
    """Train once more and take the tangent kernel at each moment: ``(T+1, N, N, k, k)`` a parameter."""
    moments: list[dict[str, Tensor]] = []
    inputs = run.inputs

    def observe(step: int, model: nn.Module, rates: dict[str, float]) -> None:
        with unchanged(model):
            moments.append(tangent_kernel(model, inputs, rates))

    _train(run, observe)
    return {name: torch.stack([shares[name].double() for shares in moments]) for name in moments[0]}


def _train(run: TrainingRun, observe: Observer) -> None:
    with seeded(run.seed):
        model, optimizer, scheduler = _build(run)
        with default_dtype(run.dtype):
            starts: list[Tensor | None] = [None] * len(run.batches)
            if run.centred:
                starts = [_evaluate(model, batch) for batch, _ in run.batches]
            for step in range(run.steps + 1):
                observe(step, model, learning_rates(model, optimizer))
                if step == run.steps:
                    break
                assert run.loss is not None
                assert optimizer is not None
                place = step if len(run.batches) > 1 else 0
                (batch, target), start = run.batches[place], starts[place]
                optimizer.zero_grad()
                output = model(batch)
                run.loss(output if start is None else output - start, target).backward()
                optimizer.step()
                advance(scheduler)


def _build(run: TrainingRun) -> tuple[nn.Module, torch.optim.Optimizer | None, LRScheduler | None]:
    model, optimizer, scheduler = build_training(run.make, run.width)
    model.to(run.dtype)
    if optimizer is not None and run.optimizer is not None:
        raise UsageError("make returns an optimizer already", advice="leave out the argument optimizer=")
    if optimizer is None and run.optimizer is not None:
        optimizer = run.optimizer(model.parameters())
    if optimizer is None and run.steps > 0:
        raise UsageError(
            "training needs an optimizer",
            advice="return (model, optimizer) from make, or pass optimizer=callable(params)",
        )
    return model, optimizer, scheduler


def build(make: Make, width: int) -> tuple[nn.Module, torch.optim.Optimizer | None]:
    """``make(width)`` as a pair, without its schedule."""
    return build_training(make, width)[:2]


def build_training(make: Make, width: int) -> tuple[nn.Module, torch.optim.Optimizer | None, LRScheduler | None]:
    """``make(width)`` as a triple. Raises :class:`FactoryError` if it fails or returns something else."""
    check_make(make)
    try:
        made = make(width)
    except TpcompileError:
        raise
    except Exception as error:
        raise FactoryError(f"make({width}) fails: {first_line(error)}", where=failing_source(error)) from error
    model, optimizer, scheduler = split(made)
    if not isinstance(model, nn.Module):
        raise FactoryError(
            f"make({width}) must return a torch.nn.Module or (module, torch.optim.Optimizer), found {made!r}"
        )
    return model, optimizer, scheduler


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch, NumPy and ``random``, and restore their states at the end."""
    states = (np.random.get_state(), random.getstate())
    with torch.random.fork_rng(devices=[]):
        try:
            torch.manual_seed(seed)
            np.random.seed(seed % 2**32)
            random.seed(seed)
            yield
        finally:
            np.random.set_state(states[0])
            random.setstate(states[1])


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """Tensors that a forward pass makes without a dtype fit the cast model."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _batches(
    inputs: Batches, targets: Batches | None, steps: int, dtype: torch.dtype
) -> tuple[tuple[Tensor, Tensor | None], ...]:
    many = not isinstance(inputs, Tensor)
    data = tuple(inputs) if many else (inputs,)
    if many and len(data) != max(steps, 1):
        raise UsageError(f"inputs is a list of {len(data)} minibatches for {steps} steps", advice="give one a step")
    if targets is None:
        wanted: tuple[Tensor | None, ...] = (None,) * len(data)
    else:
        wanted = (targets,) if isinstance(targets, Tensor) else tuple(targets)
    if len(wanted) != len(data):
        raise UsageError(f"there are {len(data)} minibatches of inputs and {len(wanted)} of targets")
    for x, y in zip(data, wanted, strict=True):
        if not isinstance(x, Tensor) or x.ndim == 0:
            raise UsageError("inputs must be a tensor (N, ...) or a list of such tensors")
        if y is not None and y.shape[:1] != x.shape[:1]:
            raise UsageError(f"{x.shape[0]} inputs but targets of shape {tuple(y.shape)}")
    return tuple((_cast(x, dtype), None if y is None else _cast(y, dtype)) for x, y in zip(data, wanted, strict=True))


def _growing(run: TrainingRun) -> tuple[str, ...]:
    """Names of the activations with a width axis: those whose shape differs at twice the width."""
    shapes = []
    for width in (run.width, 2 * run.width):
        with seeded(run.seed):
            model, _ = build(run.make, width)
            model.to(run.dtype)
            with default_dtype(run.dtype):
                _, found = forward_with_activations(model, run.batches[0][0])
        shapes.append({name: x.shape for name, x in found.items()})
    return tuple(name for name, shape in shapes[0].items() if name in shapes[1] and shapes[1][name] != shape)


def learning_rates(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> dict[str, float]:
    """Learning rate of every trained parameter; 1 without an optimizer."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if optimizer is None:
        return dict.fromkeys(trained, 1.0)
    rates = {id(p): float(group["lr"]) for group in optimizer.param_groups for p in group["params"]}
    return {name: rates[id(p)] for name, p in trained.items() if id(p) in rates}


def _evaluate(model: nn.Module, batch: Tensor) -> Tensor:
    with torch.enable_grad(), unchanged(model):  # a forward pass may take gradient steps itself
        return model(batch).detach()


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.detach().to(dtype) if value.is_floating_point() else value.detach()


def _stack(values: list[Tensor]) -> tuple[Tensor, tuple[int, ...]]:
    stacked = torch.stack(values).double()
    shape = tuple(stacked.shape[2:])
    return (stacked if shape else stacked.unsqueeze(-1)), shape


def _check_output(output: object, inputs: Tensor) -> None:
    if not isinstance(output, Tensor) or output.ndim == 0 or output.shape[0] != inputs.shape[0]:
        found = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"the model must return a tensor ({inputs.shape[0]}, ...), found {found}")
