"""A function of random matrices and a vector as a linear operator: its arguments, and its traced program."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from tpcompile.capture import capture
from tpcompile.capture.arguments import DEFAULT_WIDTHS
from tpcompile.errors import UsageError
from tpcompile.ir import Program
from tpcompile.lowering.request import compile_capture

OUTPUT = "outputs/0"
START = "tpcompile_start"  # the standard normal vector g of E[Z^g Z^{P g}]

Shapes = Mapping[str, Sequence[int | float | Fraction]]
Variances = Mapping[str, int | float | Fraction]


@dataclass(frozen=True)
class Argument:
    """A random matrix or vector: its lengths over n, and n (for a vector: 1) times the variance of its entries."""

    name: str
    shape: tuple[Fraction, ...]
    variance: Fraction

    def draw(self, n: int) -> Tensor:
        """The argument at width n."""
        sizes = tuple(int(r * n) for r in self.shape)
        entry = self.variance / n if len(sizes) == 2 else self.variance
        return torch.randn(sizes, dtype=torch.float64) * math.sqrt(entry)


@dataclass(frozen=True)
class Operator:
    """The linear operator ``x -> fn(*arguments, x)`` on vectors of length n."""

    fn: Callable[..., Tensor]
    arguments: tuple[Argument, ...]

    @staticmethod
    def of(fn: Callable[..., Tensor], shapes: Shapes | None = None, variances: Variances | None = None) -> Operator:
        """Read the arguments off the signature: all but the last are random. UsageError says what does not fit."""
        names = _parameters(fn)
        shapes, variances = shapes or {}, variances or {}
        for option, given in (("shapes", shapes), ("variances", variances)):
            if not isinstance(given, Mapping):
                raise UsageError(f"{option} must be a dict by argument name, found {given!r}")
            if unknown := [name for name in given if name not in names]:
                known = ", ".join(names) or "none"
                raise UsageError(f"{option} names '{unknown[0]}'", advice=f"the random arguments of fn are: {known}")
        return Operator(
            fn, tuple(Argument(n, _shape(n, shapes.get(n, (1, 1))), _variance(n, variances.get(n, 1))) for n in names)
        )

    @property
    def variances(self) -> dict[str, Fraction]:
        """Exact variances by name, as the initial values of the program have them."""
        return {a.name: a.variance for a in self.arguments} | {START: Fraction(1)}

    def matrix(self, n: int, seed: int = 0) -> Tensor:
        """The operator at width n as an (n, n) matrix."""
        self._check_width(n)
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            drawn = [a.draw(n) for a in self.arguments]
        eye = torch.eye(n, dtype=torch.float64)
        try:
            return torch.vmap(lambda x: self.apply(drawn, x), 1, 1)(eye)
        except RuntimeError:  # what vmap cannot batch
            return torch.stack([self.apply(drawn, column) for column in eye], 1)

    def apply(self, drawn: Sequence[Tensor], x: Tensor) -> Tensor:
        """``fn`` on concrete arguments. UsageError if it does not return a vector like x."""
        y = self.fn(*drawn, x)
        if not isinstance(y, Tensor) or y.shape != x.shape:
            found = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
            raise UsageError(f"fn must return a vector of the shape {tuple(x.shape)} of x, found {found}", where="fn")
        return y

    def trace(self, order: int) -> Program:
        """The program of ``E[Z^g Z^{P^k g}]`` for k = 1, .., order: its one output has the shape (1, order)."""
        widths = tuple(self.smallest_width * 2**i for i in range(3))
        captured = capture(lambda n: _Powers(self, order, n), torch.ones((1, 1)), widths=widths)
        return compile_capture(captured, ("outputs",)).program

    def check_linear(self) -> None:
        """UsageError unless fn is linear in x."""
        drawn, x, y = self._trial()
        both, parts = self.apply(drawn, x - 2 * y), self.apply(drawn, x) - 2 * self.apply(drawn, y)
        if not torch.allclose(both, parts, rtol=1e-8, atol=1e-10):
            raise UsageError("fn is not linear in its last argument", where="fn", advice="moments are of an operator")

    def check_self_adjoint(self) -> None:
        """UsageError unless fn is symmetric as a matrix."""
        drawn, x, y = self._trial()
        one, other = (y * self.apply(drawn, x)).sum(), (x * self.apply(drawn, y)).sum()
        if not torch.allclose(one, other, rtol=1e-8, atol=1e-10):
            raise UsageError(
                "fn is not self-adjoint, so that its moments are not those of a spectrum on the line",
                where="fn",
                advice="for singular values take W.T @ (W @ x)",
            )

    def _trial(self) -> tuple[list[Tensor], Tensor, Tensor]:
        """Arguments at a small width, and two vectors."""
        n = self.smallest_width
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(0)
            x, y = torch.randn((2, n), dtype=torch.float64)
            return [a.draw(n) for a in self.arguments], x, y

    @property
    def smallest_width(self) -> int:
        """The smallest probe width at which all lengths are whole."""
        step = math.lcm(*(r.denominator for a in self.arguments for r in a.shape))
        return step * math.ceil(DEFAULT_WIDTHS[0] / step)

    def _check_width(self, n: int) -> None:
        for a in self.arguments:
            for r in a.shape:
                if (r * n).denominator != 1:
                    raise UsageError(f"the width {n} does not give '{a.name}' whole lengths ({r} n)")


class _Powers(nn.Module):
    def __init__(self, operator: Operator, order: int, n: int) -> None:
        super().__init__()
        self.operator = operator
        self.order = order
        for a in operator.arguments:
            self.register_parameter(a.name, nn.Parameter(a.draw(n)))
        self.register_parameter(START, nn.Parameter(torch.randn(n, dtype=torch.float64)))

    def forward(self, inputs: Tensor) -> Tensor:
        drawn = [getattr(self, a.name) for a in self.operator.arguments]
        start = x = getattr(self, START)
        found = []
        for _ in range(self.order):
            x = self.operator.apply(drawn, x)
            found.append((start * x).mean())
        return torch.stack(found)[None]


def _parameters(fn: Callable[..., Any]) -> list[str]:
    if not callable(fn):
        raise UsageError(f"fn must be a function of matrices and a vector, found {type(fn).__name__}", where="fn")
    parameters = list(inspect.signature(fn).parameters.values())
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    required = [p for p in parameters if p.kind in plain and p.default is inspect.Parameter.empty]
    if len(required) < 1 or any(p.kind is inspect.Parameter.VAR_POSITIONAL for p in parameters):
        raise UsageError(
            "fn must name its arguments: random matrices first, the vector last", where="fn", advice="def fn(W, x): ..."
        )
    return [p.name for p in required[:-1]]


def _shape(name: str, given: Any) -> tuple[Fraction, ...]:
    try:
        found = tuple(Fraction(r).limit_denominator(64) for r in given)
        exact = all(abs(float(f) - float(r)) < 1e-12 for f, r in zip(found, given, strict=True))
    except (TypeError, ValueError, ZeroDivisionError):
        found, exact = (), False
    if len(found) not in (1, 2) or not exact or any(r <= 0 for r in found):
        raise UsageError(
            f"expected (rows, columns) of '{name}' as multiples of n, or (length,) of a vector, found {given!r}",
            where="shapes",
            advice="for example {'X': (Fraction(1, 2), 1)} for a matrix of n/2 rows and n columns",
        )
    return found


def _variance(name: str, given: Any) -> Fraction:
    from tpcompile.evaluate.exact.numbers import recognised

    found = recognised(float(given)) if isinstance(given, float) else given
    if isinstance(found, bool) or not isinstance(found, int | float | Fraction) or not 0 < found < math.inf:
        raise UsageError(f"the variance of '{name}' must be a positive number, found {given!r}", where="variances")
    return Fraction(found)
