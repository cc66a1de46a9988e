"""A function of random matrices and a vector as a linear operator: its arguments, and its traced program."""

from __future__ import annotations

import inspect
import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tpcompile.capture import capture
from tpcompile.capture.arguments import DEFAULT_WIDTHS
from tpcompile.errors import CaptureError, TpcompileError, UnsupportedOperationError, UsageError
from tpcompile.ir import Program
from tpcompile.lowering.request import compile_capture
from tpcompile.userfile import one_line

OUTPUT = "outputs/0"
START = "tpcompile_start"  # the standard normal vector g of E[Z^g Z^{P g}]
_DECADES = 250  # of the powers of a norm
_NAMED = "fn_"  # before the name of an argument as a parameter: modules have attributes of their own
_DENOMINATOR = 64  # of a length over n, and its largest value
_EXPECTED = "expected fn(W, .., x): random matrices first, the vector x last, and a vector of the length of x returned"
_OPERATIONS = "use products, powers and sums of matrices, diagonal matrices (torch.diag), and functions of vectors"

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
        return {_NAMED + a.name: a.variance for a in self.arguments} | {START: Fraction(1)}

    def matrix(self, n: int, seed: int = 0) -> Tensor:
        """The operator at width n as an (n, n) matrix."""
        self._check_width(n)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise UsageError(f"seed must be an integer, found {seed!r}")
        drawn = self._draw(n, seed)
        eye = torch.eye(n, dtype=torch.float64)
        try:
            return torch.vmap(lambda x: self.apply(drawn, x), 1, 1)(eye)
        except RuntimeError:  # what vmap cannot batch
            return torch.stack([self.apply(drawn, column) for column in eye], 1)

    def apply(self, drawn: Sequence[Tensor], x: Tensor) -> Tensor:
        """``fn`` on concrete arguments. UsageError if it does not return a vector like x."""
        y = self.fn(*drawn, x)
        if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
            found = f"{tuple(y.shape)} of {y.dtype}" if isinstance(y, Tensor) else type(y).__name__
            raise UsageError(
                f"fn must return a vector of the shape {tuple(x.shape)} and the dtype {x.dtype} of x, found {found}",
                where="fn",
                advice=_EXPECTED,
            )
        return y

    def trace(self, order: int) -> Program:
        """The program of ``E[Z^g Z^{P^k g}]`` for k = 1, .., order: its one output has the shape (1, order)."""
        widths = tuple(self.smallest_width * 2**i for i in range(3))
        try:
            captured = capture(lambda n: _Powers(self, order, n), torch.ones((1, 1)), widths=widths)
            return compile_capture(captured, ("outputs",)).program
        except (CaptureError, UnsupportedOperationError) as error:  # said of a model's forward: here it is fn
            line = re.search(r"\((\S+:\d+)\)", error.where or "")
            where = f"fn ({line[1]})" if line else "fn"
            raise type(error)(error.what, where=where, advice=_OPERATIONS) from error

    def check_linear(self, order: int) -> None:
        """UsageError unless fn is a linear function of x, the same at every call, and floats hold its powers."""
        n = self.smallest_width
        drawn, (x, y) = self._draw(n, 0), self._vectors()
        given = [*drawn, x]
        before = [t._version for t in given]
        first = self._tried(drawn, x)
        if before != [t._version for t in given]:
            raise UsageError("fn changes its arguments in place", where="fn", advice="write x = x + .., not x += ..")
        if not torch.isfinite(first).all():
            raise UsageError("fn returns values that are not finite", where="fn")
        if not _close(first, self._tried(drawn, x)):
            raise UsageError(
                "fn returns something else at every call",
                where="fn",
                advice="a random matrix or vector must be an argument of fn",
            )
        if not _close(self._tried(drawn, x - 2 * y), first - 2 * self._tried(drawn, y)):
            raise UsageError("fn is not linear in its last argument", where="fn", advice="moments are of an operator")
        gain = float(first.abs().max() / x.abs().max())
        if gain > 0 and abs(math.log10(gain)) * order > _DECADES:
            raise UsageError(
                f"fn changes the length of a vector by {gain:.1g}: powers of order {order} leave the range of floats",
                where="fn",
                advice="multiply fn by a constant",
            )

    def check_self_adjoint(self) -> None:
        """UsageError unless fn is symmetric as a matrix."""
        drawn, (x, y) = self._draw(self.smallest_width, 0), self._vectors()
        one, other = y * self._tried(drawn, x), x * self._tried(drawn, y)
        if (one - other).sum().abs() > 1e-8 * (one.abs() + other.abs()).sum():
            raise UsageError(
                "fn is not self-adjoint, so that its moments are not those of a spectrum on the line",
                where="fn",
                advice="for singular values take W.T @ (W @ x)",
            )

    def null_share(self) -> float | None:
        """Share of zero eigenvalues at a small width; None where there are negative ones."""
        values = torch.linalg.eigvalsh(self.matrix(4 * self.smallest_width))
        rounding = 1e-13 * float(values.abs().max())
        return None if float(values.min()) < -rounding else float((values < rounding).double().mean())

    def _tried(self, drawn: Sequence[Tensor], x: Tensor) -> Tensor:
        """:meth:`apply`, with errors of fn told as such."""
        try:
            return self.apply(drawn, x)
        except TpcompileError:
            raise
        except Exception as error:  # whatever the user's code raises
            file = getattr(getattr(self.fn, "__code__", None), "co_filename", None)
            lines = [e.lineno for e in traceback.extract_tb(error.__traceback__) if e.filename == file]
            shapes = ", ".join(f"{a.name} {tuple(t.shape)}" for a, t in zip(self.arguments, drawn, strict=True))
            given = f"{shapes}, and x {tuple(x.shape)}" if shapes else f"x {tuple(x.shape)} alone"
            raise UsageError(
                f"fn fails on {given}: {one_line(error)}",
                where=f"fn ({Path(file).name}:{lines[-1]})" if file and lines else "fn",
                advice=_EXPECTED,
            ) from error

    def _draw(self, n: int, seed: int) -> list[Tensor]:
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)
            return [a.draw(n) for a in self.arguments]

    def _vectors(self) -> Tensor:
        """Two vectors of the smallest width."""
        generator = torch.Generator().manual_seed(1)
        return torch.randn((2, self.smallest_width), dtype=torch.float64, generator=generator)

    @property
    def smallest_width(self) -> int:
        """The smallest probe width at which all lengths are whole."""
        step = math.lcm(*(r.denominator for a in self.arguments for r in a.shape))
        return step * math.ceil(DEFAULT_WIDTHS[0] / step)

    def _check_width(self, n: int) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 1:
            raise UsageError(f"the width must be a positive integer, found {n!r}")
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
            self.register_parameter(_NAMED + a.name, nn.Parameter(a.draw(n)))
        self.register_parameter(START, nn.Parameter(torch.randn(n, dtype=torch.float64)))

    def forward(self, inputs: Tensor) -> Tensor:
        drawn = [getattr(self, _NAMED + a.name) for a in self.operator.arguments]
        start = x = getattr(self, START)
        found = []
        for _ in range(self.order):
            x = self.operator.apply(drawn, x)
            found.append((start * x).mean())
        return torch.stack(found)[None]


def _close(a: Tensor, b: Tensor) -> bool:
    """Equal to rounding, by the size of the whole: operators may be small."""
    return bool((a - b).norm() <= 1e-8 * (a.norm() + b.norm()))


def _parameters(fn: Callable[..., Any]) -> list[str]:
    if not callable(fn):
        raise UsageError(
            f"fn must be a function of matrices and a vector, found {type(fn).__name__}", where="fn", advice=_EXPECTED
        )
    try:
        parameters = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):  # built-in functions have none
        parameters = []
    required = [p for p in parameters if p.default is inspect.Parameter.empty and p.kind != p.VAR_KEYWORD]
    plain = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if not required or any(p.kind not in plain for p in required):
        raise UsageError("fn must name its arguments, all positional", where="fn", advice=_EXPECTED)
    return [p.name for p in required[:-1]]


def _shape(name: str, given: Any) -> tuple[Fraction, ...]:
    try:
        found = tuple(Fraction(r).limit_denominator(_DENOMINATOR) for r in given)
        exact = all(abs(float(f) - float(r)) < 1e-12 for f, r in zip(found, given, strict=True))
    except (TypeError, ValueError, ZeroDivisionError, OverflowError):
        found, exact = (), False
    if len(found) not in (1, 2) or not exact or any(not 0 < r <= _DENOMINATOR for r in found):
        raise UsageError(
            f"expected (rows, columns) of '{name}' as multiples of n, or (length,) of a vector: fractions of "
            f"denominator and value up to {_DENOMINATOR}; found {given!r}",
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
