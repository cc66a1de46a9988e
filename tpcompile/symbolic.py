"""Limits as formulas: outputs after each step as sympy expressions in the learning rate, the Gram matrix, the targets.

The program is evaluated over polynomials (:mod:`tpcompile.evaluate.exact.formal`) whose coefficients are polynomials
in the symbols. Its dependence on the learning rate is read off by tracing it at four rates: every number in it is a
polynomial of degree at most two in the rate, fitted at three and checked at the fourth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp
import torch
from sympy.polys.rings import ring

from tpcompile.errors import EvaluationError, UsageError
from tpcompile.evaluate.exact.degrees import degrees
from tpcompile.evaluate.exact.formal import Array, evaluate_formally
from tpcompile.evaluate.exact.numbers import Number, Surd, recognised
from tpcompile.evaluate.limit import Settings, zero_scalars
from tpcompile.ir import Const, Data, Init, Node, Program, Sum
from tpcompile.laws import Law, Normal
from tpcompile.schedule import split

if TYPE_CHECKING:
    from tpcompile.compiled import Compiled

SYMBOLS = ("eta", "gram", "targets")
_RATES = (Fraction(3), Fraction(5), Fraction(7), Fraction(11))


@dataclass(frozen=True)
class Symbolic:
    """The limit of a training run as formulas. Made by :meth:`Compiled.symbolic`.

    ``outputs[t]`` is a sympy matrix (N, k) of the network's outputs before step t, ``loss[t]`` the loss,
    ``test_outputs`` likewise, ``kernels[name][t]`` an (N, N) matrix. ``eta`` multiplies every learning rate of the
    optimizer. ``gram`` holds the inner products of the flattened inputs, test inputs behind them; ``targets`` is
    (N, k). Those that were not asked for are numbers.
    """

    outputs: tuple[sp.Matrix, ...]
    test_outputs: tuple[sp.Matrix, ...] | None
    loss: tuple[sp.Expr, ...] | None
    kernels: Mapping[str, tuple[sp.Matrix, ...]]
    eta: sp.Expr
    gram: sp.Matrix
    targets: sp.Matrix | None

    def __str__(self) -> str:
        lines = []
        for t, f in enumerate(self.outputs):
            lines += [f"f_{t}[{', '.join(map(str, at))}] = {f[at]}" for at in np.ndindex(*f.shape)]
        return "\n".join(lines)


def symbolic(compiled: Compiled, symbols: Sequence[str] = SYMBOLS, output_init: str | None = None) -> Symbolic:
    """See :meth:`Compiled.symbolic`."""
    if isinstance(symbols, str) or any(s not in SYMBOLS for s in symbols):
        raise UsageError(f"symbols must be among {SYMBOLS}, found {symbols!r}")
    if compiled.steps and not isinstance(compiled.inputs, torch.Tensor):
        raise UsageError("formulas are of full-batch training: inputs are a list of minibatches")
    chosen = [s for s in SYMBOLS if s in symbols and not (s == "targets" and compiled.targets is None)]
    if not compiled.steps and "eta" in chosen:
        chosen.remove("eta")
    data = _generic(compiled, chosen)
    rates = _RATES if "eta" in chosen else (Fraction(1),)
    programs = [_traced(compiled, data, rate) for rate in rates]
    zero = zero_scalars(programs[0], Settings(output_init=output_init))
    if (against := degrees(programs[0], zero).polynomial) is not None:
        raise EvaluationError(f"{against} is not polynomial: there is no formula")
    terms = _Terms(compiled, programs[0], chosen)
    constants = _constants(programs, terms.number, terms.generators.get("eta"))
    found = evaluate_formally(programs[0], data=terms.data, constants=constants, number=terms.number, zero=zero).values
    return _result(compiled, terms, found)


def _result(compiled: Compiled, terms: _Terms, found: Mapping[str, Array]) -> Symbolic:
    steps = range(compiled.steps + 1)

    def matrices(name: str) -> tuple[Any, ...]:
        return tuple(_matrix(terms.shown, found[name.replace("*", str(t))]) for t in steps)

    return Symbolic(
        matrices("outputs/*"),
        matrices("test_outputs/*") if "test_outputs/0" in found else None,
        tuple(m[0] for m in matrices("loss/*")) if "loss/0" in found else None,
        {a: matrices(f"kernel/{a}/*/xx") for a in compiled.activations},
        sp.Symbol("eta") if "eta" in terms.chosen else sp.Integer(1),
        terms.gram,
        terms.targets,
    )


def _matrix(shown: Callable[[Number], sp.Expr], x: Array) -> sp.Matrix:
    rows = x.reshape(x.shape[0] if x.ndim else 1, -1)
    return sp.Matrix(rows.shape[0], rows.shape[1], [shown(v) for v in rows.ravel()])


def _generic(compiled: Compiled, chosen: Sequence[str]) -> dict[str, Any]:
    """Arguments of the trace, with random data in place of what is a symbol: nothing may coincide by chance."""
    assert isinstance(compiled.inputs, torch.Tensor)
    generator = torch.Generator().manual_seed(0)

    def drawn(x: torch.Tensor | None) -> torch.Tensor | None:
        return None if x is None else torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype)

    data: dict[str, Any] = {n: getattr(compiled, n) for n in ("inputs", "targets", "test_inputs")}
    for name in ("inputs", "test_inputs") if "gram" in chosen else ():
        data[name] = drawn(data[name])
    if "targets" in chosen:
        assert isinstance(compiled.targets, torch.Tensor)
        if not compiled.targets.is_floating_point():
            raise UsageError("targets are integers: they cannot be symbols", where="targets")
        data["targets"] = drawn(compiled.targets)
    return data


def _traced(compiled: Compiled, data: Mapping[str, Any], rate: Fraction) -> Program:
    from tpcompile.capture import capture
    from tpcompile.lowering.request import compile_capture

    def scaled(optimizer: Any) -> Any:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * float(rate)
        return optimizer

    def make(width: int) -> Any:
        module, optimizer, scheduler = split(compiled.make(width))
        if scheduler is not None:
            raise UsageError("formulas with a learning-rate scheduler are not covered", where="make")
        return module if optimizer is None else (module, scaled(optimizer))

    given = compiled.optimizer
    captured = capture(
        make,
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


def _constants(
    programs: Sequence[Program], number: Callable[[float | Fraction], Number], eta: Any
) -> dict[Node, list[Number]]:
    """The numbers of the first program as polynomials in the learning rate, from the same program at other rates."""
    out: dict[Node, list[Number]] = {}
    if eta is None:
        return out
    first = programs[0]
    if len({len(p.nodes) for p in programs}) > 1:
        raise EvaluationError("the program changes with the learning rate: there is no formula in it")
    for nodes in zip(*(p.nodes for p in programs), strict=True):
        ops = [n.op for n in nodes]
        op = ops[0]
        if isinstance(op, Sum | Const) and all(type(o) is type(op) for o in ops):
            values = [o.coefficients if isinstance(o, Sum) else (o.value,) for o in ops]  # type: ignore[union-attr]
            out[nodes[0]] = [_fitted(v, number, eta) for v in zip(*values, strict=True)]
        elif any(o != op for o in ops):
            where = first.origins.get(nodes[0])
            raise EvaluationError("the learning rate enters other than as a factor in sums", where=where)
    return out


def _fitted(values: Sequence[float], number: Callable[[float | Fraction], Number], eta: Any) -> Number:
    """A number as a polynomial in the rate through three values, which the fourth confirms."""
    if len(set(values)) == 1:
        return number(values[0])
    known = [recognised(v / float(s)) * s for v, s in zip(values, _RATES, strict=True)]
    fit = _lagrange(known[:3], Fraction(_RATES[3]))
    if abs(float(fit) - values[3]) > 1e-12 * max(map(abs, values)):
        raise EvaluationError(f"a number that is no polynomial of degree 2 in the learning rate: {values}")
    total: Any = 0
    for i, s in enumerate(_RATES[:3]):
        others = [r for r in _RATES[:3] if r != s]
        term = number(1 / ((s - others[0]) * (s - others[1]))) * _ring(known[i], number)
        for r in others:
            term = term * (eta - number(r))
        total = total + term
    return total


def _ring(x: Number, number: Callable[[float | Fraction], Number]) -> Number:
    return number(x) if isinstance(x, Fraction) else number(float(x))


def _lagrange(values: Sequence[Number], at: Fraction) -> Number:
    total: Any = Fraction(0)
    for i, s in enumerate(_RATES[:3]):
        others = [r for r in _RATES[:3] if r != s]
        weight = (at - others[0]) * (at - others[1]) / ((s - others[0]) * (s - others[1]))
        total = total + values[i] * weight
    return total


@dataclass
class _Terms:
    """The ring of the symbols, the data over it, and back to sympy.

    Inputs with Gram matrix G enter as ``x = L D^(1/2)`` in other coordinates, of which the limit does not depend
    (rotations of Gaussian weights): their roots d occur in even powers only.
    """

    compiled: Compiled
    program: Program
    chosen: Sequence[str]
    generators: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        inputs, tests = self.compiled.inputs, self.compiled.test_inputs
        assert isinstance(inputs, torch.Tensor)
        rows = torch.cat([inputs, tests]) if tests is not None else inputs
        self.count = len(rows)
        self.size = rows[0].numel()
        primes = sorted({p for v in _numbers(self.program) for p in _primes(v)})
        names = ["eta"] if "eta" in self.chosen else []
        if "targets" in self.chosen:
            shape = self.compiled.targets.shape  # type: ignore[union-attr]
            names += [f"y{'_'.join(str(i + 1) for i in at)}" for at in np.ndindex(*_columns(shape))]
        if "gram" in self.chosen:
            self._check_rotations()
            if self.size < self.count:
                raise UsageError(
                    f"the Gram matrix of {self.count} inputs of {self.size} numbers has no full rank",
                    advice="take fewer inputs, or symbols without 'gram'",
                )
            names += [f"d{i}" for i in range(self.count)]
            names += [f"l{i}_{j}" for i in range(self.count) for j in range(i)]
        names += [f"root{p}" for p in primes]
        self.ring, *made = ring(names or ["unused"], sp.QQ)
        self.generators = dict(zip(names, made[0] if isinstance(made[0], tuple) else made, strict=False))
        self.primes = primes
        self.gram, self.targets = self._symbols(rows)
        for name in [n.op.name for n in self.program.nodes if isinstance(n.op, Data)]:
            kind = name.split("#")[0]
            if kind == "targets" and "targets" in self.chosen:
                self.data[name] = self._targets()
            elif kind in ("inputs", "test_inputs") and "gram" in self.chosen:
                self.data[name] = self._inputs(kind)

    def number(self, x: float | Fraction) -> Number:
        """A number of the program in the ring. EvaluationError for one that is no rational and no root."""
        found = recognised(x)
        if isinstance(found, float):
            raise EvaluationError(
                f"the number {found!r} stands for no rational or root of one: there is no formula",
                advice="use data and hyperparameters such as 0.25, 1/3, 2**-0.5",
            )
        parts = found.parts if isinstance(found, Surd) else ((1, Fraction(found)),)
        total: Any = self.ring.zero
        for d, c in parts:
            term = self.ring.one * sp.QQ(c.numerator, c.denominator)
            for p in sp.factorint(d):
                term = term * self.generators[f"root{p}"]
            total = total + term
        return total

    def shown(self, x: Number) -> sp.Expr:
        """A result as a sympy expression in the symbols."""
        if not hasattr(x, "as_expr"):
            return sp.sympify(x)
        expression = x.as_expr().subs([(sp.Symbol(f"root{p}"), sp.sqrt(p)) for p in self.primes])
        if "gram" in self.chosen:
            expression = self._in_gram(sp.expand(expression))
        return sp.collect(sp.expand(expression), sp.Symbol("eta"))

    def _in_gram(self, expression: sp.Expr) -> sp.Expr:
        lower, diagonal = self.gram.LDLdecomposition(hermitian=False)
        poly = sp.Poly(expression, *sp.symbols(f"d:{self.count}"))
        if any(power % 2 for powers, _ in poly.terms() for power in powers):
            raise EvaluationError("the limit depends on more of the inputs than their Gram matrix")
        squares = [diagonal[i, i] for i in range(self.count)]
        terms: Any = (c * sp.prod(d ** (p // 2) for d, p in zip(squares, ps, strict=True)) for ps, c in poly.terms())
        values: dict[Any, Any] = {sp.Symbol(f"l{i}_{j}"): lower[i, j] for i in range(self.count) for j in range(i)}
        found = sp.cancel(sp.together(sp.Add(*terms).subs(list(values.items()))))
        _, bottom = sp.fraction(found)
        if bottom.free_symbols:
            raise EvaluationError("the limit depends on more of the inputs than their Gram matrix")
        return found

    def _check_rotations(self) -> None:
        for node in self.program.nodes:
            if isinstance(node.op, Init) and node.kind == "vector" and not _isotropic(node.op.law):
                raise EvaluationError(
                    f"'{node.op.name}' is not a centred normal: the limit depends on more than the Gram matrix",
                    advice="take symbols without 'gram'",
                )

    def _symbols(self, rows: torch.Tensor) -> tuple[sp.Matrix, sp.Matrix | None]:
        def exact(x: torch.Tensor) -> sp.Matrix:
            entries = [sp.Rational(*_ratio(float(v))) for v in x.double().flatten()]
            return sp.Matrix(len(x), x[0].numel(), entries)

        if "gram" in self.chosen:
            gram = sp.Matrix(self.count, self.count, lambda i, j: sp.Symbol(f"G{min(i, j) + 1}{max(i, j) + 1}"))
        else:
            flat = exact(rows)
            gram = flat * flat.T
        targets = self.compiled.targets
        if targets is None:
            return gram, None
        assert isinstance(targets, torch.Tensor)
        if "targets" not in self.chosen:
            return gram, exact(targets)
        shown = self._targets().reshape(len(targets), -1)
        return gram, sp.Matrix(*shown.shape, [v.as_expr() for v in shown.ravel()])

    def _targets(self) -> Array:
        shape = tuple(self.compiled.targets.shape)  # type: ignore[union-attr]
        named = [self.generators[n] for n in self.generators if n.startswith("y")]
        out = np.empty(len(named), dtype=object)
        out[:] = named
        return out.reshape(shape)

    def _inputs(self, kind: str) -> Array:
        x = self.compiled.inputs if kind == "inputs" else self.compiled.test_inputs
        assert isinstance(x, torch.Tensor)
        start = 0 if kind == "inputs" else len(self.compiled.inputs)
        out = np.full((len(x), self.size), self.ring.zero, dtype=object)
        for i in range(len(x)):
            for j in range(start + i + 1):
                side = self.generators[f"l{start + i}_{j}"] if j < start + i else self.ring.one
                out[i, j] = side * self.generators[f"d{j}"]
        return out.reshape(tuple(x.shape))


def _columns(shape: Sequence[int]) -> tuple[int, ...]:
    """A shape without its last axis where that has length 1."""
    return tuple(shape[:-1]) if len(shape) > 1 and shape[-1] == 1 else tuple(shape)


def _isotropic(law: Law) -> bool:
    return isinstance(law, Normal) and law.mean == 0


def _ratio(x: float) -> tuple[int, int]:
    found = recognised(x)
    fraction = found if isinstance(found, Fraction) else Fraction(x)
    return fraction.numerator, fraction.denominator


def _numbers(program: Program) -> list[float]:
    out: list[float] = []
    for node in program.nodes:
        op = node.op
        if isinstance(op, Sum):
            out += op.coefficients
        elif isinstance(op, Const):
            out.append(op.value)
        elif isinstance(op, Data) and program.data[op.name].is_floating_point():
            out += program.data[op.name].double().flatten().tolist()
    return out


def _primes(x: float) -> list[int]:
    found = recognised(x)
    return [int(p) for d, _ in found.parts for p in sp.factorint(d)] if isinstance(found, Surd) else []
