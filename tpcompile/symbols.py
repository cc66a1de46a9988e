"""The symbols of a formula: a ring of polynomials, a training run's data over it, and the way back to sympy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

import numpy as np
import sympy as sp
import torch
from sympy.polys.rings import ring

from tpcompile.errors import EvaluationError, UsageError
from tpcompile.evaluate.exact.formal import Array
from tpcompile.evaluate.exact.interpolation import Powers
from tpcompile.evaluate.exact.numbers import Number, Surd, recognised
from tpcompile.ir import Const, Data, Init, Program, Sum
from tpcompile.laws import Law, Normal

if TYPE_CHECKING:
    from tpcompile.compiled import Compiled

FACTORS = {"eta": "eta", "momentum": "mu", "decay": "lambda"}
"""Names of the symbols of hyperparameters in formulas."""


@dataclass(frozen=True)
class Rows:
    """All inputs and targets as rows, test inputs behind the others; equal rows have one number.

    ``index`` numbers the inputs, ``target_index`` the pairs of input and target, ``sizes`` are those of minibatches.
    """

    inputs: torch.Tensor
    targets: torch.Tensor | None
    count: int  # of training inputs
    index: list[int]
    target_index: list[int]
    sizes: tuple[int, ...] | None

    @staticmethod
    def of(compiled: Compiled) -> Rows:
        """Those of a training run."""
        single = isinstance(compiled.inputs, torch.Tensor)
        batches = [compiled.inputs] if isinstance(compiled.inputs, torch.Tensor) else list(compiled.inputs)
        sizes = None if single else tuple(map(len, batches))
        train = torch.cat(batches)
        tests = compiled.test_inputs
        inputs = torch.cat([train, tests]) if tests is not None else train
        index = _numbered([tuple(x.flatten().tolist()) for x in inputs])
        targets = compiled.targets
        if targets is not None and not isinstance(targets, torch.Tensor):
            targets = torch.cat(list(targets))
        pairs = [] if targets is None else [(i, *y.flatten().tolist()) for i, y in zip(index, targets, strict=False)]
        return Rows(inputs, targets, len(train), index, _numbered(pairs), sizes)

    def batched(self, x: torch.Tensor) -> Any:
        """Rows as the user gave them: one tensor, or minibatches."""
        return x if self.sizes is None else list(x.split(self.sizes))

    def part(self, kind: str, batch: int | None) -> slice:
        """The rows of a tensor of the program: of all inputs or targets, or of one minibatch."""
        if kind == "test_inputs":
            return slice(self.count, None)
        if batch is None or self.sizes is None:
            return slice(0, self.count)
        return slice(sum(self.sizes[:batch]), sum(self.sizes[: batch + 1]))


def _numbered(rows: Sequence[tuple[Any, ...]]) -> list[int]:
    """Numbers of rows by their first occurrence."""
    seen: dict[tuple[Any, ...], int] = {}
    return [seen.setdefault(row, len(seen)) for row in rows]


@dataclass
class Terms:
    """The ring of the symbols, the data over it, and back to sympy.

    Inputs with Gram matrix G enter as ``x = L d`` in other coordinates, L unit lower triangular and d diagonal, on
    which the limit does not depend (rotations of Gaussian weights): it is a polynomial in ``G = L d^2 L^T``.
    """

    compiled: Compiled
    program: Program
    chosen: Sequence[str]
    rows: Rows
    numbers: Sequence[Number]  # coefficients of the hyperparameters in the numbers of the program
    generators: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Array] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.count = max(self.rows.index) + 1
        self.size = self.rows.inputs[0].numel()
        numbers = [*map(recognised, _numbers(self.program)), *self.numbers]
        self.primes = sorted({p for v in numbers for p in _primes(v)})
        names = []
        if "gram" in self.chosen:
            self._check_rotations()
            if self.size < self.count:
                raise UsageError(
                    f"the Gram matrix of {self.count} inputs of {self.size} numbers has no full rank",
                    advice="take fewer inputs, or symbols without 'gram'",
                )
            names += [f"d{i}" for i in range(self.count)][::-1]
            names += [f"l{i}_{j}" for i in range(self.count) for j in range(i)]
        names += [FACTORS[s] for s in self.chosen if s in FACTORS]
        if "targets" in self.chosen:
            assert self.rows.targets is not None
            shape = (max(self.rows.target_index) + 1, *self.rows.targets.shape[1:])
            names += [f"y{'_'.join(str(i + 1) for i in at)}" for at in np.ndindex(*_columns(shape))]
        names += [f"root{p}" for p in self.primes]
        self.ring, *made = ring(names or ["unused"], sp.QQ)
        self.generators = dict(zip(names, made[0] if isinstance(made[0], tuple) else made, strict=False))
        self.gram, self.targets = self._symbols()
        for name in [n.op.name for n in self.program.nodes if isinstance(n.op, Data)]:
            kind, _, batch = name.split("#")[0].partition("/")
            part = self.rows.part(kind, int(batch) if batch else None)
            if kind == "targets" and "targets" in self.chosen:
                self.data[name] = self._targets()[part]
            elif kind in ("inputs", "test_inputs") and "gram" in self.chosen:
                self.data[name] = self._inputs()[part]

    def polynomial(self, found: Mapping[Powers, Number], moving: Sequence[str]) -> Number:
        """A polynomial in the hyperparameters."""
        total: Any = self.ring.zero
        for powers, c in found.items():
            term: Any = self.number(c)
            for name, power in zip(moving, powers, strict=True):
                term = term * self.generators[FACTORS[name]] ** power
            total = total + term
        return total

    def number(self, x: Number) -> Number:
        """A number of the program in the ring. EvaluationError for one that is no rational and no root."""
        found = x if isinstance(x, Surd) else recognised(x)
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
        if "gram" in self.chosen:
            x = in_gram(x, self.count)
        eta, roots = sp.Symbol("eta"), [(sp.Symbol(f"root{p}"), sp.sqrt(p)) for p in self.primes]
        place = x.ring.symbols.index(eta) if eta in x.ring.symbols else None
        parts: defaultdict[int, dict[Powers, Any]] = defaultdict(dict)  # by powers of the learning rate
        for powers, c in x.terms():
            power = 0 if place is None else powers[place]
            parts[power][powers if place is None else (*powers[:place], 0, *powers[place + 1 :])] = c
        shown = {power: x.ring.from_dict(part).as_expr() for power, part in parts.items()}
        if roots:
            shown = {power: sp.expand(part.subs(roots)) for power, part in shown.items()}
        return sp.Add(*(eta**power * part for power, part in shown.items()))

    def _check_rotations(self) -> None:
        for node in self.program.nodes:
            if isinstance(node.op, Init) and node.kind == "vector" and not _isotropic(node.op.law):
                raise EvaluationError(
                    f"'{node.op.name}' is not a centred normal: the limit depends on more than the Gram matrix",
                    advice="take symbols without 'gram'",
                )

    def _symbols(self) -> tuple[sp.Matrix, sp.Matrix | None]:
        def exact(x: torch.Tensor) -> sp.Matrix:
            entries = [sp.Rational(*_ratio(float(v))) for v in x.double().flatten()]
            return sp.Matrix(len(x), x[0].numel(), entries)

        if "gram" in self.chosen:
            index = self.rows.index
            gram = sp.Matrix(len(index), len(index), lambda i, j: sp.Symbol(entry(index[i], index[j])))
        else:
            flat = exact(self.rows.inputs)
            gram = flat * flat.T
        targets = self.rows.targets
        if targets is None:
            return gram, None
        if "targets" not in self.chosen:
            return gram, exact(targets)
        shown = self._targets().reshape(len(targets), -1)
        return gram, sp.Matrix(*shown.shape, [v.as_expr() for v in shown.ravel()])

    def _targets(self) -> Array:
        assert self.rows.targets is not None
        named = [self.generators[n] for n in self.generators if n.startswith("y")]
        out = np.empty(len(named), dtype=object)
        out[:] = named
        shape = tuple(self.rows.targets.shape[1:])
        return out.reshape(max(self.rows.target_index) + 1, *shape)[self.rows.target_index]

    def _inputs(self) -> Array:
        out = np.full((self.count, self.size), self.ring.zero, dtype=object)
        for i in range(self.count):
            for j in range(i + 1):
                side = self.generators[f"l{i}_{j}"] if j < i else self.ring.one
                out[i, j] = side * self.generators[f"d{j}"]
        return out[self.rows.index].reshape(tuple(self.rows.inputs.shape))


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


def _primes(x: Number) -> list[int]:
    return [int(p) for d, _ in x.parts for p in sp.factorint(d)] if isinstance(x, Surd) else []


def entry(i: int, j: int) -> str:
    """Name of an entry of the Gram matrix."""
    return f"G{min(i, j) + 1}{max(i, j) + 1}"


def in_gram(x: Any, count: int) -> Any:
    """A polynomial in the entries of ``G = L d^2 L^T`` that is given in those of L and d, which are its first symbols.

    In lexical order, later entries of d first, the leading monomial of ``G_ij = sum_k l_ik l_jk d_k^2`` with i >= j is
    ``l_ij d_j^2``. Those of different entries are independent, so that the leading monomial of a polynomial in G tells
    the monomial in G that it comes from, which is taken off. EvaluationError if there is none.
    """
    lower = [(i, j) for i in range(count) for j in range(i)]
    size = count + len(lower)
    place = {pair: count + k for k, pair in enumerate(lower)}
    entries = [*((j, j) for j in range(count)), *lower]

    def product(i: int, j: int) -> dict[Powers, int]:
        terms = {}
        for k in range(j + 1):
            powers = [0] * size
            powers[count - 1 - k] = 2
            for row in (i, j):
                if row != k:
                    powers[place[row, k]] += 1
            terms[tuple(powers)] = 1
        return terms

    factors = [product(i, j) for i, j in entries]
    known: dict[Powers, dict[Powers, int]] = {(0,) * len(entries): {(0,) * size: 1}}

    def expanded(monomial: Powers) -> dict[Powers, int]:
        if monomial not in known:
            at = next(k for k, power in enumerate(monomial) if power)
            before = expanded((*monomial[:at], monomial[at] - 1, *monomial[at + 1 :]))
            total: defaultdict[Powers, int] = defaultdict(int)
            for a, c in before.items():
                for b, e in factors[at].items():
                    total[tuple(p + q for p, q in zip(a, b, strict=True))] += c * e
            known[monomial] = dict(total)
        return known[monomial]

    left: dict[Powers, dict[Powers, Any]] = defaultdict(dict)
    for powers, c in x.terms():
        left[powers[:size]][powers[size:]] = c
    names = [entry(i, j) for i, j in entries]
    target, *_ = ring([*names, *map(str, x.ring.symbols[size:])], sp.QQ)
    found = {}
    while left:
        lead = max(left)
        off = [lead[place[pair]] for pair in lower]
        below = [sum(power for (_, j), power in zip(lower, off, strict=True) if j == k) for k in range(count)]
        diagonal = [lead[count - 1 - k] - 2 * below[k] for k in range(count)]
        if any(power < 0 or power % 2 for power in diagonal):
            raise EvaluationError("the limit depends on more of the inputs than their Gram matrix")
        monomial = (*(power // 2 for power in diagonal), *off)
        coefficients = left[lead]
        found |= {(*monomial, *rest): c for rest, c in coefficients.items()}
        coefficients = dict(coefficients)
        for powers, weight in expanded(monomial).items():
            row = left[powers]
            for rest, c in coefficients.items():
                value = row.get(rest, 0) - weight * c
                if value:
                    row[rest] = value
                else:
                    row.pop(rest, None)
            if not row:
                del left[powers]
    return target.from_dict(found)
