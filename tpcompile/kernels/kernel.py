"""``tp.kernel``: infinite-width covariance and tangent kernel of a user's own module over all pairs of inputs."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tpcompile.errors import UsageError
from tpcompile.evaluate.gaussian.run import Run, children
from tpcompile.evaluate.gaussian.terms import Array, ScalarArray
from tpcompile.kernels.arrays import Array as Data
from tpcompile.kernels.arrays import Kernels, numpy_in_numpy_out
from tpcompile.kernels.plan import Pairs, Plan, check_input, plan_kernels
from tpcompile.kernels.uses import Uses
from tpcompile.laws import Law

BLOCK_BYTES = 2**21  # of one array over a block: a few of them fit a core's cache
RECURSION = 20_000
Tick = Callable[[int, int], None]


class Kernel(Uses):
    """The limiting kernels of a module, compiled once and evaluated on any inputs. Made by :func:`kernel`."""

    def __init__(
        self,
        make: Callable[[int], Any],
        example: Tensor,
        optimizer: Callable[..., Any] | None,
        init: Mapping[str, Law] | None,
        widths: Sequence[int] | None,
    ) -> None:
        self.example = example
        self.arguments = (make, example, optimizer, init, widths)
        self._build = lambda tangent: plan_kernels(make, example, tangent, optimizer, init, widths)
        self._plans: dict[bool, Plan] = {}
        self._plan(False)

    def _plan(self, tangent: bool) -> Plan:
        if tangent not in self._plans:
            with _deep():
                self._plans[tangent] = self._build(tangent)
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
        return any(plan.moments.sampled for plan in self._plans.values())

    @property
    def forms(self) -> list[tuple[str, float | None]]:
        """How each expectation is computed, in words, and its stated error.

        None where it is closed; where it is drawn (``errors=True`` gives the standard error of the kernel); and for a
        quadrature over several variables before its first evaluation, which finds the absolute error (the largest so
        far is kept).
        """
        return list(self._plan(True in self._plans).moments.forms)

    def program_of(self, get: str) -> Any:
        """The tensor program that ``"nngp"``, ``"ntk"`` or ``"both"`` are computed from."""
        return self._plan(get != "nngp").program.program

    def pairs(self, get: str) -> Pairs:
        """The planned ``"nngp"`` or ``"ntk"``."""
        plan = self._plan(get == "ntk")
        found = plan.nngp if get == "nngp" else plan.ntk
        assert found is not None
        return found

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
        times = replicas if plan.moments.sampled else 1
        estimates = []
        for replica in range(times):
            job = _Job(plan, pairs, precision, dict(variances or {}), samples, seed * 1000 + replica)
            tick = None if progress is None else lambda i, n, r=replica: progress(r * n + i, times * n)
            with _deep():
                estimates.append(job.diagonal(x1, block) if diagonal else job.matrix(x1, x2, block, tick))
        if times == 1:
            means = estimates[0]  # not stacked: that would copy a matrix that may fill half of the memory
        else:
            stacked = [torch.stack(found) for found in zip(*estimates, strict=True)]
            means = [x.mean(0) for x in stacked]
        wrap = (lambda found: Kernels(*found)) if get == "both" else (lambda found: found[0])
        if not errors:
            return wrap(means)
        if times == 1:
            noise = [torch.full_like(x, float("nan") if plan.moments.sampled else 0.0) for x in means]
        else:
            noise = [x.std(0) / times**0.5 for x in stacked]
        return wrap(means), wrap(noise)


class _Job:
    """One evaluation of some kernels."""

    def __init__(
        self,
        plan: Plan,
        pairs: list[Pairs],
        dtype: torch.dtype,
        variances: Mapping[str, Any],
        samples: int,
        seed: int,
    ) -> None:
        self.samples = samples
        self.seed = seed
        self.plan = plan
        self.pairs = pairs
        self.dtype = dtype
        self.variances = variances

    def _run(self, x1: Tensor, x2: Tensor) -> Run:
        return Run(self.plan.moments, (x1, x2), self.dtype, self.variances, samples=self.samples, seed=self.seed)

    def diagonal(self, x: Tensor, block: int | None = None) -> list[Tensor]:
        """``(N, ...)`` values of every input with itself."""
        if self._differentiable(x):
            return self._own(x)
        step = block or self._side(not self.plan.moments.sampled)
        with torch.no_grad():
            parts = [self._own(part) for part in (x.split(step) if len(x) else [x])]
        return [torch.cat(found) for found in zip(*parts, strict=True)]

    def _own(self, x: Tensor) -> list[Tensor]:
        if self.plan.moments.sampled:
            whole = self._run(x, x).evaluate([p.cross for p in self.pairs])
            at = torch.arange(len(x))
            return [self._full(v, p, len(x), len(x))[at, at] for v, p in zip(whole, self.pairs, strict=True)]
        values = self._run(x, x).evaluate([p.own[0] for p in self.pairs])
        return [self._full(v, p, len(x), 1)[:, 0] for v, p in zip(values, self.pairs, strict=True)]

    def matrix(self, x1: Tensor, x2: Tensor | None, block: int | None, progress: Tick | None) -> list[Tensor]:
        """``(N1, N2, ...)`` values of all pairs."""
        y = x1 if x2 is None else x2
        if self._differentiable(x1, y):
            return self._block(x1, y, x2 is None)
        out = [torch.empty((len(x1), len(y), *p.positions, *p.positions), dtype=self.dtype) for p in self.pairs]
        side = block or self._side()
        tasks = list(_blocks(len(x1), len(y), side, x2 is None))
        done = 0

        def work(task: tuple[slice, slice]) -> None:
            rows, columns = task
            own = x2 is None and rows == columns
            first = x1[rows]
            for target, value in zip(out, self._block(first, first if own else y[columns], own), strict=True):
                target[rows, columns] = value
                if x2 is None and not own:
                    target[columns, rows] = _transposed(value)

        with torch.no_grad(), _workers(len(tasks)) as run:
            for _ in run(work, tasks):
                done += 1
                if progress is not None:
                    progress(done, len(tasks))
        return out

    def _differentiable(self, *inputs: Tensor) -> bool:
        values = [*inputs, *(v for v in self.variances.values() if isinstance(v, Tensor))]
        return torch.is_grad_enabled() and any(v.requires_grad for v in values)

    def _block(self, x1: Tensor, x2: Tensor, own: bool) -> list[Tensor]:
        if self.plan.moments.sampled and x1 is not x2:  # draws are joint over all inputs
            both = torch.cat([x1, x2])
            return [k[: len(x1), len(x1) :] for k in self._block(both, both, False)]
        run = self._run(x1, x2)
        values = run.evaluate([p.cross for p in self.pairs])
        full = [self._full(v, p, len(x1), len(x2)) for v, p in zip(values, self.pairs, strict=True)]
        if not own or self.plan.moments.sampled:
            return full
        return [_with_diagonal(_symmetric(k), d) for k, d in zip(full, self._own(x1), strict=True)]

    def _full(self, value: Tensor | None, pairs: Pairs, n1: int, n2: int) -> Tensor:
        shape = (n1, n2, *pairs.positions, *pairs.positions)
        if value is None:
            return torch.zeros(shape, dtype=self.dtype)
        kept = 2 + 2 * len(pairs.positions)
        value = value.reshape(value.shape[:kept])
        return value.expand(shape)

    def _side(self, diagonal: bool = False) -> int:
        """Inputs on a side of a block, or of a part of the diagonal."""
        arrays = [p.own[0] if diagonal else p.cross for p in self.pairs]
        size = max((_largest(array) for array in arrays if array is not None), default=1)
        item = torch.finfo(self.dtype).bits // 8
        count = BLOCK_BYTES // (item * size)
        return max(1, count if diagonal else min(512, math.isqrt(count)))


def kernel(
    make: Callable[[int], Any],
    example_input: Tensor,
    *,
    optimizer: Callable[..., Any] | None = None,
    init: Mapping[str, Law] | None = None,
    widths: Sequence[int] | None = None,
) -> Kernel:
    """Compile the limiting kernels of a module (theory, section 8).

    ``make(width)`` returns a module, or (module, optimizer): the optimizer's learning rates then scale the parameters'
    shares of the tangent kernel. ``example_input`` is one input without batch axis; its values do not matter (integers
    must be valid). ``init`` overrides laws of parameters, ``widths`` the probe widths.
    Raises a TpcompileError that names the place for anything without a kernel.
    """
    if not isinstance(example_input, Tensor):
        raise UsageError(f"example_input must be a tensor, found {type(example_input).__name__}")
    return Kernel(make, example_input.detach(), optimizer, init, widths)


def _blocks(n1: int, n2: int, side: int, symmetric: bool) -> Iterator[tuple[slice, slice]]:
    for i in range(0, n1, side):
        for j in range(i if symmetric else 0, n2, side):
            yield slice(i, min(i + side, n1)), slice(j, min(j + side, n2))


def _transposed(value: Tensor) -> Tensor:
    """A block of the other triangle: pair axes and position axes swapped."""
    half = (value.dim() - 2) // 2
    return value.permute(1, 0, *range(2 + half, 2 + 2 * half), *range(2, 2 + half))


def _symmetric(value: Tensor) -> Tensor:
    """A block of pairs of inputs with themselves, with both triangles rounded alike."""
    if value.shape[0] != value.shape[1] or value.stride(0) == 0 or value.stride(1) == 0:
        return value
    return (value + _transposed(value)) * 0.5


def _with_diagonal(matrix: Tensor, diagonal: Tensor) -> Tensor:
    """A symmetric block with the diagonal computed as the diagonal."""
    at = torch.arange(len(matrix))
    if matrix.requires_grad or diagonal.requires_grad:
        eye = torch.eye(len(matrix), dtype=torch.bool).reshape(*matrix.shape[:2], *([1] * (matrix.dim() - 2)))
        return torch.where(eye, diagonal.unsqueeze(1), matrix)
    matrix = matrix.clone() if matrix.stride(0) == 0 or matrix.stride(1) == 0 else matrix
    matrix[at, at] = diagonal
    return matrix


@contextmanager
def _deep() -> Iterator[None]:
    """Room for recursion over the layers of deep networks: about thirty frames a layer."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(max(limit, RECURSION))
    try:
        yield
    finally:
        sys.setrecursionlimit(limit)


@contextmanager
def _workers(tasks: int) -> Iterator[Callable[..., Any]]:
    """A map over as many threads as torch uses, each with one torch thread; the plain map for a single task."""
    threads = torch.get_num_threads()
    if threads == 1 or tasks == 1:
        yield map
        return
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def _largest(root: Array) -> int:
    """Entries for each pair of the largest array that another is computed from."""
    most, stack, seen = 1, [root], set()
    while stack:
        array = stack.pop()
        if array in seen:
            continue
        seen.add(array)
        if not isinstance(array, ScalarArray):
            most = max(most, math.prod(array.sizes))
        stack += children(array)
    return most
