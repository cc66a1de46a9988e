"""Products with initial matrices as the Master Theorem reads them: Ẑ, and what the response Ż is made of.

Theory, section 2: ``Z^{Wx} = Ẑ + Ż`` with ``Ẑ`` Gaussian of covariance ``s E[Z^x Z^x']`` and
``Ż^{Wx} = s sum_y Z^y E[dZ^x / dẐ^{W^T y}]`` over the earlier products with the transposed matrix, where ``s`` is the
variance of an entry times the length of the contracted axis.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

from tpcompile.analysis.parity import Parity
from tpcompile.ir import Init, MatMul, Node, Program, Width
from tpcompile.laws import Normal


@dataclass(frozen=True)
class Response:
    """One term of Ż: ``Z^y E[dZ^x / dẐ^{W^T y}]``.

    ``product`` is the node ``W^T y``. ``odd`` names parameters in which ``dZ^x / dẐ`` is odd, so that the expectation
    is zero; empty where no sign makes it vanish.
    """

    product: Node
    y: Node
    odd: frozenset[str]


@dataclass(frozen=True)
class Product:
    """A product ``W x`` (``W^T x`` where ``transpose``) and its two parts in the limit."""

    node: Node
    matrix: Node
    transpose: bool
    x: Node
    scale: float
    """``s``: the variance of an entry of W times the length of the axis that is contracted."""
    family: tuple[Node, ...]
    """Earlier products with W from the same side: jointly Gaussian with this one."""
    responses: tuple[Response, ...]
    """Earlier products with the other side that ``Z^x`` is a function of."""

    @property
    def parameter(self) -> str:
        """Name of the matrix."""
        assert isinstance(self.matrix.op, Init)
        return self.matrix.op.name

    @property
    def has_response(self) -> bool:
        """False where Ż is zero for structural reasons."""
        return any(not term.odd for term in self.responses)


def products(program: Program) -> dict[Node, Product]:
    """Every product with an initial matrix, in order of execution."""
    parity = Parity()
    found: dict[Node, Product] = {}
    for node in program.nodes:
        if isinstance(node.op, MatMul):
            found[node] = _product(node, found, parity)
    return found


def vector_ancestors(node: Node) -> Iterator[Node]:
    """The vectors whose ``Z`` the value ``Z`` of this one is a function of, itself included.

    Scalars are numbers in the limit: what they were computed from does not count.
    """
    seen: set[Node] = set()
    stack = [node]
    while stack:
        top = stack.pop()
        if top not in seen and top.kind == "vector":
            seen.add(top)
            yield top
            stack.extend(top.operands)


def _product(node: Node, earlier: dict[Node, Product], parity: Parity) -> Product:
    assert isinstance(node.op, MatMul)
    matrix, x = node.operands
    transpose = node.op.transpose
    needed = set(vector_ancestors(x))
    same = [p for p in earlier.values() if p.matrix is matrix]
    terms = [
        Response(p.node, p.x, _odd(parity, p.node, x)) for p in same if p.transpose != transpose and p.node in needed
    ]
    return Product(
        node=node,
        matrix=matrix,
        transpose=transpose,
        x=x,
        scale=_variance(matrix) * _ratio(x),
        family=tuple(p.node for p in same if p.transpose == transpose),
        responses=tuple(terms),
    )


def _odd(parity: Parity, g: Node, x: Node) -> frozenset[str]:
    """What makes ``E[dZ^x / dẐ^g]`` vanish: it has the sign of ``Z^x`` times that of ``Ẑ^g``."""
    if not parity.derivative_vanishes(g, x):
        return frozenset()
    signs = [parity.names(a * b) for a, b in product(parity.gaussian(g), parity.signatures(x))]
    return frozenset.intersection(*signs) or frozenset.union(*signs)


def _variance(matrix: Node) -> float:
    assert isinstance(matrix.op, Init)
    assert isinstance(matrix.op.law, Normal)
    return matrix.op.law.std**2


def _ratio(x: Node) -> float:
    return next(float(d.ratio) for d in x.dims if isinstance(d, Width))
