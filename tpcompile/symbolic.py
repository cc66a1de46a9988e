"""Limits as formulas: outputs after each step as sympy expressions in hyperparameters, Gram matrix and targets.

The program is evaluated over polynomials (:mod:`tpcompile.evaluate.exact.formal`) whose coefficients are polynomials
in the symbols. Its dependence on learning rate, momentum and weight decay is read off by tracing it at several values
of them (:mod:`tpcompile.evaluate.exact.interpolation`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp
import torch

from tpcompile.capture.arguments import DEFAULT_WIDTHS
from tpcompile.errors import EvaluationError, UsageError
from tpcompile.evaluate.exact.degrees import degrees
from tpcompile.evaluate.exact.formal import Array, Formal, evaluate_formally
from tpcompile.evaluate.exact.interpolation import Point, Powers, polynomials
from tpcompile.evaluate.exact.numbers import Number
from tpcompile.evaluate.exact.wick import Polynomial
from tpcompile.evaluate.limit import Settings, zero_scalars
from tpcompile.ir import Const, Node, Program, Sum
from tpcompile.schedule import split
from tpcompile.symbols import FACTORS, Rows, Terms

if TYPE_CHECKING:
    from tpcompile.compiled import Compiled

HYPERPARAMETERS = {"eta": "lr", "momentum": "momentum", "decay": "weight_decay"}
"""Symbols that multiply what the optimizer's parameter groups call by these names."""

SYMBOLS = (*HYPERPARAMETERS, "gram", "targets")
DEFAULT = ("eta", "gram", "targets")

Factors = Mapping[str, Fraction]


@dataclass(frozen=True)
class Symbolic:
    """The limit of a training run as formulas. Made by :meth:`Compiled.symbolic`.

    ``outputs[t]`` is a sympy matrix (N, k) of the network's outputs before step t, ``loss[t]`` the loss,
    ``test_outputs`` likewise, ``kernels[name][t]`` an (N, N) matrix. ``eta``, ``momentum`` and ``decay`` multiply every
    learning rate, momentum and weight decay of the optimizer. ``gram`` holds the inner products of the flattened
    inputs, minibatches one behind the other and test inputs behind them; ``targets`` is (N, k). Equal inputs share
    their symbols. Those that were not asked for are numbers (1 for the factors).

    Where outputs at initialisation are random, the formulas are of one draw: ``random`` are its random numbers,
    ``covariance`` their second moments, and :meth:`mean` takes the expectation of an expression in them.
    """

    outputs: tuple[sp.Matrix, ...]
    test_outputs: tuple[sp.Matrix, ...] | None
    loss: tuple[sp.Expr, ...] | None
    kernels: Mapping[str, tuple[sp.Matrix, ...]]
    eta: sp.Expr
    momentum: sp.Expr
    decay: sp.Expr
    gram: sp.Matrix
    targets: sp.Matrix | None
    random: tuple[sp.Symbol, ...] = ()
    covariance: sp.Matrix = field(default_factory=lambda: sp.zeros(0, 0))
    moment: Callable[[tuple[int, ...]], sp.Expr] = field(default=lambda powers: sp.Integer(1), repr=False)

    def mean(self, expression: Any) -> Any:
        """The expectation of a polynomial in the random numbers, or of every entry of a matrix of such."""
        if isinstance(expression, sp.MatrixBase):
            return expression.applyfunc(self.mean)
        if not self.random:
            return expression
        terms = sp.Poly(expression, *self.random).terms()
        return sp.expand(sp.Add(*(c * self.moment(powers) for powers, c in terms)))

    def __str__(self) -> str:
        lines = []
        for t, f in enumerate(self.outputs):
            lines += [f"f_{t}[{', '.join(map(str, at))}] = {f[at]}" for at in np.ndindex(*f.shape)]
        return "\n".join(lines)


def symbolic(compiled: Compiled, symbols: Sequence[str] = DEFAULT, output_init: str | None = None) -> Symbolic:
    """See :meth:`Compiled.symbolic`."""
    if isinstance(symbols, str) or any(s not in SYMBOLS for s in symbols):
        raise UsageError(f"symbols must be among {SYMBOLS}, found {symbols!r}")
    chosen = [s for s in SYMBOLS if s in symbols and not (s == "targets" and compiled.targets is None)]
    if not compiled.steps:
        chosen = [s for s in chosen if s not in HYPERPARAMETERS]
    for name in chosen:
        _check_used(compiled, name)
    rows = Rows.of(compiled)
    data = _generic(compiled, chosen, rows)
    moving = [s for s in chosen if s in HYPERPARAMETERS]
    program = _traced(compiled, data, {})
    zero = zero_scalars(program, Settings(output_init=output_init))
    against = degrees(program, zero).polynomial
    if against is not None:
        raise EvaluationError(f"{against} is not polynomial: there is no formula")
    fitted = _fitted(program, lambda factors: _traced(compiled, data, factors), moving)
    terms = Terms(compiled, program, chosen, rows, [c for found in fitted.values() for p in found for c in p.values()])
    constants = {node: [terms.polynomial(p, moving) for p in found] for node, found in fitted.items()}
    found = evaluate_formally(program, data=terms.data, constants=constants, number=terms.number, zero=zero)
    return _result(compiled, terms, found)


def _check_used(compiled: Compiled, name: str) -> None:
    """UsageError for the momentum or decay of an optimizer that has none."""
    if name not in HYPERPARAMETERS:
        return
    module, optimizer, scheduler = split(compiled.make((compiled.widths or DEFAULT_WIDTHS)[0]))
    if scheduler is not None:
        raise UsageError("formulas with a learning-rate scheduler are not covered", where="make")
    if optimizer is None and compiled.optimizer is not None:
        optimizer = compiled.optimizer(module.parameters())
    key = HYPERPARAMETERS[name]
    if optimizer is not None and not any(group.get(key) for group in optimizer.param_groups):
        raise UsageError(f"'{name}' is a symbol, but the optimizer has no {key}", where="symbols")


def _result(compiled: Compiled, terms: Terms, found: Formal) -> Symbolic:
    steps = range(compiled.steps + 1)
    wick = found.wick
    drawn = {g: sp.Symbol(f"xi{i + 1}") for i, g in enumerate(sorted(wick.scalars))}
    order = list(drawn)

    def shown(x: Number) -> sp.Expr:
        if not isinstance(x, Polynomial):
            return terms.shown(x)
        parts = (terms.shown(c) * sp.prod([drawn[g] for g in m]) for m, c in x.terms.items())
        return sp.expand(sp.Add(*parts))

    def moment(powers: tuple[int, ...]) -> sp.Expr:
        monomial = tuple(g for g, count in zip(order, powers, strict=True) for _ in range(count))
        return terms.shown(wick.average(Polynomial({monomial: terms.ring.one})))

    def second(i: int, j: int) -> sp.Expr:
        return moment(tuple((k == i) + (k == j) for k in range(len(order))))

    def matrices(name: str) -> tuple[Any, ...]:
        return tuple(_matrix(shown, found.values[name.replace("*", str(t))]) for t in steps)

    factors = {s: sp.Symbol(n) if s in terms.chosen else sp.Integer(1) for s, n in FACTORS.items()}
    return Symbolic(
        matrices("outputs/*"),
        matrices("test_outputs/*") if "test_outputs/0" in found.values else None,
        tuple(m[0] for m in matrices("loss/*")) if "loss/0" in found.values else None,
        {a: matrices(f"kernel/{a}/*/xx") for a in compiled.activations},
        **factors,
        gram=terms.gram,
        targets=terms.targets,
        random=tuple(drawn.values()),
        covariance=sp.Matrix(len(order), len(order), second),
        moment=moment,
    )


def _matrix(shown: Callable[[Number], sp.Expr], x: Array) -> sp.Matrix:
    rows = x.reshape(x.shape[0] if x.ndim else 1, -1)
    return sp.Matrix(rows.shape[0], rows.shape[1], [shown(v) for v in rows.ravel()])


def _generic(compiled: Compiled, chosen: Sequence[str], rows: Rows) -> dict[str, Any]:
    """Arguments of the trace, with random data in place of what is a symbol: nothing may coincide by chance."""
    generator = torch.Generator().manual_seed(0)

    def drawn(x: torch.Tensor, index: Sequence[int]) -> torch.Tensor:
        fresh = torch.randn((max(index) + 1, *x.shape[1:]), generator=generator, dtype=torch.float64)
        return fresh[torch.tensor(index)].to(x.dtype)

    inputs, targets = rows.inputs, rows.targets
    if "gram" in chosen:
        inputs = drawn(inputs, rows.index)
    if "targets" in chosen and targets is not None:
        if not targets.is_floating_point():
            raise UsageError("targets are integers: they cannot be symbols", where="targets")
        targets = drawn(targets, rows.target_index)
    train = inputs[: rows.count]
    return {
        "inputs": rows.batched(train),
        "targets": None if targets is None else rows.batched(targets),
        "test_inputs": inputs[rows.count :] if compiled.test_inputs is not None else None,
    }


def _traced(compiled: Compiled, data: Mapping[str, Any], factors: Factors) -> Program:
    from tpcompile.capture import capture
    from tpcompile.lowering.request import compile_capture

    def scaled(optimizer: Any) -> Any:
        for group in optimizer.param_groups:
            for name, factor in factors.items():
                group[HYPERPARAMETERS[name]] = group[HYPERPARAMETERS[name]] * float(factor)
        return optimizer

    def make(width: int) -> Any:
        module, optimizer, _ = split(compiled.make(width))
        return module if optimizer is None else (module, scaled(optimizer))

    given = compiled.optimizer
    captured = capture(
        compiled.make if not factors else make,
        data["inputs"],
        data["targets"],
        compiled.loss,
        None if given is None else lambda parameters: scaled(given(parameters)),
        compiled.steps,
        data["test_inputs"],
        init=compiled.init,
        widths=compiled.widths,
    )
    return compile_capture(captured).program


def _fitted(
    program: Program, trace: Callable[[Factors], Program], moving: Sequence[str]
) -> dict[Node, list[dict[Powers, Number]]]:
    """The numbers of sums and constants as polynomials in the hyperparameters, by traces at other values of them."""
    if not moving:
        return {}
    numbered = [i for i, node in enumerate(program.nodes) if isinstance(node.op, Sum | Const)]
    known: dict[Point, list[float]] = {}

    def sample(point: Point) -> list[float]:
        if point not in known:
            other = trace(dict(zip(moving, point, strict=True)))
            known[point] = [c for i in _aligned(program, other, numbered) for c in _own(other.nodes[i])]
        return known[point]

    found = iter(polynomials(sample, moving))
    return {(node := program.nodes[i]): [next(found) for _ in _own(node)] for i in numbered}


def _own(node: Node) -> tuple[float, ...]:
    """The numbers in a sum or a constant."""
    return node.op.coefficients if isinstance(node.op, Sum) else (node.op.value,)  # type: ignore[union-attr]


def _aligned(program: Program, other: Program, numbered: Sequence[int]) -> Sequence[int]:
    """The places of numbers, which two programs that are otherwise equal have in common."""
    if len(program.nodes) != len(other.nodes):
        raise EvaluationError("the program changes with a hyperparameter: there is no formula in it")
    free = set(numbered)
    for i, (a, b) in enumerate(zip(program.nodes, other.nodes, strict=True)):
        alike = type(a.op) is type(b.op) and a.dims == b.dims and len(a.operands) == len(b.operands)
        if not alike or (i not in free and a.op != b.op):
            where = program.origins.get(a)
            raise EvaluationError("a hyperparameter enters other than as a factor in sums", where=where)
    return numbered
