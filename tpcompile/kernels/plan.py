"""From a model to what its kernels are computed from: programs for one input, and planned expectations over pairs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from tpcompile.capture import Capture, capture
from tpcompile.errors import TpcompileError, UsageError
from tpcompile.evaluate.gaussian.factored import Factoring
from tpcompile.evaluate.gaussian.moments import Factor, Moments
from tpcompile.evaluate.gaussian.terms import Array, Poly, unified
from tpcompile.evaluate.tapes import Tape
from tpcompile.evaluate.threads import single_threaded
from tpcompile.ir import Data, Node, Program
from tpcompile.laws import Law
from tpcompile.lowering.kernel import KernelProgram, compile_kernel


@dataclass(frozen=True)
class Pairs:
    """One kernel as arrays: over all pairs, and of an input with itself; None where it is zero.

    ``positions`` are the lengths of the output's axes that have a kernel of their own (they follow the pair axes, first
    those of the first input); axes of independent equal outputs have none.
    """

    cross: Array | None
    own: Array | None
    positions: tuple[int, ...]
    exponent: Fraction
    output: tuple[int, ...] = ()  # all axes of the output
    kept: tuple[int, ...] = ()  # those that are positions


@dataclass(frozen=True)
class Plan:
    """Planned kernels of a model: the NNGP and, where asked for, the tangent kernel."""

    program: KernelProgram
    moments: Moments
    nngp: Pairs
    ntk: Pairs | None
    tapes: dict[object, Tape | None] = field(default_factory=dict)  # by what is evaluated, and from what

    @property
    def sampled(self) -> bool:
        """Whether an expectation needs draws."""
        return self.moments.sampled

    @property
    def forms(self) -> list[tuple[str, float | None]]:
        """How each expectation is computed, in words, and its stated error."""
        return self.moments.forms


class Traces:
    """Traces of a model on one input, or on a whole batch as one: of its output alone, and with its first variation.

    One trace gives both where the model has a variation. Both are made when the first is asked for.
    """

    def __init__(
        self,
        make: Callable[[int], Any],
        example: Tensor,
        optimizer: Callable[..., Any] | None,
        init: Mapping[str, Law] | None,
        widths: Sequence[int] | None,
        batch: bool,
    ) -> None:
        def trace(variation: bool) -> Capture:
            inputs = generic(example) if batch else generic(example)[None]
            options: dict[str, Any] = {"optimizer": optimizer, "init": init, "widths": widths}
            return capture(make, inputs, variation=variation, growing=True, **options)

        self._trace = trace
        self._both: Capture | None = None

    def output(self) -> Capture:
        """Without variation: it need not have one."""
        try:
            self._both = self._trace(True)
        except TpcompileError:
            return self._trace(False)
        return self._both.without("variation")

    def variation(self) -> Capture:
        """With variation, given away once."""
        found, self._both = self._both, None
        return found or self._trace(True)


def plan_kernels(captured: Capture, tangent: bool) -> Plan:
    """Lower a trace and plan its kernels."""
    program = compile_kernel(captured)
    moments = Moments(program.program, input_name(program.program))
    moments.plan_scalars()
    factoring = Factoring(moments.constant)
    nngp = _pairs(moments, program.output, program.output_exponent, factoring)
    ntk = _pairs(moments, program.variation, program.variation_exponent, factoring) if tangent else None
    return Plan(program, moments, nngp, ntk)


def input_name(program: Program) -> str:
    """The data that is the model's input; empty if it does not depend on it."""
    names = (node.op.name for node in program.nodes if isinstance(node.op, Data))
    return next((name for name in names if name.startswith("inputs#")), "")


def generic(example: Tensor) -> Tensor:
    """An input of that shape without coincidences such as zeros or equal entries; integers stay."""
    if not example.is_floating_point():
        return example
    generator = torch.Generator().manual_seed(0)
    return torch.randn(example.shape, generator=generator, dtype=torch.float64).to(example.dtype)


def _pairs(m: Moments, node: Node | None, exponent: Fraction, factoring: Factoring) -> Pairs:
    if node is None:
        return Pairs(None, None, (), Fraction(0))
    a, b = m.factor(node, 0), m.factor(node, 1)
    poly = m.moment((a, b))
    independent = [_is_independent(poly, p, q) for p, q in zip(a.labels, b.labels, strict=True)]
    kept = [i for i, free in enumerate(independent) if not free and a.labels[i] is not None]
    sizes = tuple(m.lengths[label] for i in kept if (label := a.labels[i]) is not None)

    def array(first: int, second: int) -> Array | None:
        x, y = m.factor(node, first), m.factor(node, second)
        y = Factor(
            y.node, y.copy, tuple(p if free else q for p, q, free in zip(x.labels, y.labels, independent, strict=True))
        )
        out = [f.labels[i] for f in (x, y) for i in kept]
        shared = [p for p, free in zip(x.labels, independent, strict=True) if free and p is not None]
        found = m.array([x, y], [p for p in (*out, *shared) if p is not None])
        return None if found is None else factoring(found)

    axes = tuple(d for d in node.dims if isinstance(d, int))
    return Pairs(array(0, 1), array(0, 0), sizes, 2 * exponent, axes, tuple(kept))


def _is_independent(poly: Poly, p: int | None, q: int | None) -> bool:
    """True if two outputs along an axis are independent and equal in law: a Kronecker delta in every term."""
    if p is None or q is None:
        return False
    for term in poly:
        names = unified(term.deltas)
        if names.get(p, p) != names.get(q, q):
            return False
        if any(p in labels or q in labels for _, labels in term.uses):
            return False
    return True


def check_input(x: Tensor, example: Tensor, name: str) -> None:
    """UsageError unless x is a batch of inputs such as the example."""
    if not isinstance(x, Tensor):
        raise UsageError(f"{name} must be a tensor, found {type(x).__name__}")
    if tuple(x.shape[1:]) != tuple(example.shape) or x.dim() == 0:
        raise UsageError(
            f"{name} must have shape (N, {', '.join(map(str, example.shape))}), found {tuple(x.shape)}",
            advice="the example input that the kernel was made with has no batch axis",
        )
    if x.is_floating_point() != example.is_floating_point():
        raise UsageError(f"{name} has dtype {x.dtype}, the example input {example.dtype}")
    with single_threaded():  # no thread is left waiting
        finite = not x.is_floating_point() or bool(torch.isfinite(x).all())
    if not finite:
        raise UsageError(f"{name} contains values that are not finite")
