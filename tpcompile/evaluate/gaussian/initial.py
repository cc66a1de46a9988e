"""Expectations over initial values that are not normal: functions of one or two sums of independent weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tpcompile.evaluate.domains import finite_size
from tpcompile.evaluate.duals import fourier
from tpcompile.evaluate.duals.functions import Factor as Product
from tpcompile.evaluate.duals.functions import kinks, pointwise
from tpcompile.evaluate.gaussian.sampled import _placed, _samples_last, sources
from tpcompile.evaluate.gaussian.structure import is_linear_move
from tpcompile.evaluate.gaussian.terms import Array
from tpcompile.ir import Contract, Expand, Init, Map, Mul, Node, Sum
from tpcompile.laws import Normal, Uniform, mean_and_std

if TYPE_CHECKING:
    from tpcompile.evaluate.gaussian.moments import Factor, Moments
    from tpcompile.evaluate.gaussian.run import Run


@dataclass(frozen=True, eq=False)
class InitialArray(Array):
    """``E`` of a product of functions of one or two linear combinations of initial values."""

    variables: tuple[tuple[Node, int], ...]  # each with the copy of the inputs that it is of
    functions: tuple[Product, ...]
    initial: tuple[Node, ...]
    form: int  # its place in the list of forms, where its error is kept


def plan_initial(m: Moments, group: Sequence[Factor]) -> InitialArray | None:
    """The expectation as one over sums of uniform and normal initial values; None if it is no such one."""
    parts: dict[tuple[Node, int], list] = {}
    found: dict[Node, bool] = {}
    for f in group:
        op, inner = f.node.op, f.node
        if isinstance(op, Map) and not _linear(m, f.node):
            (inner,) = f.node.operands
        if f.blocks or f.named() or inner.kind != "vector" or not _linear(m, inner) or finite_size(inner) != 1:
            return None
        own = (op.fn, op.order, op.params) if inner is not f.node and isinstance(op, Map) else ("linear", 0, ())
        parts.setdefault((inner, f.copy), []).append(own)
        sources(m, inner, found)
    leaves = sorted(found, key=lambda x: x.serial)
    if len(parts) > 2 or not all(_symmetric(x) for x in leaves):
        return None
    functions = tuple(Product(tuple(sorted(x, key=repr))) for x in parts.values())
    m.forms.append((f"Fourier series over {sum(map(finite_size, leaves))} initial values", None))
    return InitialArray((), tuple(parts), functions, tuple(leaves), len(m.forms) - 1)


def _symmetric(node: Node) -> bool:
    if not isinstance(node.op, Init) or not isinstance(node.op.law, Normal | Uniform):
        return False
    return mean_and_std(node.op.law)[0] == 0


def _linear(m: Moments, node: Node) -> bool:
    """Whether a value is a linear combination of initial values, with coefficients that are numbers."""
    op = node.op
    if isinstance(op, Init):
        return True
    moving = [x for x in node.operands if x in m.structure.random]
    if isinstance(op, Sum | Expand) or is_linear_move(op):
        return bool(moving) and all(_linear(m, x) for x in moving) and len(moving) == len(node.operands)
    if isinstance(op, Mul) or (isinstance(op, Contract) and m.structure.width(node) is None):
        return len(moving) == 1 and _linear(m, moving[0])
    return False


def evaluate_initial(run: Run, array: InitialArray) -> Tensor:
    """Of shape (N1, N2), of length one for inputs that it does not depend on."""
    laws = _laws(run, array)
    rows = [_coefficients(run, array, node, copy) for node, copy in array.variables]
    functions = [pointwise(f) for f in array.functions]
    points = [kinks(f) for f in array.functions]
    copies = [copy for _, copy in array.variables]
    if len(rows) == 1:
        at = torch.tensor(sorted({0.0, *points[0]}), dtype=torch.float64).expand(len(rows[0]), -1)
        value, error = fourier.one_sum(lambda x, _: functions[0](x), at, rows[0], laws)
        shape = (-1, 1) if copies[0] == 0 else (1, -1)
    else:
        value, error, shape = _pairs(run, array, rows, copies, functions, points, laws)
    run.moments.found_error(array.form, error)
    return value.reshape(shape).to(run.dtype)


def _pairs(
    run: Run,
    array: InitialArray,
    rows: Sequence[Tensor],
    copies: Sequence[int],
    functions: Sequence[fourier.Fn],
    points: Sequence[Sequence[float]],
    laws: fourier.Laws,
) -> tuple[Tensor, float, tuple[int, int]]:
    (a, b), (f, g) = rows, functions
    kinked = (points[0], points[1])
    if copies[0] == copies[1]:
        count = max(len(a), len(b))
        value, error = fourier.two_sums(f, g, kinked, a.expand(count, -1), b.expand(count, -1), laws)
        return value, error, ((count, 1) if copies[0] == 0 else (1, count))
    if copies[0] == 1:
        (b, a), (g, f), kinked = rows, functions, (points[1], points[0])
    same = run.inputs[0] is run.inputs[1] and array.variables[0][0] is array.variables[1][0]
    if same and array.functions[0] == array.functions[1]:  # one triangle
        i, j = torch.triu_indices(len(a), len(a)).unbind()
        found, error = fourier.two_sums(f, g, kinked, a[i], b[j], laws)
        place = torch.zeros(len(a), len(a), dtype=torch.long)
        place[i, j] = place[j, i] = torch.arange(len(i))
        return found[place], error, (len(a), len(b))
    first, second = a.repeat_interleave(len(b), 0), b.repeat(len(a), 1)
    value, error = fourier.two_sums(f, g, kinked, first, second, laws)
    return value, error, (len(a), len(b))


def _laws(run: Run, array: InitialArray) -> fourier.Laws:
    half, sigma = [], []
    for node in array.initial:
        assert isinstance(node.op, Init)
        _, std = mean_and_std(node.op.law)
        given = run.variances.get(node.op.name)
        spread = torch.tensor(std, dtype=torch.float64) if given is None else torch.as_tensor(given).double().sqrt()
        each, none = spread.expand(finite_size(node)), torch.zeros(finite_size(node), dtype=torch.float64)
        uniform = isinstance(node.op.law, Uniform)
        half.append(each * 3**0.5 if uniform else none)
        sigma.append(none if uniform else each)
    return fourier.Laws(torch.cat(half), torch.cat(sigma))


def _coefficients(run: Run, array: InitialArray, node: Node, copy: int) -> Tensor:
    """Of all initial values in a linear combination of them, (N or 1, d): its values at unit vectors."""
    total = sum(map(finite_size, array.initial))
    unit = torch.eye(total, dtype=run.dtype)
    known: dict[Node, Tensor] = {}
    start = 0
    for leaf in array.initial:
        end = start + finite_size(leaf)
        known[leaf] = _placed(unit[None, start:end], leaf, False, total)
        start = end
    value = _samples_last(_evaluated(run, node, copy, total, known), node, False, total)
    return value.reshape(value.shape[0], total).double()


def _evaluated(run: Run, node: Node, copy: int, total: int, known: dict[Node, Tensor]) -> Tensor:
    from tpcompile.evaluate.gaussian.run import batched

    if node not in known:
        if run.moments.structure.deterministic(node):
            return run.scalar(node, copy)
        operands = [_evaluated(run, x, copy, total, known) for x in node.operands]
        known[node] = batched(node, operands, run.dtype, total)
    return known[node]
