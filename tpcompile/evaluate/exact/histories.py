"""Products with a weight's updates in time that does not grow with their number.

The updates of a weight are outer products whose factors stand in two histories U and V, one row an update, and a
product with all of them is ``sum_k U_k <V_k, x>``. Over generators ``sum_k V_k U_k^T`` is a matrix of fixed size to
which every step adds its rows: where a program uses its histories in such pairs only, they are never kept.
"""

from __future__ import annotations

import string
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tpcompile.analysis.semantics import contract
from tpcompile.evaluate.exact.generators import padded
from tpcompile.evaluate.plan import Plan
from tpcompile.ir import Concat, Contract, Node, split_spec


@dataclass(frozen=True)
class PairedProduct:
    """``sum_k U_k <V_k, x>``: chains of U and V by their first nodes, number of blocks, and the Einstein sum of x with
    the matrix of both."""

    left: Node
    right: Node
    blocks: int
    inner: Node  # the inner products of V with x
    x: Node
    width: int  # axis of x
    spec: str


@dataclass(frozen=True)
class Pairing:
    """What is evaluated otherwise than instruction by instruction.

    ``products`` are the results of paired products, ``inner`` the inner products in them, each with its x: that is
    the value kept for it. ``histories`` gives the first node of the history that a concatenation belongs to.
    """

    products: Mapping[Node, PairedProduct]
    inner: Mapping[Node, Node]
    histories: Mapping[Node, Node]


def find_pairs(plan: Plan) -> Pairing:
    """Histories of a program that are used in paired products only."""
    users: dict[Node, list[Node]] = defaultdict(list)
    for node in plan.program.nodes:
        for x in set(node.operands):
            users[x].append(node)
    for output in plan.program.outputs.values():
        for _, node in output.terms:
            users[node].append(node)  # read by the caller: by nothing that is left out
    chains, number = _chains(plan)
    matches = {node: m for node in plan.program.nodes if (m := _match(node, number)) is not None}
    apart = _misaligned(list(matches.values()), chains)
    products = {node: m for node, m in matches.items() if (m.left, m.right) not in apart}
    while True:  # what is read otherwise is kept, and with it what it is paired with
        read = {m.inner: all(y in products for y in users[m.inner]) for m in products.values()}
        kept = {
            first
            for node, (first, _) in number.items()
            if not all(read.get(y) or y in products or number.get(y, (None, 0))[0] is first for y in users[node])
        }
        good = {n: m for n, m in products.items() if read[m.inner] and not {m.left, m.right} & kept}
        if len(good) == len(products):
            break
        products = good
    used = {first for m in products.values() for first in (m.left, m.right)}
    inner = {m.inner: m.x for m in products.values()}
    return Pairing(products, inner, {x: first for x, (first, _) in number.items() if first in used})


def _chains(plan: Plan) -> tuple[dict[Node, tuple[Node, ...]], dict[Node, tuple[Node, int]]]:
    """Blocks of every history by its first node; of every concatenation its history and the number of its blocks."""
    blocks: dict[Node, list[Node]] = {}
    number: dict[Node, tuple[Node, int]] = {}
    for node in plan.program.nodes:
        if node not in plan.histories or node.kind != "vector" or len(node.dims) != 2:
            continue
        assert isinstance(node.op, Concat)
        first, _ = plan.histories[node]
        before, new = node.operands
        if first is node:
            blocks[first] = [before]
        blocks[first].append(new)
        number[node] = (first, len(blocks[first]))
    return {first: tuple(found) for first, found in blocks.items()}, number


def _match(node: Node, number: Mapping[Node, tuple[Node, int]]) -> PairedProduct | None:
    """A contraction of a history with inner products with another one."""
    if not isinstance(node.op, Contract) or node.kind != "vector" or len(node.operands) != 2:
        return None
    words, out = split_spec(node.op.spec)
    for u, s in ((0, 1), (1, 0)):
        left, inner = node.operands[u], node.operands[s]
        if left not in number or not isinstance(inner.op, Contract) or inner.kind != "scalar":
            continue
        k, column = words[u]
        if words[s].count(k) != 1 or k in out or column in words[s] or len(inner.operands) != 2:
            continue
        inner_words, inner_out = split_spec(inner.op.spec)
        rename = dict(zip(inner_out, words[s], strict=True))
        for v, y in ((0, 1), (1, 0)):
            right, x = inner.operands[v], inner.operands[y]
            if right not in number or x.kind != "vector":
                continue
            row, width = inner_words[v]
            if rename.get(row) != k or width in inner_out or row in inner_words[y] or inner_words[y].count(width) != 1:
                continue
            if number[left][1] != number[right][1] or any(c != width and c not in rename for c in inner_words[y]):
                continue
            fresh = next(c for c in string.ascii_letters if c not in words[s] + column + out)
            letters = "".join(fresh if c == width else rename[c] for c in inner_words[y])
            spec = f"{letters},{fresh}{column}->{out}"
            first, count = number[left]
            return PairedProduct(first, number[right][0], count, inner, x, inner_words[y].index(width), spec)
    return None


def _misaligned(products: Sequence[PairedProduct], chains: Mapping[Node, tuple[Node, ...]]) -> set[tuple[Node, Node]]:
    """Pairs of histories whose blocks do not match, or which are read at a shorter length after a longer one."""
    reached: dict[tuple[Node, Node], int] = {}
    apart: set[tuple[Node, Node]] = set()
    for p in products:
        if p.blocks < reached.get((p.left, p.right), 0):
            apart.add((p.left, p.right))
        reached[p.left, p.right] = p.blocks
    for pair, count in reached.items():
        left, right = ([b.dims[0] for b in chains[first][:count]] for first in pair)
        if left != right:
            apart.add(pair)
    return apart


@dataclass
class _Sum:
    """``sum_k V_k U_k^T`` over the blocks so far."""

    matrix: Tensor
    blocks: int = 0


class Accumulated:
    """The matrices of all pairs during one evaluation, and the blocks that they have not taken in yet."""

    def __init__(self, pairing: Pairing) -> None:
        self.pairing = pairing
        pairs = {(p.left, p.right) for p in pairing.products.values()}
        self.sums = {pair: _Sum(torch.zeros((0, 0), dtype=torch.float64)) for pair in pairs}
        chains = set(pairing.histories.values())
        self.blocks: dict[Node, list[Tensor]] = {first: [] for first in chains}
        self.dropped = dict.fromkeys(chains, 0)  # blocks that every pair has taken in
        self.readers = {first: [self.sums[pair] for pair in pairs if first in pair] for first in chains}

    def extend(self, node: Node, values: Mapping[Node, Tensor]) -> None:
        """Note the blocks that a concatenation adds to its history."""
        first = self.pairing.histories[node]
        if first is node:
            self.blocks[first].append(values[node.operands[0]])
        self.blocks[first].append(values[node.operands[1]])

    def product(self, node: Node, values: Mapping[Node, Tensor]) -> Tensor:
        """The value of a paired product."""
        p = self.pairing.products[node]
        matrix = self._matrix(p)
        x = values[p.inner]
        count = min(x.shape[p.width], matrix.shape[0])
        return contract(p.spec, [x.narrow(p.width, 0, count), matrix[:count]])

    def _matrix(self, p: PairedProduct) -> Tensor:
        total = self.sums[p.left, p.right]
        while total.blocks < p.blocks:
            u, v = (self.blocks[c][total.blocks - self.dropped[c]] for c in (p.left, p.right))
            rows, columns = (max(a, b) for a, b in zip(total.matrix.shape, (v.shape[1], u.shape[1]), strict=True))
            total.matrix = padded(padded(total.matrix, rows, 0), columns, 1)
            total.matrix[: v.shape[1], : u.shape[1]].addmm_(v.T, u)
            total.blocks += 1
        for c in (p.left, p.right):
            done = min(reader.blocks for reader in self.readers[c]) - self.dropped[c]
            del self.blocks[c][:done]
            self.dropped[c] += done
        return total.matrix
