"""``tp.compile``: from a factory to a program, and from the program to its limit."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from tpcompile.capture import capture
from tpcompile.capture.graph import Capture
from tpcompile.errors import UsageError
from tpcompile.evaluate.choice import EVALUATORS
from tpcompile.evaluate.limit import Estimate, Settings, Tick, estimate
from tpcompile.evaluate.memory import parse_bytes
from tpcompile.ir import Program, restrict
from tpcompile.laws import Law
from tpcompile.lowering.periodic import SHORT, NotPeriodicError, continued
from tpcompile.lowering.request import Compilation, compile_capture
from tpcompile.metrics import jackknife
from tpcompile.results import LimitResult, Result, SimulationResult, TangentKernel

if TYPE_CHECKING:
    from tpcompile.fluctuations import Fluctuations
    from tpcompile.symbolic import Symbolic

UNROLLED = 24
"""Longer training runs are compiled from their first steps where these repeat."""

Batches = Tensor | Sequence[Tensor]


@dataclass(frozen=True)
class Compiled:
    """A model and its training run, compiled to the infinite-width limit. Made by :func:`compile`."""

    make: Callable[[int], Any]
    inputs: Batches
    targets: Batches | None
    loss: Callable[..., Tensor] | None
    optimizer: Callable[..., Any] | None
    steps: int
    test_inputs: Tensor | None
    init: Mapping[str, Law] | None
    widths: tuple[int, ...] | None
    capture: Capture = field(repr=False)
    compilation: Compilation = field(repr=False)

    @property
    def program(self) -> Program:
        """The tensor program; ``str(program)`` is its text, ``program.graph()`` a networkx graph."""
        return self.compilation.program

    @property
    def graph_module(self) -> fx.GraphModule:
        """The traced torch.fx graph at the first probe width; of a long run the first steps, which repeat."""
        assert self.capture.graph_module is not None
        return self.capture.graph_module

    @property
    def activations(self) -> tuple[str, ...]:
        """Names of the hidden activations that have a limit, in order."""
        return self.compilation.activations

    def evaluate(
        self,
        evaluator: str = "auto",
        particles: int = 16384,
        replicas: int = 4,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        *,
        ensemble: int | None = None,
        output_init: str | None = None,
        extrapolate: bool = False,
        dot: bool = True,
        memory: int | float | str | None = None,
        kernels: bool = True,
        progress: Tick | None = None,
    ) -> LimitResult:
        """The limit of everything that was asked for.

        ``evaluator`` "auto" takes the exact one where it applies (linear networks, small ones of polynomials) and the
        particles else; the result says which and why. "exact" and "particles" force one. All arguments but
        ``output_init`` and ``dot`` concern the particles: ``particles`` (a power of two is best) stand for the
        coordinates of each width axis, ``replicas`` are independent scramblings that give the standard errors,
        ``ensemble`` is the number of draws of the random output at initialisation (default: twice its rank, at most
        256, with exact mean and covariance where the outputs stay affine in it, as with MSE in the kernel regime; at
        least 128 draws of its law elsewhere), ``output_init="zero"`` conditions on a zero output instead.
        ``extrapolate`` removes the bias of order 1/particles, at about twice the noise. ``dot=False`` drops the
        response terms of the Master Theorem, which is wrong, and shows what they contribute. ``memory`` bounds the
        memory of the evaluation (bytes, or "4GB"; default: what the machine has): where it does not suffice, the bases
        of the initial matrices and the histories of updates are kept on disk, with the same result; where that is not
        enough it fails at once, not later. ``kernels=False`` leaves out feature kernels and changes of features, and
        saves their time (the draws may be others): the result has outputs and loss, and no activations.
        Raises UsageError for bad arguments or an evaluator that does not apply, EvaluationError where a value is not
        finite or particles are too few.
        """
        settings = _settings(
            evaluator, particles, replicas, seed, dtype, ensemble, output_init, extrapolate, dot, memory
        )
        names = ("outputs", "test_outputs")
        over = tuple(f"{n}/{t}" for n in names for t in range(self.steps + 1) if f"{n}/{t}" in self.program.outputs)
        program = self.program if kernels else self._without_kernels
        found = estimate(program, settings, over, progress)
        return _result(self, settings, found, self.activations if kernels else ())

    @cached_property
    def _without_kernels(self) -> Program:
        return restrict(self.program, lambda name: not name.startswith(("kernel/", "change/")))

    def tangent(self, settings: Settings, progress: Tick | None = None) -> TangentKernel:
        """The tangent kernel at every step, by parameter; traced and evaluated on first use."""

        def trace(steps: int) -> Capture:
            data = (self.inputs, self.targets, self.loss, self.optimizer, steps, self.test_inputs)
            return capture(self.make, *data, init=self.init, widths=self.widths, tangent=True)

        only = ("ntk", "tangent", "outputs", "test_outputs")
        program = _compiled(trace, self.steps, self.inputs, only)[1].program
        found = estimate(program, settings, (), progress)
        total = torch.stack([_blocks(found.stderr[f"tangent/{t}"]) for t in range(self.steps + 1)])
        return TangentKernel(_shares(found.mean), _shares(found.stderr), total)

    def simulate(self, width: int, seed: int = 0, **options: Any) -> SimulationResult:
        """The user's own model, really trained at that width; see :func:`tpcompile.simulate.simulate`."""
        from tpcompile.simulate import simulate

        return simulate(
            self.make,
            self.inputs,
            self.targets,
            self.loss,
            self.optimizer,
            self.steps,
            self.test_inputs,
            width=width,
            seed=seed,
            activations=self.activations,
            **options,
        )

    def symbolic(self, symbols: Sequence[str] = ("eta", "gram", "targets"), output_init: str | None = None) -> Symbolic:
        """The limit as formulas: sympy expressions in hyperparameters, the Gram matrix and the targets.

        For networks whose pointwise functions are polynomials, with a loss such as mean squared error; small cases,
        since formulas grow quickly with steps, depth and inputs. ``symbols`` says what is a symbol, among "eta",
        "momentum" and "decay" (factors of all learning rates, momenta and weight decays), "gram" and "targets"; the
        rest keeps its numbers, which must be rationals or roots of rationals. Random outputs at initialisation enter as
        symbols of their own. See :class:`tpcompile.symbolic.Symbolic`.
        Raises UsageError for a symbol of something that the optimizer does not have, EvaluationError where there is no
        formula.
        """
        from tpcompile.symbolic import symbolic

        return symbolic(self, symbols, output_init)

    def fluctuations(
        self, particles: int = 4096, replicas: int = 4, seed: int = 0, activations: Sequence[str] = ()
    ) -> Fluctuations:
        """How far a network of width n is from the limit: n times the covariance of its outputs, for large n.

        Also of the loss, and of the feature kernels of these ``activations`` over the inputs.

        By the delta method: derivatives of the limit by the weights of the particles that stand for its coordinates.
        See :class:`tpcompile.fluctuations.Fluctuations`. Raises UndeterminedLimitError where the deviation is not of
        order n^(-1/2) (a random output at initialisation), or its law is not known (blocks of a growing axis, entrywise
        functions of matrices).
        """
        from tpcompile.fluctuations import fluctuations

        return fluctuations(self, particles, replicas, seed, activations)

    def check(self, widths: Sequence[int] = (256, 512, 1024), **options: Any) -> Any:
        """Distance between the limit and the finite network with its fitted rate; see :func:`tpcompile.check.check`."""
        from tpcompile.check import check

        return check(self, widths, **options)


def compile(
    make: Callable[[int], Any],
    inputs: Batches,
    targets: Batches | None = None,
    loss: Callable[..., Tensor] | None = None,
    optimizer: Callable[..., Any] | None = None,
    steps: int = 0,
    test_inputs: Tensor | None = None,
    *,
    init: Mapping[str, Law] | None = None,
    widths: Sequence[int] | None = None,
) -> Compiled:
    """Compile a model and its training run to the infinite-width limit.

    ``make(width)`` returns a module, (module, optimizer) or (module, optimizer, learning-rate scheduler). ``inputs`` is
    ``(N, ...)``, or a list of ``steps`` minibatches, one a step; ``targets`` likewise. ``loss(output, target)`` returns
    a scalar. ``optimizer(params)`` makes the optimizer if ``make`` returns a bare module. ``init`` overrides the laws
    of parameters, ``widths`` the probe widths. Raises a :class:`TpcompileError` that names the place for anything that
    has no limit or cannot be traced.
    """
    captured, compilation = _compiled(
        lambda count: capture(make, inputs, targets, loss, optimizer, count, test_inputs, init=init, widths=widths),
        steps,
        inputs,
    )
    return Compiled(
        make,
        inputs,
        targets,
        loss,
        optimizer,
        steps,
        test_inputs,
        init,
        tuple(widths) if widths is not None else None,
        captured,
        compilation,
    )


def _compiled(
    trace: Callable[[int], Capture], steps: int, inputs: Batches, only: tuple[str, ...] = ()
) -> tuple[Capture, Compilation]:
    """The program of a training run: of all its steps, or of a few that are seen to repeat and are continued."""
    if isinstance(steps, int) and steps > UNROLLED and isinstance(inputs, Tensor):
        captured = trace(SHORT)
        compilation = compile_capture(captured, only)
        with suppress(NotPeriodicError):
            return captured, replace(compilation, program=continued(compilation.program, steps))
    captured = trace(steps)
    return captured, compile_capture(captured, only)


def _settings(
    evaluator: str,
    particles: int,
    replicas: int,
    seed: int,
    dtype: torch.dtype,
    ensemble: int | None,
    output_init: str | None,
    extrapolate: bool,
    dot: bool,
    memory: int | float | str | None,
) -> Settings:
    if evaluator not in EVALUATORS:
        raise UsageError(f"unknown evaluator {evaluator!r}", advice=f"use one of {', '.join(map(repr, EVALUATORS))}")
    for name, value, least in (("particles", particles, 16), ("replicas", replicas, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{name} must be an integer of at least {least}, found {value!r}")
    if ensemble is not None and (not isinstance(ensemble, int) or ensemble < 2):
        raise UsageError(f"ensemble must be an integer of at least 2, found {ensemble!r}")
    if output_init not in (None, "zero"):
        raise UsageError(f"output_init must be None or 'zero', found {output_init!r}")
    if dtype not in (torch.float64, torch.float32):
        raise UsageError(f"dtype must be torch.float64 or torch.float32, found {dtype}")
    bound = None if memory is None else parse_bytes(memory)
    return Settings(particles, replicas, seed, dtype, ensemble, output_init, extrapolate, dot, bound, evaluator)


def _result(c: Compiled, settings: Settings, found: Estimate, activations: tuple[str, ...]) -> LimitResult:
    steps = range(c.steps + 1)

    def over_steps(values: Mapping[str, Tensor], name: str) -> Tensor | None:
        return _stack(values, name, steps) if f"{name}/0" in values else None

    targets = c.targets if c.targets is None or isinstance(c.targets, Tensor) else torch.cat(list(c.targets))
    common: dict[str, Any] = {
        "activations": activations,
        "targets": targets,
        "output_shape": c.capture.output_shape,
    }

    def without(index: int) -> Result:
        """The result of all replicas but one."""
        kept = [sample for i, sample in enumerate(found.samples) if i != index] or found.samples
        mean = {name: torch.stack([sample[name] for sample in kept]).mean(0) for name in kept[0]}
        zeros = {name: torch.zeros_like(value) for name, value in mean.items()}
        return Result(**_fields(c, activations, mean), **_fields(c, activations, zeros, "_stderr"), **common)

    sampled = found.evaluator == "particles"
    return LimitResult(
        **_fields(c, activations, found.mean),
        **_fields(c, activations, found.stderr, "_stderr"),
        metrics_stderr_source=(lambda: jackknife(map(without, range(len(found.samples))))) if sampled else None,
        **common,
        ntk_source=lambda: c.tangent(settings),
        evaluator=found.evaluator,
        why=found.why,
        particles=settings.particles if sampled else 0,
        replicas=settings.replicas if sampled else 0,
        seed=settings.seed,
        outputs_cov=over_steps(found.covariance, "outputs"),
        outputs_cov_stderr=over_steps(found.covariance_stderr, "outputs"),
        test_outputs_cov=over_steps(found.covariance, "test_outputs"),
        test_outputs_cov_stderr=over_steps(found.covariance_stderr, "test_outputs"),
    )


def _fields(
    c: Compiled, activations: tuple[str, ...], values: Mapping[str, Tensor], suffix: str = ""
) -> dict[str, Any]:
    """A result's outputs, loss, kernels and changes of features, or their standard errors."""
    steps = range(c.steps + 1)
    found: dict[str, Any] = {
        "outputs": _series(values, "outputs", steps),
        "kernels": {a: torch.stack([_kernel(values, a, t) for t in steps]) for a in activations},
        "feature_changes": {a: torch.stack([_change(values, a, t) for t in steps]) for a in activations},
    }
    if "test_outputs/0" in values:
        found["test_outputs"] = _series(values, "test_outputs", steps)
    if "loss/0" in values:
        found["loss"] = _stack(values, "loss", steps)
    return {name + suffix: value for name, value in found.items()}


def _series(values: Mapping[str, Tensor], name: str, steps: range) -> Tensor:
    stacked = _stack(values, name, steps)
    return stacked if stacked.ndim > 2 else stacked[..., None]


def _stack(values: Mapping[str, Tensor], name: str, steps: range) -> Tensor:
    return torch.stack([values[f"{name}/{t}"] for t in steps])


def _kernel(values: Mapping[str, Tensor], name: str, t: int) -> Tensor:
    xx = values[f"kernel/{name}/{t}/xx"]
    if f"kernel/{name}/{t}/zz" not in values:
        return xx
    xz, zz = values[f"kernel/{name}/{t}/xz"], values[f"kernel/{name}/{t}/zz"]
    return torch.cat([torch.cat([xx, xz], 1), torch.cat([xz.T, zz], 1)])


def _change(values: Mapping[str, Tensor], name: str, t: int) -> Tensor:
    parts = [values[f"change/{name}/{t}/{a}"] for a in "xz" if f"change/{name}/{t}/{a}" in values]
    return torch.cat(parts)


def _shares(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    steps: dict[str, dict[int, Tensor]] = {}
    for name, value in values.items():
        if not name.startswith("ntk/"):
            continue
        parameter, _, t = name.removeprefix("ntk/").rpartition("/")
        steps.setdefault(parameter, {})[int(t)] = value
    return {p: torch.stack([_blocks(v[t]) for t in sorted(v)]) for p, v in steps.items()}


def _blocks(gram: Tensor) -> Tensor:
    """From the program's axes (N, k, N, k) to (N, N, k, k)."""
    return gram.permute(0, 2, 1, 3)
