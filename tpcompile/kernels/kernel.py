"""``tp.kernel``: infinite-width covariance and tangent kernel of a user's own module over all pairs of inputs."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.evaluate.limit import Settings
from tpcompile.kernels.arrays import Array as Data
from tpcompile.kernels.arrays import Kernels, numpy_in_numpy_out
from tpcompile.kernels.job import Job
from tpcompile.kernels.particles import ParticlePlan, estimated, plan_particles
from tpcompile.kernels.plan import Pairs, Plan, Traces, check_input, plan_kernels
from tpcompile.kernels.uses import Uses
from tpcompile.laws import Law

RECURSION = 20_000
EVALUATORS = ("exact", "particles")
Tick = Callable[[int, int], None]


class Kernel(Uses):
    """The limiting kernels of a module, compiled once and evaluated on any inputs. Made by :func:`kernel`."""

    batch = False  # whether an example is a whole batch

    def __init__(
        self,
        make: Callable[[int], Any],
        example: Tensor,
        optimizer: Callable[..., Any] | None,
        init: Mapping[str, Law] | None,
        widths: Sequence[int] | None,
        evaluator: str = "exact",
    ) -> None:
        self.example = example
        self.arguments = (make, example, optimizer, init, widths, evaluator)
        self.evaluator = evaluator
        self._traces = Traces(make, example, optimizer, init, widths, self.batch)
        self._plans: dict[bool, Plan | ParticlePlan] = {}
        self._plan(False)

    def _plan(self, tangent: bool) -> Plan | ParticlePlan:
        if tangent not in self._plans:
            with _deep():
                captured = self._traces.variation() if tangent else self._traces.output()
                planned = plan_particles if self.evaluator == "particles" else plan_kernels
                self._plans[tangent] = planned(captured, tangent)
        return self._plans[tangent]

    # facts ---------------------------------------------------------------------------------

    @property
    def program(self) -> Any:
        """The tensor program of the model for one input."""
        return self._plan(False).program.program

    @property
    def nngp_exponent(self) -> Fraction:
        """Power of n in front of the NNGP."""
        return self._plan(False).nngp.exponent

    @property
    def ntk_exponent(self) -> Fraction:
        """Power of n in front of the tangent kernel."""
        pairs = self._plan(True).ntk
        assert pairs is not None
        return pairs.exponent

    @property
    def sampled(self) -> bool:
        """True if some expectation is estimated from draws: results then have a standard error."""
        return any(plan.sampled for plan in self._plans.values())

    @property
    def forms(self) -> list[tuple[str, float | None]]:
        """How each expectation is computed, in words, and its stated error.

        None where it is closed; where it is drawn (``errors=True`` gives the standard error of the kernel); and for a
        quadrature over several variables before its first evaluation, which finds the absolute error (the largest so
        far is kept).
        """
        return list(self._plan(True in self._plans).forms)

    def program_of(self, get: str) -> Any:
        """The tensor program that ``"nngp"``, ``"ntk"`` or ``"both"`` are computed from."""
        return self._plan(get != "nngp").program.program

    def pairs(self, get: str) -> Pairs:
        """The planned ``"nngp"`` or ``"ntk"``."""
        plan = self._plan(get == "ntk")
        found = plan.nngp if get == "nngp" else plan.ntk
        assert found is not None
        return found

    def single_pairs(self, get: str) -> Pairs:
        """The same for one input where examples are whole batches."""
        return self.pairs(get)

    # values --------------------------------------------------------------------------------

    def nngp(self, x1: Data, x2: Data | None = None, **options: Any) -> Any:
        """Covariance of the output, ``(N1, N2)``, or ``(N1, N2, S, S)`` for per-position outputs."""
        return self(x1, x2, "nngp", **options)

    def ntk(self, x1: Data, x2: Data | None = None, **options: Any) -> Any:
        """Tangent kernel, of the shape of :meth:`nngp`."""
        return self(x1, x2, "ntk", **options)

    @numpy_in_numpy_out
    def __call__(
        self,
        x1: Data,
        x2: Data | None = None,
        get: str = "both",
        *,
        diagonal: bool = False,
        dtype: torch.dtype | None = None,
        block: int | None = None,
        variances: Mapping[str, Tensor | float] | None = None,
        progress: Tick | None = None,
        samples: int = 16384,
        replicas: int = 4,
        seed: int = 0,
        errors: bool = False,
    ) -> Any:
        """Kernels of all pairs of two batches of inputs, or of one with itself; NumPy arrays give NumPy arrays.

        ``get`` is ``"nngp"``, ``"ntk"`` or ``"both"`` (a pair of both at the price of one pass). ``diagonal`` gives
        ``(N,)`` values of each input with itself. ``block`` is the side of the blocks of pairs that are computed at a
        time (of the diagonal, the number of inputs), ``variances`` replaces the variances of parameters by name
        (without powers of n; differentiable), and ``dtype`` is the precision, that of x1 by default. Expectations over
        many correlated variables (:attr:`sampled`) are drawn: ``samples`` draws, ``replicas`` times from ``seed`` on,
        of which the mean is given, with ``errors`` beside its standard error (zero where nothing is drawn).
        Raises UsageError for inputs that are no batch of inputs such as the example.
        """
        if get not in ("nngp", "ntk", "both"):
            raise UsageError(f"get must be 'nngp', 'ntk' or 'both', found {get!r}")
        if diagonal and x2 is not None:
            raise UsageError("a diagonal is of one set of inputs with itself, found x2 beside x1")
        if block is not None and block < 1:
            raise UsageError(f"block must be at least 1, found {block}")
        if samples < 1 or replicas < 1:
            raise UsageError(f"samples and replicas must be at least 1, found {samples} and {replicas}")
        check_input(x1, self.example, "x1")
        if x2 is not None:
            check_input(x2, self.example, "x2")
        plan = self._plan(get != "nngp")
        self.check_variances(variances or {})
        wanted = {"nngp": [plan.nngp], "ntk": [plan.ntk], "both": [plan.nngp, plan.ntk]}[get]
        pairs = [p for p in wanted if p is not None]
        precision = dtype or (x1.dtype if x1.is_floating_point() else torch.get_default_dtype())
        if isinstance(plan, ParticlePlan):
            if block is not None or variances:
                raise UsageError("block and variances have no meaning for a kernel that is estimated on particles")
            settings = Settings(samples, replicas, seed)
            with _deep():
                found = estimated(plan, pairs, x1, x2, diagonal, settings, progress)
            means, noise = ([x.to(precision) for x in part] for part in zip(*found, strict=True))
        else:
            tick = progress and (lambda replica, i, n: progress(replica * n + i, n * (replicas if plan.sampled else 1)))
            jobs = [
                Job(plan, pairs, precision, dict(variances or {}), samples, seed * 1000 + replica)
                for replica in range(replicas if plan.sampled else 1)
            ]
            means, noise = _averaged(jobs, x1, x2, diagonal, block, tick)
        wrap = (lambda found: Kernels(*found)) if get == "both" else (lambda found: found[0])
        return (wrap(means), wrap(noise)) if errors else wrap(means)


def _averaged(
    jobs: Sequence[Job],
    x1: Tensor,
    x2: Tensor | None,
    diagonal: bool,
    block: int | None,
    tick: Callable[[int, int, int], None] | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """Means of what the jobs find, and their standard errors."""
    estimates = []
    for replica, job in enumerate(jobs):
        progress = None if tick is None else partial(tick, replica)
        with _deep():
            estimates.append(job.diagonal(x1, block) if diagonal else job.matrix(x1, x2, block, progress))
    if len(jobs) > 1:
        stacked = [torch.stack(found) for found in zip(*estimates, strict=True)]
        return [x.mean(0) for x in stacked], [x.std(0) / len(jobs) ** 0.5 for x in stacked]
    (means,) = estimates  # not stacked: that would copy a matrix that may fill half of the memory
    unknown = float("nan") if jobs[0].plan.sampled else 0.0
    return means, [x.new_full((), unknown).expand_as(x) for x in means]


def kernel(
    make: Callable[[int], Any],
    example_input: Tensor,
    *,
    optimizer: Callable[..., Any] | None = None,
    init: Mapping[str, Law] | None = None,
    widths: Sequence[int] | None = None,
    batch: bool = False,
    evaluator: str = "exact",
) -> Kernel:
    """Compile the limiting kernels of a module (theory, section 8).

    ``make(width)`` returns a module, or (module, optimizer): the optimizer's learning rates then scale the parameters'
    shares of the tangent kernel. ``example_input`` is one input without batch axis; its values do not matter (integers
    must be valid). ``init`` overrides laws of parameters, ``widths`` the probe widths. ``batch=True`` is for models
    whose outputs depend on the whole batch (batch normalisation in training mode): the example is then a batch, and
    the kernels are those of all outputs of a batch of that size (:class:`tpcompile.kernels.batch.BatchKernel`).
    ``evaluator="particles"`` estimates every kernel, with standard errors, in place of integrals over few variables:
    for models that have none (attention behind attention), and as a check of the others.
    Raises UsageError for such a model without it, and a TpcompileError that names the place for anything without a
    kernel.
    """
    if not isinstance(example_input, Tensor):
        raise UsageError(f"example_input must be a tensor, found {type(example_input).__name__}")
    if evaluator not in EVALUATORS:
        raise UsageError(f"evaluator must be 'exact' or 'particles', found {evaluator!r}")
    from tpcompile.kernels.batch import BatchKernel, check_single

    if batch:
        if example_input.dim() == 0 or len(example_input) < 2:
            raise UsageError(
                "with batch=True the example is a batch of at least two inputs, "
                f"found shape {tuple(example_input.shape)}"
            )
        return BatchKernel(make, example_input.detach(), optimizer, init, widths, evaluator)
    check_single(make, example_input.detach(), widths)
    return Kernel(make, example_input.detach(), optimizer, init, widths, evaluator)


@contextmanager
def _deep() -> Iterator[None]:
    """Room for recursion over the layers of deep networks: about thirty frames a layer."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, RECURSION))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)
