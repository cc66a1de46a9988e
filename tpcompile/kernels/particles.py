"""Kernels estimated on particles: of models whose expectations are no products of integrals over few variables."""

from __future__ import annotations

import math
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from tpcompile.capture import Capture
from tpcompile.evaluate.gaussian.structure import input_nodes
from tpcompile.evaluate.limit import Settings, estimate
from tpcompile.evaluate.threads import Tick
from tpcompile.ir import (
    Builder,
    Concat,
    Contract,
    Data,
    Expand,
    Init,
    Node,
    Output,
    Permute,
    Program,
    Sum,
    View,
    finish,
    reachable,
    split_spec,
)
from tpcompile.kernels.plan import Pairs, input_name
from tpcompile.lowering.kernel import KernelProgram, compile_kernel


@dataclass(frozen=True)
class ParticlePlan:
    """The kernels of a model as covariances of its output and of its first variation over the ensemble."""

    program: KernelProgram
    nngp: Pairs
    ntk: Pairs | None

    @property
    def sampled(self) -> bool:
        return True

    @property
    def forms(self) -> list[tuple[str, float | None]]:
        """One for everything: its error is that of the estimate."""
        return [("particles", None)]


def plan_particles(captured: Capture, tangent: bool) -> ParticlePlan:
    """Lower a trace; which axes of the outputs are independent and alike is read off the program."""
    program = compile_kernel(captured)
    nngp = _pairs(program.output, program.output_exponent)
    return ParticlePlan(program, nngp, _pairs(program.variation, program.variation_exponent) if tangent else None)


def estimated(
    plan: ParticlePlan,
    pairs: Sequence[Pairs],
    x1: Tensor,
    x2: Tensor | None,
    diagonal: bool,
    settings: Settings,
    tick: Tick | None,
) -> list[tuple[Tensor, Tensor]]:
    """Each of the planned kernels with its standard error: over all pairs, or of each input with itself.

    All inputs are evaluated on the same particles, so that a symmetric kernel is positive semidefinite.
    """
    inputs = x1 if x2 is None else torch.cat([x1, x2])
    roots = {
        str(i): node
        for i, wanted in enumerate(pairs)
        if (node := plan.program.output if wanted is plan.nngp else plan.program.variation) is not None
    }
    found = estimate(_joined(plan.program.program, roots, inputs), settings, tuple(roots), tick)
    rows, columns = len(x1), slice(None) if x2 is None else slice(len(x1), None)
    out = []
    for i, wanted in enumerate(pairs):
        shape = (len(inputs), len(inputs), *wanted.positions, *wanted.positions)
        if str(i) not in roots:
            values, errors = torch.zeros(shape, dtype=settings.dtype), torch.zeros(shape, dtype=settings.dtype)
        else:
            mean = found.mean[str(i)].reshape(-1)
            spread = 2 * torch.outer(mean.abs(), found.stderr[str(i)].reshape(-1))
            second = found.covariance[str(i)] + torch.outer(mean, mean)
            noise = found.covariance_stderr[str(i)] + torch.maximum(spread, spread.T)
            values, errors = (_by_position(x, len(inputs), roots[str(i)], wanted) for x in (second, noise))
        if diagonal:
            at = torch.arange(rows)
            out.append((values[at, at], errors[at, at]))
        else:
            out.append((values[:rows, columns], errors[:rows, columns]))
    return out


def _by_position(matrix: Tensor, count: int, node: Node, pairs: Pairs) -> Tensor:
    """A covariance of all outputs of all inputs in the shape of a kernel: averaged over independent equal outputs."""
    dims = [int(d) for d in node.dims if isinstance(d, int)]
    letters = iter(string.ascii_letters)
    a, b = next(letters), next(letters)
    first = [next(letters) for _ in dims]
    second = [next(letters) if i in pairs.kept else x for i, x in enumerate(first)]
    kept = "".join(x[i] for x in (first, second) for i in pairs.kept)
    spec = f"{a}{''.join(first)}{b}{''.join(second)}->{a}{b}{kept}"
    alike = [d for i, d in enumerate(dims) if i not in pairs.kept]
    return torch.einsum(spec, matrix.reshape(count, *dims, count, *dims)) / math.prod(alike)


def _joined(program: Program, roots: dict[str, Node], inputs: Tensor) -> Program:
    """The program on all inputs at once: what depends on the input once for each of them, along a new first axis."""
    builder = Builder()
    builder.data.update(program.data)
    name = input_name(program)
    moving = input_nodes(program, name)
    shared: dict[Node, Node] = {}
    wanted = reachable(roots.values())
    copies: dict[str, list[Node]] = {root: [] for root in roots}
    for i in range(len(inputs)):
        made = dict(shared)
        for node in wanted:
            if node in made:
                continue
            builder.origin = program.origins.get(node, "")
            op = node.op
            if isinstance(op, Data) and op.name == name:
                value = inputs[i].reshape(op.shape)
                op = replace(op, name=f"{op.name}/{i}")
                builder.data[op.name] = value.double() if value.is_floating_point() else value
            made[node] = builder.node(op, *(made[x] for x in node.operands))
            if node not in moving:
                shared[node] = made[node]
        for root, node in roots.items():
            copies[root].append(builder.node(View((1, *node.dims)), made[node]))
    stacked = {root: builder.node(Concat(0), *nodes) for root, nodes in copies.items()}
    outputs = {root: Output(((Fraction(0), node),), None, node.dims) for root, node in stacked.items()}
    return finish(builder, outputs)


def _pairs(node: Node | None, exponent: Fraction) -> Pairs:
    if node is None:
        return Pairs(None, None, (), Fraction(0))
    dims = tuple(d for d in node.dims if isinstance(d, int))
    alike = _alike(node, {})
    kept = tuple(i for i, d in enumerate(dims) if d != 1 and i not in alike)
    return Pairs(None, None, tuple(dims[i] for i in kept), 2 * exponent, dims, kept)


def _alike(node: Node, known: dict[Node, frozenset[int]]) -> frozenset[int]:
    """Axes along which the entries are independent and equal in law, given all else: rows of an initial value."""
    if node not in known:
        known[node] = frozenset(_find(node, known))
    return known[node]


def _find(node: Node, known: dict[Node, frozenset[int]]) -> list[int]:
    op, below = node.op, node.operands
    axes = [i for i, d in enumerate(node.dims) if isinstance(d, int)]
    if isinstance(op, Init):
        return axes
    if isinstance(op, Sum):
        rank = len(node.dims)
        shifted = [{i + rank - len(x.dims) for i in _alike(x, known)} for x in below]
        return [i for i in axes if all(i in s for s in shifted)]
    if isinstance(op, Permute):
        return [i for i, j in enumerate(op.order) if j in _alike(below[0], known)]
    if isinstance(op, Expand):
        shift = len(node.dims) - len(below[0].dims)
        return [i + shift for i in _alike(below[0], known) if node.dims[i + shift] == below[0].dims[i]]
    if isinstance(op, View):
        (x,) = below
        inner, outer = ([(i, d) for i, d in enumerate(y.dims) if d != 1] for y in (x, node))
        same = [d for _, d in inner] == [d for _, d in outer]  # only axes of length one come or go
        return [j for (i, _), (j, _) in zip(inner, outer, strict=True) if i in _alike(x, known)] if same else []
    if isinstance(op, Contract):
        specs, out = split_spec(op.spec)
        return [i for i in axes if _one_family(out[i], specs, below, known)]
    return []


def _one_family(letter: str, specs: Sequence[str], below: Sequence[Node], known: dict[Node, frozenset[int]]) -> bool:
    """True if one operand alone has the axis, along which it is independent, and no other depends on its randomness."""
    having = [(spec, x) for spec, x in zip(specs, below, strict=True) if letter in spec]
    if len(having) != 1 or having[0][0].count(letter) != 1:
        return False
    spec, x = having[0]
    if spec.index(letter) not in _alike(x, known):
        return False
    own = {y for y in reachable([x]) if isinstance(y.op, Init) and any(isinstance(d, int) for d in y.dims)}
    others = reachable(y for y in below if y is not x)
    return sum(y is x for y in below) == 1 and own.isdisjoint(others)
