"""The law of a finite network's deviation from its limit, at the order n^(-1/2).

See :mod:`tpcompile.evaluate.influence` for the derivation, docs/finite-width.md for its test.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tpcompile.capture import capture
from tpcompile.errors import UndeterminedLimitError, UsageError
from tpcompile.evaluate.influence import Functional
from tpcompile.evaluate.plan import Plan
from tpcompile.ir import finish
from tpcompile.lowering.lower import lower
from tpcompile.lowering.request import requests

if TYPE_CHECKING:
    from tpcompile.compiled import Compiled

WIDTHS = (2**20, 2**24)  # at which the influence functions are taken: they agree where there is a law of order n^(-1/2)


@dataclass(frozen=True, eq=False)
class Fluctuations:
    """``sqrt(n) (f_n - f)`` is Gaussian for large n, with mean zero and these covariances.

    ``outputs_cov`` is ``(T+1, N*k, N*k)``, the outputs of all inputs before each step and after the last, ``loss_var``
    ``(T+1,)``; each has its standard error, from independent replicas (NaN from a single one). ``output_shape`` is
    ``(N, k)``. ``kernels_cov`` are those of the entries of feature kernels, ``(T+1, N*N, N*N)`` by activation. A width
    n has a bias of order 1/n besides.
    """

    outputs_cov: Tensor
    outputs_cov_stderr: Tensor
    test_outputs_cov: Tensor | None
    test_outputs_cov_stderr: Tensor | None
    loss_var: Tensor | None
    loss_var_stderr: Tensor | None
    output_shape: tuple[int, int]
    kernels_cov: Mapping[str, Tensor]
    kernels_cov_stderr: Mapping[str, Tensor]

    def feature_kernel_std(self, activation: str, width: int) -> Tensor:
        """Standard deviations ``(T+1, N, N)`` of an activation's kernel at that width, over initialisations.

        Raises UsageError for an activation that :meth:`Compiled.fluctuations` was not asked for.
        """
        if activation not in self.kernels_cov:
            raise UsageError(
                f"no fluctuations of the feature kernel of '{activation}'",
                advice=f"ask for it: compiled.fluctuations(activations=['{activation}'])",
            )
        variances = self.kernels_cov[activation].diagonal(dim1=1, dim2=2)
        count = math.isqrt(variances.shape[1])
        return (variances / width).sqrt().reshape(-1, count, count)

    def outputs_std(self, width: int) -> Tensor:
        """Standard deviations ``(T+1, N, k)`` of the outputs of a network of that width, over initialisations."""
        variances = self.outputs_cov.diagonal(dim1=1, dim2=2)
        return (variances / width).sqrt().reshape(-1, *self.output_shape)

    def width_for(self, deviation: float) -> int:
        """The smallest width at which the root mean square of these deviations is at most ``deviation`` at each step.

        Raises UsageError unless ``deviation`` is positive.
        """
        if not deviation > 0:
            raise UsageError(f"the deviation must be positive, found {deviation!r}")
        largest = float(self.outputs_cov.diagonal(dim1=1, dim2=2).mean(1).max())
        return max(1, math.ceil(largest / deviation**2))


def fluctuations(
    compiled: Compiled, particles: int, replicas: int, seed: int, activations: Sequence[str]
) -> Fluctuations:
    """See :meth:`Compiled.fluctuations`."""
    for name, value, least in (("particles", particles, 16), ("replicas", replicas, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise UsageError(f"{name} must be an integer of at least {least}, found {value!r}")
    kinds = [k for k in ("outputs", "test_outputs", "loss") if f"{k}/0" in compiled.program.outputs]
    if unknown := [name for name in activations if f"kernel/{name}/0/xx" not in compiled.program.outputs]:
        raise UsageError(f"no activation '{unknown[0]}'", advice=f"there are {', '.join(compiled.activations)}")
    names = [f"{kind}/{t}" for kind in kinds for t in range(compiled.steps + 1)]
    names += [f"kernel/{name}/{t}/xx" for name in activations for t in range(compiled.steps + 1)]
    _refuse_random(compiled, names)
    programs = _Programs(compiled, names)
    samples = [programs.covariances(WIDTHS[1], particles, 1000 * seed + r) for r in range(replicas)]
    before = programs.covariances(WIDTHS[0], particles, 1000 * seed)
    for name in names:
        small, large = (float(c[name].abs().max()) for c in (before, samples[0]))
        if large > 1.5 * small + 1e-9:
            raise UndeterminedLimitError(
                f"the deviation of '{name}' from its limit is larger than n^(-1/2)",
                where=name,
                advice="compare simulate(width, seed) over seeds instead",
            )
    found = {name: torch.stack([s[name] for s in samples]) for name in names}

    def over_steps(kind: str, end: str = "") -> tuple[Tensor | None, Tensor | None]:
        if f"{kind}/0{end}" not in found:
            return None, None
        x = torch.stack([found[f"{kind}/{t}{end}"] for t in range(compiled.steps + 1)], 1)
        stderr = x.std(0) / replicas**0.5 if replicas > 1 else torch.full_like(x[0], math.nan)
        return x.mean(0), stderr

    outputs, errors = over_steps("outputs")
    assert outputs is not None
    assert errors is not None
    losses, loss_errors = (x if x is None else x[:, 0, 0] for x in over_steps("loss"))
    size = math.prod(compiled.capture.output_shape)
    shape = (outputs.shape[1] // size, size)
    kernels: list[dict[str, Tensor]] = [{}, {}]
    for name in activations:
        for kept, x in zip(kernels, over_steps(f"kernel/{name}", "/xx"), strict=True):
            assert x is not None
            kept[name] = x
    return Fluctuations(outputs, errors, *over_steps("test_outputs"), losses, loss_errors, shape, *kernels)


def _refuse_random(compiled: Compiled, names: Sequence[str]) -> None:
    random = Plan.of(compiled.program).random
    for name in names:
        if compiled.program.outputs[name].limit in random:
            raise UndeterminedLimitError(
                f"'{name}' is random in the limit: what a width adds to its law is of another kind",
                where=name,
                advice="evaluate().outputs_cov is the covariance in the limit",
            )


class _Programs:
    """The training run lowered at concrete widths, with nothing dropped."""

    def __init__(self, compiled: Compiled, names: Sequence[str]) -> None:
        self.names = names
        self.capture = compiled.capture
        if self.capture.steps != compiled.steps:  # a long run is compiled from its first steps
            c = compiled
            data = (c.inputs, c.targets, c.loss, c.optimizer, c.steps, c.test_inputs)
            self.capture = capture(c.make, *data, init=c.init, widths=c.widths)
        self.laws = dict(self.capture.laws)
        for node in self.capture.nodes:
            if node.name in self.capture.laws:
                self.laws[str(node.target)] = self.capture.laws[node.name]
        self.plans = {width: self._plan(width) for width in WIDTHS}

    def _plan(self, width: int) -> Plan:
        lowered = lower(self.capture, Fraction(1), width=width)
        outputs, _ = requests(self.capture, lowered)
        return Plan.of(finish(lowered.context.algebra.builder, {name: outputs[name] for name in self.names}))

    def covariances(self, width: int, particles: int, seed: int) -> dict[str, Tensor]:
        """n times the covariance of every output over its entries, from one set of particles."""
        at = Functional(self.plans[width], self.laws, width, particles, seed)
        values = [at.output(name) for name in self.names]
        parts = at.influences(torch.cat(values))
        sizes = [len(v) for v in values]
        columns = [torch.cat([a.split(sizes, 1)[i] for a in parts]) for i in range(len(sizes))]
        return {name: a.T @ a for name, a in zip(self.names, columns, strict=True)}
