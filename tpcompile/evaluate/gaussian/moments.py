"""Expectations of products of a program's values, in independent Gaussian groups (theory, sections 2 and 7).

A request is a list of factors, each a node of the program on one of two inputs (copies) with a label on every finite
axis. Linear instructions are peeled off, independent groups taken apart, and what is left is a covariance of
generators or the expectation of functions of few jointly Gaussian variables. Equal labels ask for a diagonal only,
which is what keeps convolutions without pooling cheap.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from tpcompile.analysis.gaussians import settled
from tpcompile.analysis.parity import Parity
from tpcompile.analysis.semantics import constant_value
from tpcompile.errors import TpcompileError
from tpcompile.evaluate.domains import find_domains
from tpcompile.evaluate.gaussian import axes, drift, groups, merges, radial, response
from tpcompile.evaluate.gaussian.recognise import monomial, negative_square
from tpcompile.evaluate.gaussian.structure import Structure, input_nodes, is_linear_move
from tpcompile.evaluate.gaussian.terms import (
    Array,
    Label,
    Poly,
    ScalarArray,
    SumArray,
    Term,
    VarianceArray,
    matched,
    product,
    unified,
)
from tpcompile.ir import (
    Contract,
    Expand,
    Gaussian,
    Init,
    Map,
    MatMul,
    Mul,
    Node,
    Permute,
    Program,
    SplitWidth,
    Sum,
    View,
    Width,
    split_spec,
)
from tpcompile.laws import mean_and_std

_ONE = Term(1.0)


class FactorisationError(TpcompileError):
    """An expectation that is no product of integrals over few Gaussian variables: the particles must do it."""


@dataclass(frozen=True)
class Factor:
    """A node on the inputs of one copy; ``labels`` name its finite axes in order, None those of length 1.

    ``blocks`` say which block of the width axis is meant where it has been split: a block is a draw of its own.
    """

    node: Node
    copy: int
    labels: tuple[Label | None, ...]
    blocks: tuple[Label, ...] = ()

    def named(self) -> tuple[Label, ...]:
        """Labels that are there."""
        return tuple(x for x in self.labels if x is not None) + self.blocks

    def on(self, node: Node, labels: Sequence[Label | None]) -> Factor:
        """An operand under these labels, at the same coordinate."""
        return Factor(node, self.copy, tuple(labels), self.blocks if node.kind == "vector" else ())

    def under(self, names: Mapping[Label, Label]) -> Factor:
        """The same factor with labels renamed."""
        labels = tuple(None if x is None else names.get(x, x) for x in self.labels)
        return Factor(self.node, self.copy, labels, tuple(names.get(x, x) for x in self.blocks))


class Moments:
    """Plans expectations over one program; equal requests are planned once."""

    def __init__(self, program: Program, input_name: str) -> None:
        self.program = program
        self.input_name = input_name
        self.domains = find_domains(program)
        self.dependent = input_nodes(program, input_name)
        self.parity = Parity()
        self.structure = Structure(program)
        self.lengths: dict[Label, int] = {}
        self.forms: list[tuple[str, float | None]] = []  # of the expectations, in words, with their stated errors
        self.known: dict[object, Array] = {}
        self.scales: dict[Node, radial.Scale | None] = {}
        self.ells = radial.held(self, [Factor(node, 0, ()) for node in program.nodes])
        self.made: dict[object, Any] = {}  # nodes and tilts that planning adds to the program
        self.sampled = False  # whether an expectation needs draws
        self._compact: dict[object, Poly] = {}
        self._moments: dict[object, tuple[Array | None, tuple[Label, ...]]] = {}
        self._slopes: dict[Node, Node] = {}
        self._curves: dict[Node, Node | None] = {}

    def found_error(self, form: int, error: float) -> None:
        """Keep the largest error of an expectation whose error shows only when it is evaluated."""
        name, known = self.forms[form]
        self.forms[form] = (name, error if known is None else max(known, error))

    # labels and requests -------------------------------------------------------------------

    def label(self, size: int) -> Label:
        """A new label of an axis of that length."""
        name = len(self.lengths)
        self.lengths[name] = size
        return name

    def factor(self, node: Node, copy: int) -> Factor:
        """A node with new labels on its finite axes."""
        sizes = [d for d in node.dims if isinstance(d, int)]
        return Factor(node, copy, tuple(None if d == 1 else self.label(d) for d in sizes))

    def array(self, factors: Sequence[Factor], out: Sequence[Label], centre: bool = False) -> Array | None:
        """The expectation of a product of factors, or the covariance of two, as an array over the labels ``out``.

        None if it is zero. Labels that are not in ``out`` are summed.
        """
        order = sorted(factors, key=lambda f: (f.node.serial, f.copy))
        key = (*self.key(order, out), centre)
        if key not in self.known:
            poly = self.covariance(*factors) if centre else self.moment(tuple(order))
            self.known[key] = self.sum([self._counted(t, factors, out) for t in poly], out)
        found = self.known[key]
        return None if isinstance(found, SumArray) and not found.terms else found

    def sum(self, poly: Sequence[Term], out: Sequence[Label]) -> SumArray:
        """A sum of products over the labels ``out``."""
        used = {x for term in poly for _, labels in term.uses for x in labels}
        used |= {x for term in poly for pair in term.deltas for x in pair}
        sizes = tuple(self.lengths[x] if x in used else 1 for x in out)
        return SumArray(sizes, tuple(poly), tuple(out), self.lengths)

    def covariance(self, a: Factor, b: Factor) -> Poly:
        """``E[a b] - E[a] E[b]``."""
        mean_a, mean_b = self.moment((a,)), self.moment((b,))
        both = self.moment((a, b))
        minus = tuple(Term(-t.coefficient, t.uses, t.deltas) for t in product(mean_a, mean_b))
        return both + minus

    # peeling -------------------------------------------------------------------------------

    def moment(self, factors: tuple[Factor, ...]) -> Poly:
        """The expectation of the product as a sum of products of arrays; empty if it is zero."""
        fixed = [f for f in factors if self.structure.deterministic(f.node)]
        if fixed:
            rest = tuple(f for f in factors if not self.structure.deterministic(f.node))
            return product((self._scalars(fixed),), self.moment(rest))
        if not factors:
            return (Term(1.0),)
        moving = any(is_linear_move(f.node.op) for f in factors)
        held = radial.held(self, factors)
        late = [i for i, f in enumerate(factors) if f.node in self.ells]  # a power of its length may still show up
        for i in [i for i in range(len(factors)) if i not in late] + late:
            f = factors[i]
            if f.node in held:
                continue
            others = factors[:i] + factors[i + 1 :]
            if moving and isinstance(f.node.op, Contract | Mul) and self._still(f.node):
                continue  # what the others move is then one array, without the axes that f sums
            if len(factors) > 2 and self.whole(f):
                continue  # as a variable: its blocks need not be told apart among other factors
            alternatives = self._split(f)
            if alternatives is not None:
                kept = {x for g in (f, *others) for x in g.named()}
                return tuple(
                    self._counted(own * t, inner, kept)
                    for own, inner in alternatives
                    for t in self._with(own, (*inner, *others))
                )
        free = self._free(factors)
        if free:
            chosen = [factors[i] for i in free]
            others = tuple(f for k, f in enumerate(factors) if k not in free)
            return self.times(self.mean(*chosen) if len(free) == 1 else self.generators(*chosen), others)
        left = [f for f in factors if f.node not in held and not (len(factors) > 2 and self.whole(f))]
        for f in left:
            if is_linear_move(f.node.op):
                return axes.moved(self, f, factors)
        for f in left:
            if merges.below(self, f.node) is not None:
                return merges.merged(self, f, factors)
        return groups.independent(self, factors)

    def _still(self, node: Node) -> bool:
        """True if nothing is moved in what a value splits into."""
        if is_linear_move(node.op):
            return False
        inner = isinstance(node.op, Contract | Mul | Sum | Expand | Permute)
        return not inner or all(self._still(x) for x in node.operands if x in self.structure.random)

    def whole(self, f: Factor) -> bool:
        """True for a Gaussian value made of parts of a split width."""
        vector = f.node.kind == "vector" and not f.blocks
        return vector and self.structure.splits(f.node) and self.structure.gaussian(f.node)

    def _scalars(self, fixed: Sequence[Factor]) -> Term:
        uses = []
        for f in fixed:
            sizes = tuple(self.lengths[x] for x in f.named())
            key = ("scalar", f.node, f.copy)
            uses.append((self.known.setdefault(key, ScalarArray(sizes, f.node, f.copy)), f.named()))
        return Term(1.0, tuple(uses))

    def _split(self, f: Factor) -> list[tuple[Term, tuple[Factor, ...]]] | None:
        """What a linear instruction or a product is made of: a list of alternatives to be added."""
        op, x = f.node.op, f.node.operands
        if isinstance(op, Sum):
            return [(Term(c), (self.broadcast(f, y),)) for c, y in zip(op.coefficients, x, strict=True)]
        if isinstance(op, Mul):
            return [(_ONE, tuple(self.broadcast(f, y) for y in x))]
        if isinstance(op, Expand):
            return [(_ONE, (self.broadcast(f, x[0]),))]
        if isinstance(op, Map) and not self.structure.gaussian(x[0]):
            power = monomial(op)
            if power is not None:
                return [(Term(power[0]), (self.broadcast(f, x[0]),) * power[1])]
            if (curve := self._squared_exponential(f.node)) is not None:
                return [(_ONE, (f.on(curve, f.labels),))]
            freed = radial.freed(self, f)
            if freed is not None:
                return [(Term(freed[0]), freed[1])]
        if isinstance(op, Permute):
            return [(_ONE, (axes.permuted(f),))]
        if isinstance(op, View):
            inner = axes.squeezed(f)
            return None if inner is None else [(_ONE, (inner,))]
        if isinstance(op, SplitWidth):
            return [(_ONE, (axes.block(f),))]
        if isinstance(op, MatMul) and self.structure.responds(f.node):
            return response.alternatives(self, f)
        if drift.drifts(self, f.node):
            return drift.alternatives(self, f)
        if isinstance(op, Contract) and not isinstance(op, Gaussian) and self.structure.width(f.node) is None:
            return [(_ONE, self.contracted(f))]
        return None

    def _with(self, own: Term, factors: tuple[Factor, ...]) -> Poly:
        """The expectation of factors beside a term, whose deltas unify labels of theirs."""
        names = unified(own.deltas)
        return self.moment(tuple(f.under(names) for f in factors)) if own.coefficient else ()

    def broadcast(self, f: Factor, operand: Node) -> Factor:
        """An operand of a pointwise instruction: axes aligned from the right, those of length 1 without label."""
        finite = iter(f.labels)
        by_axis = [None if isinstance(d, Width) else next(finite) for d in f.node.dims]
        aligned = by_axis[len(by_axis) - len(operand.dims) :]
        labels = tuple(
            None if d == 1 else label for d, label in zip(operand.dims, aligned, strict=True) if isinstance(d, int)
        )
        return f.on(operand, labels)

    def _counted(self, term: Term, factors: Sequence[Factor], kept: Collection[Label]) -> Term:
        """A term times the lengths of the factors' labels that are summed and that nothing in it depends on."""
        have = {x for _, labels in term.uses for x in labels} | {x for pair in term.deltas for x in pair}
        lost = {x for f in factors for x in f.named()} - have - set(kept)
        times = math.prod(self.lengths[x] for x in lost)
        return term if times == 1 else replace(term, coefficient=term.coefficient * times)

    def contracted(self, f: Factor) -> tuple[Factor, ...]:
        """The operands of an Einstein sum; what it sums gets new labels."""
        assert isinstance(f.node.op, Contract)
        inputs, out = split_spec(f.node.op.spec)
        finite = iter(f.labels)
        names: dict[str, Label | None] = {
            letter: None if isinstance(d, Width) else next(finite) for letter, d in zip(out, f.node.dims, strict=True)
        }
        factors = []
        for letters, x in zip(inputs, f.node.operands, strict=True):
            labels = []
            for letter, d in zip(letters, x.dims, strict=True):
                if isinstance(d, Width):
                    continue
                if letter not in names:
                    names[letter] = None if d == 1 else self.label(d)
                labels.append(None if d == 1 else names[letter])
            factors.append(f.on(x, labels))
        return tuple(factors)

    # generators ----------------------------------------------------------------------------

    def _free(self, factors: Sequence[Factor]) -> tuple[int, ...]:
        """An initial value on which no other factor depends, or two factors that are the same one."""
        if len(factors) < 3:
            return ()
        for i, f in enumerate(factors):
            if not isinstance(f.node.op, Init):
                continue
            same = [k for k, g in enumerate(factors) if f.node in self.structure.reach(g.node)]
            if len(same) <= 2 and all(factors[k].node is f.node for k in same) and same[0] == i:
                return tuple(same)
        return ()

    def times(self, poly: Poly, others: tuple[Factor, ...]) -> Poly:
        """Multiply by the expectation of the others, with the labels that the deltas of each term unify."""
        return tuple(term * t for term in poly for t in self._with(term, others))

    def mean(self, f: Factor) -> Poly:
        """Mean of a generator."""
        if isinstance(f.node.op, Init):
            mean, _ = mean_and_std(f.node.op.law)
            return (Term(mean),) if mean else ()
        return self.moment((f,)) if self.whole(f) else ()

    def generators(self, a: Factor, b: Factor) -> Poly:
        """``E[a b]`` of two generators: initial values, products with initial matrices, Gaussian scalars."""
        if self.whole(a) or self.whole(b):
            return self.moment((a, b))
        means = product(self.mean(a), self.mean(b))
        x, y = a.node.op, b.node.op
        if isinstance(x, radial.Tilted):
            return radial.covariance(self, a, b)
        if isinstance(x, Init) and a.node is b.node:
            _, std = mean_and_std(x.law)
            deltas = matched((*a.labels, *a.blocks), (*b.labels, *b.blocks))
            return (Term(1.0, (self.variance(a.node, std),), deltas), *means)
        if isinstance(x, MatMul) and isinstance(y, MatMul):
            return self._products(a, b)
        if isinstance(x, Gaussian) and isinstance(y, Gaussian):
            return self._sums(a, b)
        return means

    def variance(self, node: Node, std: float) -> tuple[Array, tuple[Label, ...]]:
        """The variance of an initial value as an array without axes."""
        assert isinstance(node.op, Init)
        key = ("variance", node)
        return self.known.setdefault(key, VarianceArray((), node.op.name, std * std)), ()

    def _products(self, a: Factor, b: Factor) -> Poly:
        """``Cov(Ẑ^{W x}, Ẑ^{W y}) = sigma^2 r E[x y]``, r the ratio of the axis that W contracts."""
        (matrix, x), (other, y) = a.node.operands, b.node.operands
        if matrix is not other or a.node.op != b.node.op:
            return ()
        assert isinstance(matrix.op, Init)
        _, std = mean_and_std(matrix.op.law)
        family = sum(isinstance(d, int) for d in matrix.dims)
        deltas = matched((*a.labels[:family], *a.blocks), (*b.labels[:family], *b.blocks))
        into = next(d for d in x.dims if isinstance(d, Width))
        names = unified(deltas)
        inner = tuple(Factor(node, f.copy, f.labels).under(names) for node, f in ((x, a), (y, b)))
        own = Term(float(into.ratio), (self.variance(matrix, std),), deltas)
        return product((own,), self.compact(inner))

    def compact(self, factors: tuple[Factor, ...], moved: Collection[Label] = ()) -> Poly:
        """The expectation of a product as one array, unless Kronecker deltas of its axes must stay visible.

        Without it sums would be multiplied out from layer to layer, and all contracted at the end; and where entries
        along the axes ``moved`` are moved next, every array in a product would be moved on its own.
        """
        out = tuple(dict.fromkeys(x for f in factors for x in f.named()))
        numbers = {x: i for i, x in enumerate(out)}
        key = (*self.key(factors, out), frozenset(numbers[x] for x in out if x in moved))
        if key not in self._compact:
            poly = self._compacted(factors, out, moved)
            if any(x not in numbers for term in poly for x in term.labels()):
                return poly  # what is summed in it has labels of its own for every use
            self._compact[key] = tuple(term.under(numbers) for term in poly)
        return tuple(term.under(dict(enumerate(out))) for term in self._compact[key])

    def _compacted(self, factors: tuple[Factor, ...], out: tuple[Label, ...], moved: Collection[Label]) -> Poly:
        poly = self.moment(factors)
        labels = [names for term in poly for _, names in term.uses]
        internal = any(x not in out for names in labels for x in names)
        if len(poly) < 2 and not internal and sum(bool(set(names) & set(moved)) for names in labels) < 2:
            return poly
        for term in poly:
            names = unified(term.deltas)
            if len({names.get(x, x) for x in out}) < len(out):
                return poly
        array = self.array(factors, out)
        return () if array is None else (Term(1.0, ((array, out),)),)

    def key(self, factors: Sequence[Factor], out: Sequence[Label]) -> tuple[object, ...]:
        """What a request is known by, whatever its labels are called."""
        names: dict[Label, int] = {}
        for label in (x for f in factors for x in f.named()):
            names.setdefault(label, len(names))
        asked = tuple((g.node, g.copy, g.labels, g.blocks) for g in (f.under(names) for f in factors))
        return asked, tuple(names.get(x, -1) for x in out)

    def _sums(self, a: Factor, b: Factor) -> Poly:
        """``E[psi psi']`` of two Gaussian scalars (theory, section 5)."""
        same = self._axis(a.node) == self._axis(b.node)
        if not settled(a.node, b.node, same, self.parity):
            raise FactorisationError("two Gaussian sums meet the same matrix from both sides")
        factors, kept = (*self.contracted(a), *self.contracted(b)), (*a.named(), *b.named())
        return tuple(self._counted(t, factors, kept) for t in self.moment(factors)) if same else ()

    def _axis(self, node: Node) -> int:
        return self.domains.of[next(x for x in node.operands if x.kind == "vector")].index

    # numbers -------------------------------------------------------------------------------

    def varies(self, node: Node) -> bool:
        """True if a value depends on the inputs."""
        return node in self.dependent

    def constant(self, node: Node) -> torch.Tensor | None:
        """The value of a number that does not depend on the inputs."""
        return None if self.varies(node) else constant_value(node, self.program.data)

    def plan_scalars(self) -> None:
        """Plan every moment of the program on both copies, so that evaluation plans nothing."""
        for node in self.program.nodes:
            if self.structure.deterministic(node) and self.structure.width(node) is not None:
                for copy in (0, 1):
                    self.scalar_moment(node, copy)

    def scalar_moment(self, node: Node, copy: int) -> tuple[Array | None, tuple[Label, ...]]:
        """A moment of the program on the inputs of one copy, and the labels of its axes."""
        key = ("moment", node, copy)
        if key not in self._moments:
            f = self.factor(node, copy)
            self._moments[key] = self.array(self.contracted(f), f.named()), f.named()
        return self._moments[key]

    def derivative(self, f: Factor) -> Factor:
        """The derivative of a pointwise function of one variable."""
        op = f.node.op
        assert isinstance(op, Map)
        slope = self._slopes.get(f.node)
        if slope is None:
            higher = Map(op.fn, op.order + 1, op.params)
            slope = self._slopes[f.node] = Node(higher, f.node.operands, f.node.dims, f.node.serial)
            self.structure.random.add(slope)
        return f.on(slope, f.labels)

    def _squared_exponential(self, node: Node) -> Node | None:
        """``exp(-c x^2)`` of a Gaussian x as one registered function of it."""
        if node not in self._curves:
            self._curves[node] = None
            found = negative_square(node)
            if found is not None and found[1].dims == node.dims and self.structure.gaussian(found[1]):
                op = Map("squared_exponential", 0, (("precision", found[0]),))
                curve = self._curves[node] = Node(op, (found[1],), node.dims, node.serial)
                self.structure.random.add(curve)
        return self._curves[node]

    def unfactorised(self, what: str, node: Node) -> FactorisationError:
        """The error for an expectation that is out of reach."""
        return FactorisationError(
            what,
            where=self.program.origins.get(node) or None,
            advice="tp.kernel(..., evaluator='particles') estimates the kernel, with a standard error",
        )
