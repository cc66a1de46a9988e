"""Random scalars: the Gaussian sums of theory section 5 and random finite parameters, as an ensemble of draws.

Everything that does not depend on them is evaluated once. The draws of an ensemble of 2 r members for r
independent Gaussian numbers are plus and minus the rows of a random rotation. Where only their mean and covariance
count (MSE loss in the kernel regime, whose outputs are affine in them) the length of a draw is ``sqrt(r)``, and both
are exact; else it has its own law, that of a Gaussian vector, in equally probable strata.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from tpcompile.analysis.gaussians import centred, settled
from tpcompile.analysis.parity import Parity
from tpcompile.errors import EvaluationError
from tpcompile.evaluate.domains import Domain, finite_size
from tpcompile.evaluate.frames import quantile
from tpcompile.evaluate.plan import Evaluation, Progress, limits
from tpcompile.ir import Gaussian, Init, MatMul, Node
from tpcompile.laws import Normal, mean_and_std

DEFAULT_MOST = 256  # members, unless the user asks for more
_LEAST_OF_LAW = 128  # where more of the random scalars counts than their covariance


@dataclass
class _Joint:
    """Gaussian scalars seen so far and their summands.

    Sums over axes that are blocks of one another are all sums over the unit of their group: there the summands of
    the blocks of one unit coordinate are added up, so that whatever the blocks have in common counts.
    """

    run: Evaluation
    nodes: list[Node]
    summands: list[Tensor]  # a row for each entry
    domains: list[Domain]

    def append(self, g: Node) -> None:
        """Add a scalar whose operands are known."""
        self.nodes.append(g)
        self.summands.append(self.run.summand(g))
        self.domains.append(self.run.plan.domains.of[next(x for x in g.operands if x.kind == "vector")])

    def covariance(self, parity: Parity) -> Tensor:
        """Joint covariance ``E[psi psi']`` of all entries."""
        rows = []
        for a, x, d in zip(self.nodes, self.summands, self.domains, strict=True):
            row = []
            for b, y, e in zip(self.nodes, self.summands, self.domains, strict=True):
                check_settled(a, b, d, e, parity)
                apart = x.new_zeros((x.shape[0], y.shape[0]))
                row.append(self.run.covariance(x, y, d) if d.group == e.group else apart)
            rows.append(torch.cat(row, 1))
        return torch.cat(rows)


def members(
    run: Evaluation,
    parity: Parity,
    ensemble: int | None,
    zero: frozenset[Node],
    moments: bool,
    progress: Progress,
    most: float = DEFAULT_MOST,
) -> Iterator[dict[str, Tensor]]:
    """The limits of all outputs, for every member of the ensemble (one if there is nothing random).

    ``moments`` says that no more of the draws counts than their mean and covariance; ``most`` bounds their number
    where ``ensemble`` does not say it.
    """
    plan = run.plan
    order = list(enumerate(plan.program.nodes))
    needed_later = {x for _, node in order if node in plan.random for x in node.operands if x not in plan.random}
    for g in plan.scalars:
        if isinstance(g.op, Gaussian) and g not in zero:
            check_centred(g)
    if not plan.scalars:
        run.execute(order, lambda node, i: False, progress)
        yield limits(plan, run.values, run.dtype)
        return
    fixed = [(i, node) for i, node in order if node not in plan.random]
    run.execute(fixed, lambda node, i: node in needed_later, progress)
    sums = [g for g in plan.scalars if isinstance(g.op, Gaussian)]
    early = [g for g in sums if not any(x in plan.random for x in g.operands)]
    joint = _Joint(run, [], [], [])
    root = torch.zeros((sum(map(finite_size, early)), 0), dtype=run.dtype)
    if not zero.issuperset(sums):  # else their covariances do not count
        for g in early:
            joint.append(g)
        root = _root(joint, parity, [g not in zero for g in early]) if early else root
    normal = [g for g in plan.scalars if isinstance(g.op, Init) and isinstance(g.op.law, Normal) and g not in zero]
    root, centre = _with_parameters(root, normal)
    early = early + normal
    generator = torch.Generator().manual_seed(run.seed * 31 + 17)
    rank = root.shape[1]
    others = [g for g in plan.scalars if g not in early and g not in zero]
    draws = _design(rank, ensemble, moments and not others, generator, run.dtype, most)
    marks = run.mark()
    base = dict(run.values)
    flexible = [(i, node) for i, node in order if node in plan.random]
    for index, xi in enumerate(draws):
        run.values = dict(base)
        run.rewind(marks)
        _place(run, early, centre + root @ xi)
        sign = 1.0 if index % 2 == 0 else -1.0
        if index % 2 == 0:
            state = generator.get_state()
        else:
            generator.set_state(state)
        member = _Joint(run, list(joint.nodes), list(joint.summands), list(joint.domains))
        for i, node in flexible:
            if node in run.values:
                continue
            if node in plan.scalars:
                run.values[node] = _scalar(run, node, member, parity, zero, generator, sign)
            else:
                run.execute([(i, node)], lambda x, i: x in base or x in plan.scalars, progress)
        yield limits(plan, run.values, run.dtype)


def check_centred(g: Node) -> None:
    """EvaluationError if the summand of a Gaussian sum has mean zero for a reason that fluctuates as much."""
    if not centred(g):
        raise EvaluationError(
            "a sum over the width vanishes only because an inner product in an earlier layer does: the "
            "fluctuation of that inner product is as large as the sum, and has no law here",
            where=f"{g.op.mnemonic} {g.dims}",
            advice="use different matrices for the two factors of the sum, or a scale of 1/n in place of 1/sqrt(n)",
        )


def check_settled(a: Node, b: Node, first: Domain, second: Domain, parity: Parity) -> None:
    """EvaluationError unless the covariance of Gaussian sums over two axes is ``E[psi psi']``, zero for two groups."""
    together = first.group == second.group
    if together and (first.mixed or second.mixed):
        raise EvaluationError(
            "a Gaussian sum over a width axis whose blocks are taken in two different orders",
            where=f"{a.op.mnemonic} {a.dims}",
            advice="split and merge the axis in one order (all neighbours, or all interleaved)",
        )
    if not settled(a, b, together, parity):
        raise EvaluationError(
            "two Gaussian sums meet the same matrix from both sides: their covariance is not settled",
            where=f"{a.op.mnemonic} {a.dims} and {b.op.mnemonic} {b.dims}",
            advice="condition on a zero output with output_init='zero' if they enter the output only",
        )


def zeroed(run_plan_outputs: list[Node]) -> frozenset[Node]:
    """The random scalars that the given outputs are made of, not looking through vectors."""
    found: set[Node] = set()
    stack = list(run_plan_outputs)
    while stack:
        node = stack.pop()
        if isinstance(node.op, Gaussian) or (isinstance(node.op, Init) and node.kind == "scalar"):
            found.add(node)
        elif node.kind == "scalar" and not isinstance(node.op, MatMul):
            stack.extend(node.operands)
    return frozenset(found)


def _with_parameters(root: Tensor, parameters: list[Node]) -> tuple[Tensor, Tensor]:
    """Random finite parameters of normal law beside the Gaussian sums: the joint root and mean."""
    centre = [root.new_zeros(root.shape[0])]
    for node in parameters:
        assert isinstance(node.op, Init)
        mean, std = mean_and_std(node.op.law)
        size = finite_size(node)
        root = torch.block_diag(root, std * torch.eye(size, dtype=root.dtype))
        centre.append(torch.full((size,), mean, dtype=root.dtype))
    return root, torch.cat(centre)


def _root(joint: _Joint, parity: Parity, live: list[bool]) -> Tensor:
    """A matrix R with R R^T the covariance, rows of conditioned-to-zero scalars taken out, columns the rank."""
    covariance = joint.covariance(parity)
    mask = torch.cat([torch.full((s.shape[0],), flag) for s, flag in zip(joint.summands, live, strict=True)])
    free, held = torch.nonzero(mask)[:, 0], torch.nonzero(~mask)[:, 0]
    c = covariance[free][:, free]
    if len(held) and len(free):
        cross = covariance[free][:, held]
        c = c - cross @ _inverse(covariance[held][:, held]) @ cross.T
    root = covariance.new_zeros((len(mask), 0))
    if len(free):
        values, vectors = torch.linalg.eigh(c)
        keep = values > (1e-12 if c.dtype == torch.float64 else 1e-6) * values.max().clamp_min(1e-30)
        root = covariance.new_zeros((len(mask), int(keep.sum())))
        root[free] = vectors[:, keep] * values[keep].sqrt()
    return root


def _inverse(c: Tensor) -> Tensor:
    """Pseudo-inverse of a covariance that may be singular."""
    return torch.linalg.pinv(c, hermitian=True, rtol=1e-12 if c.dtype == torch.float64 else 1e-5)


def _design(
    rank: int, ensemble: int | None, moments: bool, generator: torch.Generator, dtype: torch.dtype, most: float
) -> list[Tensor]:
    """Members as ``rank`` standard normals each: antithetic pairs.

    For ``moments`` they are exact in mean, and in covariance where 2 r fit; else each has the law of a Gaussian vector.
    """
    from scipy import stats

    if rank == 0:
        count = 1 if moments else (ensemble or DEFAULT_MOST)
        return [torch.zeros(0, dtype=dtype) for _ in range(count)]
    default = min(2 * rank if moments else max(2 * rank, _LEAST_OF_LAW), most)
    pairs = max(1, int(ensemble if ensemble is not None else default) // 2)
    lengths = torch.full((pairs,), rank**0.5, dtype=torch.float64)
    if not moments:
        strata = torch.randperm(pairs, generator=generator) + torch.rand(
            pairs, generator=generator, dtype=torch.float64
        )
        lengths = torch.from_numpy(stats.chi.ppf((strata / pairs).clamp(1e-15, 1 - 1e-15).numpy(), rank))
    out: list[Tensor] = []
    while len(out) < 2 * pairs:
        q, r = torch.linalg.qr(torch.randn((rank, rank), generator=generator, dtype=torch.float64))
        q = q * r.diagonal().sign()
        for row in q.T[: pairs - len(out) // 2]:
            xi = (row * lengths[len(out) // 2]).to(dtype)
            out += [xi, -xi]
    return out


def _place(run: Evaluation, nodes: list[Node], values: Tensor) -> None:
    offset = 0
    for g in nodes:
        shape = tuple(d for d in g.dims if isinstance(d, int))
        size = torch.Size(shape).numel()
        run.values[g] = values[offset : offset + size].reshape(shape)
        offset += size


def _scalar(
    run: Evaluation,
    node: Node,
    joint: _Joint,
    parity: Parity,
    zero: frozenset[Node],
    generator: torch.Generator,
    sign: float,
) -> Tensor:
    """A random scalar whose law depends on the member: a finite parameter, or a Gaussian given the earlier ones."""
    shape = tuple(d for d in node.dims if isinstance(d, int))
    if node in zero:
        return torch.zeros(shape, dtype=run.dtype)
    if isinstance(node.op, Init):
        u = torch.rand(shape, generator=generator, dtype=torch.float64).clamp(1e-15, 1 - 1e-15)
        return quantile(node.op.law, u if sign > 0 else 1 - u).to(run.dtype)
    known = sum(s.shape[0] for s in joint.summands)
    old = [run.values[g].reshape(-1) for g in joint.nodes]
    joint.append(node)
    c = joint.covariance(parity)
    size = c.shape[0] - known
    mean = c.new_zeros(size)
    conditional = c[known:, known:]
    if known:
        gain = c[known:, :known] @ _inverse(c[:known, :known])
        mean = gain @ torch.cat(old)
        conditional = conditional - gain @ c[:known, known:]
    values, vectors = torch.linalg.eigh(conditional)
    noise = torch.randn(size, generator=generator, dtype=torch.float64).to(run.dtype)
    return (mean + sign * (vectors * values.clamp_min(0).sqrt()) @ noise).reshape(shape)
