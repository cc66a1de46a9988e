"""Expectations over many correlated Gaussian variables, by quasi-Monte Carlo over all inputs at once.

The Gaussian variables that a group of factors is made of are drawn jointly for all inputs from their own covariance,
which is known from the expectations below; the factors are then evaluated as the program says. One draw serves all
pairs: the expectation is a matrix product over the draws.
"""

from __future__ import annotations

import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from tpcompile import nonlin
from tpcompile.errors import EvaluationError
from tpcompile.evaluate.domains import finite_size
from tpcompile.evaluate.frames import Frame, Layout, Span
from tpcompile.evaluate.gaussian.terms import Array, Label
from tpcompile.evaluate.points import Source
from tpcompile.ir import Gaussian, Init, Map, MatMul, MergeWidth, Node, SplitWidth, Width
from tpcompile.laws import Normal, mean_and_std

if TYPE_CHECKING:
    from tpcompile.evaluate.gaussian.moments import Factor, Moments
    from tpcompile.evaluate.gaussian.run import Run

_RANK = 1e-12  # eigenvalues of a covariance below this part of the largest are rounding


@dataclass(frozen=True, eq=False)
class Leaf:
    """A Gaussian value that is drawn, with the labels of its finite axes on either copy, and its mean."""

    node: Node
    rows: tuple[Label, ...]
    columns: tuple[Label, ...]
    mean: Array | None

    @property
    def size(self) -> int:
        """Number of Gaussian variables for each input."""
        return finite_size(self.node)


@dataclass(frozen=True, eq=False)
class SampledArray(Array):
    """``E`` of a product of any values that are functions of jointly Gaussian variables and of initial vectors."""

    factors: tuple[Factor, ...]
    out: tuple[Label, ...]
    leaves: tuple[Leaf, ...]
    initial: tuple[Node, ...]  # vectors whose law is not normal
    covariances: tuple[tuple[Array | None, ...], ...]
    scalar: bool


def plan_sampled(m: Moments, group: Sequence[Factor], out: Sequence[Label]) -> SampledArray:
    """Find what has to be drawn for a group of factors, and plan its covariance."""
    if any(f.blocks for f in group):
        raise m.unfactorised("nonlinear functions of blocks of a split width", group[0].node)
    found: dict[Node, bool] = {}
    for f in group:
        sources(m, f.node, found)
    gaussian = sorted((x for x, g in found.items() if g), key=lambda x: x.serial)
    initial = sorted((x for x, g in found.items() if not g), key=lambda x: x.serial)
    scalar = group[0].node.kind == "scalar"
    if any((x.kind == "scalar") != scalar for x in (*gaussian, *initial, *(f.node for f in group))):
        raise m.unfactorised("a function of random scalars and of coordinates", group[0].node)
    leaves = []
    for node in gaussian:
        a, b = m.factor(node, 0), m.factor(node, 1)
        leaves.append(Leaf(node, a.named(), b.named(), m.array([a], a.named())))
    covariances = tuple(
        tuple(m.array([_named(m, u, 0), _named(m, v, 1)], (*u.rows, *v.columns), centre=True) for v in leaves)
        for u in leaves
    )
    variables = sum(x.size for x in leaves)
    m.forms.append((f"quasi-Monte Carlo over {variables} Gaussian variables an input", None))
    m.sampled = True
    sizes = tuple(m.lengths[x] for x in out)
    return SampledArray(sizes, tuple(group), tuple(out), tuple(leaves), tuple(initial), covariances, scalar)


def _named(m: Moments, leaf: Leaf, copy: int) -> Factor:
    own = iter(leaf.rows if copy == 0 else leaf.columns)
    f = m.factor(leaf.node, copy)
    return type(f)(f.node, copy, tuple(None if x is None else next(own) for x in f.labels))


def sources(m: Moments, node: Node, found: dict[Node, bool]) -> None:
    """The values to draw below a node: the largest Gaussian ones (True), and initial values of other laws (False)."""
    if node in found or m.structure.deterministic(node):
        return
    if m.structure.gaussian(node):
        found[node] = True
        return
    if isinstance(node.op, Init):
        found[node] = isinstance(node.op.law, Normal)
        return
    if isinstance(node.op, MatMul | Gaussian | MergeWidth | SplitWidth):
        raise m.unfactorised(f"an expectation through '{node.op.mnemonic}' of values that are not Gaussian", node)
    for x in node.operands:
        sources(m, x, found)


def evaluate_sampled(run: Run, array: SampledArray) -> Tensor:
    """The estimate on a block whose two sets of inputs are one and the same."""
    if run.inputs[0] is not run.inputs[1]:
        raise EvaluationError("sampled expectations need one set of inputs for both copies")
    draws = _draw(run, array)
    letters = iter(string.ascii_lowercase)
    names: dict[Label, str] = {x: next(letters) for x in array.out}
    words, tensors = [], []
    known: dict[Node, Tensor] = {}
    for copy, pair_axis in enumerate("YZ"):  # what is of one copy is one factor: the sum over draws a matrix product
        product: Tensor | None = None
        word = ""
        for f in (f for f in array.factors if f.copy == copy):
            value = _value(run, array, f.node, draws, known)
            value = _samples_last(value, f.node, array.scalar, run.samples)
            value = value.reshape(value.shape[0], *(run.moments.lengths[x] for x in f.named()), run.samples)
            own = "".join(names[x] for x in f.named()) + "M"
            if value.shape[0] > 1:
                own = pair_axis + own
            else:
                value = value[0]
            if product is None:
                product, word = value, own
                continue
            both = "".join(dict.fromkeys(word[:-1] + own))
            product, word = torch.einsum(f"{word},{own}->{both}", product, value), both
        if product is not None:
            words.append(word)
            tensors.append(product)
    axes = [x for x in "YZ" if any(x in w for w in words)]
    labels = [names[x] for x in array.out if any(names[x] in w for w in words)]
    out = torch.einsum(",".join(words) + "->" + "".join([*axes, *labels]), *tensors) / run.samples
    pair = [len(run.inputs[0]) if x in axes else 1 for x in "YZ"]
    shape = [run.moments.lengths[x] if names[x] in labels else 1 for x in array.out]
    return out.reshape(*pair, *shape)


def _draw(run: Run, array: SampledArray) -> dict[Node, Tensor]:
    """Joint draws of everything, by node: ``(N or 1, *dims)`` with the draws on the width axis."""
    samples, count = run.samples, len(run.inputs[0])
    root = _root(run, array, count)
    rows = root.shape[1] + sum(finite_size(x) for x in array.initial)
    source = Source(rows, samples, run.seed)
    frame = Frame(Layout(samples), Span(Layout(samples), torch.float64, source))
    if root.shape[1]:
        frame.segment(rows).append(frame.normals(root.shape[1]))
        values = root @ frame.span.drawn[0][0].value
    else:
        values = torch.zeros((len(root), samples), dtype=torch.float64)
    draws: dict[Node, Tensor] = {}
    start = 0
    for leaf in array.leaves:
        end = start + count * leaf.size
        value = values[start:end].reshape(count, leaf.size, samples)
        start = end
        if leaf.mean is not None:
            mean = run.value(leaf.mean)
            value = value + mean.expand(count, 1, *mean.shape[2:]).reshape(count, -1, 1)
        draws[leaf.node] = _placed(value.to(run.dtype), leaf.node, array.scalar, samples)
    for node in array.initial:
        assert isinstance(node.op, Init)
        value = _with_variance(frame.draw(node.op.law, finite_size(node)), run, node.op)[None]
        draws[node] = _placed(value.to(run.dtype), node, array.scalar, samples)
    return draws


def _with_variance(value: Tensor, run: Run, op: Init) -> Tensor:
    """Draws of an initial value, spread about their mean to the variance that replaces that of its law."""
    if op.name not in run.variances:
        return value
    mean, std = mean_and_std(op.law)
    wanted = torch.as_tensor(run.variances[op.name], dtype=value.dtype)
    return mean + (value - mean) * (wanted.sqrt() / std)


def _root(run: Run, array: SampledArray, count: int) -> Tensor:
    """A matrix R with ``R R^T`` the joint covariance of all leaves on all inputs."""
    blocks = []
    for u, row in zip(array.leaves, array.covariances, strict=True):
        line = []
        for v, cov in zip(array.leaves, row, strict=True):
            if cov is None:
                line.append(torch.zeros((count * u.size, count * v.size), dtype=torch.float64))
                continue
            value = run.value(cov).double()
            sizes = [run.moments.lengths[x] for x in (*u.rows, *v.columns)]
            value = value.expand(count, count, *sizes).reshape(count, count, u.size, v.size)
            line.append(value.permute(0, 2, 1, 3).reshape(count * u.size, count * v.size))
        blocks.append(torch.cat(line, 1))
    if not blocks:
        return torch.zeros((0, 0), dtype=torch.float64)
    covariance = torch.cat(blocks)
    covariance = (covariance + covariance.T) / 2
    values, vectors = torch.linalg.eigh(covariance.detach())
    kept = values > _RANK * values.max().clamp_min(1e-300)
    roots, basis = values[kept].sqrt().flip(0), vectors[:, kept].flip(1)  # Sobol's early dimensions are its best
    root = basis * roots
    if covariance.requires_grad:  # dR = (1 - P/2) dC R (R^T R)^-1, which equal eigenvalues do not disturb
        change = (covariance - covariance.detach()) @ (basis / roots)
        root = root + change - basis @ (basis.T @ change) / 2
    return root


def _placed(value: Tensor, node: Node, scalar: bool, samples: int) -> Tensor:
    """``(N, entries, draws)`` as the node's axes with draws on the width axis; of a scalar, draws with the batch."""
    finite = [d for d in node.dims if isinstance(d, int)]
    if scalar:
        return value.permute(2, 0, 1).reshape(samples * value.shape[0], *finite)
    axis = next(i for i, d in enumerate(node.dims) if isinstance(d, Width))
    return torch.movedim(value.reshape(value.shape[0], *finite, samples), -1, axis + 1)


def _samples_last(value: Tensor, node: Node, scalar: bool, samples: int) -> Tensor:
    if scalar:
        return torch.movedim(value.reshape(samples, -1, *value.shape[1:]), 0, -1)
    axis = next(i for i, d in enumerate(node.dims) if isinstance(d, Width))
    return torch.movedim(value, axis + 1, -1)


def _value(run: Run, array: SampledArray, node: Node, draws: dict[Node, Tensor], known: dict[Node, Tensor]) -> Tensor:
    """A node on all inputs and draws."""
    from tpcompile.evaluate.gaussian.run import batched

    if node in draws:
        return draws[node]
    if node not in known:
        if run.moments.structure.deterministic(node):
            value = run.scalar(node, 0)
            if array.scalar and value.shape[0] > 1:
                value = value.repeat(run.samples, *([1] * (value.dim() - 1)))
            known[node] = value
        else:
            operands = [_value(run, array, x, draws, known) for x in node.operands]
            _check_derivative(run, node, operands)
            known[node] = batched(node, operands, run.dtype, run.samples)
    return known[node]


def _check_derivative(run: Run, node: Node, operands: Sequence[Tensor]) -> None:
    """EvaluationError where the derivative of draws would drop the delta of a function that jumps."""
    op = node.op
    if not isinstance(op, Map) or not any(x.requires_grad for x in operands):
        return
    if not nonlin.has_derivative(op.fn, op.order + 1, **dict(op.params)):
        what = f"a derivative of '{op.fn}'" if op.order else f"'{op.fn}'"
        raise EvaluationError(
            f"a sampled expectation has no derivative through a jump of {what}",
            where=run.moments.program.origins.get(node),
            advice="take differences of kernels with the same seed",
        )
