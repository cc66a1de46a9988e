"""When the covariance formula of theory section 5 holds for two Gaussian scalars.

``E[psi psi']`` is right unless the summands meet the same initial matrix from both sides: then coordinates of W x
and of W^T y are correlated through single entries of W, which a sum over the width does see. And unless a summand
has mean zero only because an inner product one layer below has: (W a) (W b) with <a, b> / n -> 0 has the conditional
mean sigma^2 <a, b> / n, of order n^(-1/2), and its sum over the width is as large as the Gaussian scalar itself.
"""

from __future__ import annotations

from tpcompile.analysis import blocks
from tpcompile.analysis.parity import Parity
from tpcompile.ir import (
    Expand,
    Gaussian,
    Init,
    MatMul,
    MergeWidth,
    Mul,
    Node,
    Permute,
    Slice,
    SplitWidth,
    Unslice,
    View,
)
from tpcompile.laws import is_symmetric


def centred(g: Node) -> bool:
    """True if the summand of a Gaussian scalar has mean zero whatever the Gram matrices of its Gaussians are."""
    assert isinstance(g.op, Gaussian)
    if Parity().centred(*(x for x in g.operands if x.kind == "vector")):
        return True
    return blocks.vanishes(g.op.spec, g.operands, local=True)


def settled(a: Node, b: Node, same_axis: bool, parity: Parity) -> bool:
    """True if the covariance of two Gaussian scalars is ``E[psi psi']`` (zero if they sum over different axes)."""
    reach_a, reach_b = _reach(a.operands), _reach(b.operands)
    sides = {(x.operands[0], x.op.transpose) for x in reach_a | reach_b if isinstance(x.op, MatMul)}
    if not any((w, True) in sides and (w, False) in sides for w, _ in sides):
        return True  # coordinates are functions of Gaussians of their own axis, and of Gram matrices
    if not same_axis:
        shared = {x for x in reach_a & reach_b if x.kind == "matrix"}
        return not shared or parity.orthogonal(a.operands, b.operands)
    free_a, free_b = _free_factors(a), _free_factors(b)
    return any(v in free_b or v not in reach_b for v in free_a) or any(v in free_a or v not in reach_a for v in free_b)


def _free_factors(g: Node) -> set[Node]:
    """Initial vectors of symmetric law that the summand is linear in and that nothing else in it depends on.

    Given all the rest such a sum is Gaussian by its own randomness, whatever matrices the rest has met.
    """
    factors: list[Node] = []
    stack = [x for x in g.operands if x.kind == "vector"]
    while stack:
        x = stack.pop()
        if isinstance(x.op, Mul):
            stack.extend(y for y in x.operands if y.kind == "vector")
        elif isinstance(x.op, View | Permute | Expand | Slice | Unslice | SplitWidth | MergeWidth):
            stack.extend(x.operands)
        else:
            factors.append(x)
    out: set[Node] = set()
    for i, x in enumerate(factors):
        if isinstance(x.op, Init) and is_symmetric(x.op.law) and x not in _reach(factors[:i] + factors[i + 1 :]):
            out.add(x)
    return out


def _reach(roots: tuple[Node, ...] | list[Node]) -> set[Node]:
    """Everything that vectors are made of, not through scalars (they are constants here)."""
    seen: set[Node] = set()
    stack = [x for x in roots if x.kind != "scalar"]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen.add(node)
            stack.extend(x for x in node.operands if x.kind != "scalar")
    return seen
