"""What capture hands to lowering: one traced graph in which every size and number knows its power of n."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cached_property
from typing import Any

import torch
from torch import fx

from tpcompile.laws import ParameterLaw

# Of matrix products, where the first factor stands.
_FACTORS = {"aten.addmm.default": 1, "aten.baddbmm.default": 1} | dict.fromkeys(
    (f"aten.{name}.default" for name in ("mm", "bmm", "mv", "dot")), 0
)


@dataclass(frozen=True)
class Scaled:
    """A number ``coefficient * n**exponent`` recognised by comparing the probe widths."""

    coefficient: float
    exponent: Fraction


@dataclass(frozen=True)
class Binomial:
    """A number ``first + second``, or one over it: ``1 - lr * weight_decay`` of a decoupled decay, ``1 / (n - 1)``."""

    first: Scaled
    second: Scaled
    inverse: bool = False


@dataclass(frozen=True)
class Size:
    """The length of an axis, ``coefficient * n**power``; ``power`` 0 is a finite axis."""

    coefficient: Fraction
    power: int


@dataclass(frozen=True)
class Ref:
    """A reference to another node of the graph, by name."""

    name: str


@dataclass(frozen=True)
class Origin:
    """Where in the user's model a value comes from."""

    module: str  # module path ("" outside any submodule)
    phase: str  # "forward", "backward", "update", "loss", "test", "tangent", "variation"
    step: int
    source: str | None = None  # "file.py:12" where the tracer knows it
    product: int | None = field(default=None, compare=False, repr=False)  # of a matrix product and its gradient: which

    @property
    def place(self) -> str:
        """In words, without step and line."""
        if self.phase == "update":
            return "the optimizer's update" + (f" of '{self.module}'" if self.module else "")
        if self.phase == "loss":
            return "the loss"
        if self.phase == "backward":
            return "the backward pass" + (f" of '{self.module}'" if self.module else "")
        return f"module '{self.module}'" if self.module else "the model's own forward"

    def __str__(self) -> str:
        text = f"{self.place}, step {self.step}"
        return text + (f" ({self.source})" if self.source else "")


@dataclass(frozen=True)
class GraphNode:
    """One ATen call, placeholder or constant of the traced training run.

    ``args`` and ``kwargs`` hold :class:`Ref` for other nodes, :class:`Scaled` for numbers that change
    with the width, and plain Python values for all else, nested in tuples. ``shape`` is None for
    multi-output operations, whose outputs are read by ``operator.getitem`` nodes.
    """

    name: str
    kind: str  # "parameter", "direction" (of a parameter), "buffer", "data", "constant", "call"
    target: Any  # OpOverload or operator.getitem for calls; parameter or data name otherwise
    args: tuple[Any, ...]
    kwargs: tuple[tuple[str, Any], ...]
    shape: tuple[Size, ...] | None
    dtype: torch.dtype | None
    origin: Origin

    @cached_property
    def operands(self) -> tuple[str, ...]:
        """Names of the nodes that it reads, each once."""
        return tuple(dict.fromkeys([*references(self.args), *references([v for _, v in self.kwargs])]))

    def is_forward(self, step: int) -> bool:
        """True for a call in the forward pass of a step."""
        return self.kind == "call" and (self.origin.phase, self.origin.step) == ("forward", step)


@dataclass(frozen=True)
class Capture:
    """The traced graph of a model and its unrolled training, aligned over the probe widths.

    ``outputs`` maps names to nodes: ``outputs/<t>``, ``test_outputs/<t>``, ``loss/<t>``,
    ``activation/<name>/<t>`` and ``test_activation/<name>/<t>`` (before step t; the last t is after
    the last step), and, when traced with ``tangent=True``, ``jacobian/<parameter>/<t>`` of shape
    (N, k, *parameter shape) with k the flattened output; when traced with ``variation=True``, ``variation/<t>``, the
    derivative of the output along directions of the parameters (nodes of kind "direction", normal entries of
    variance the learning rate).
    """

    nodes: tuple[GraphNode, ...]
    outputs: dict[str, Ref]
    data: dict[str, torch.Tensor]  # finite tensors: inputs, targets, constants met while tracing
    laws: dict[str, ParameterLaw]  # of every parameter, buffer and width-sized constant, by node name
    learning_rates: dict[str, Scaled]  # of every parameter, from the optimizer's groups (1 without one)
    settings: dict[str, dict[str, Scaled]]  # of trained parameters: the numbers of their groups that are powers of n
    activations: tuple[str, ...]
    steps: int
    graph_module: fx.GraphModule | None  # traced at the first probe width; None where only exponents are asked for
    widths: tuple[int, ...]
    output_shape: tuple[int, ...]  # of one input's output
    copies: Mapping[str, tuple[str, Scaled]] = field(
        default_factory=dict
    )  # which start as which others, times a number
    magnitudes: Mapping[str, float] = field(default_factory=dict)  # rms at the largest width, beside numbers of updates
    notes: tuple[str, ...] = ()  # what is odd about the setup, in words

    @cached_property
    def named(self) -> Mapping[str, GraphNode]:
        """Every node by its name, in order."""
        return {node.name: node for node in self.nodes}

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """The place of every node in the order of execution."""
        return {node.name: i for i, node in enumerate(self.nodes)}

    @cached_property
    def readers(self) -> Mapping[str, Sequence[GraphNode]]:
        """The calls that read a node, in order."""
        found: dict[str, list[GraphNode]] = defaultdict(list)
        for node in self.nodes:
            for name in node.operands:
                found[name].append(node)
        return dict(found)

    def without(self, kind: str) -> Capture:
        """The same without the outputs of a kind (``"variation"``), and without what only they depend on."""
        outputs = {name: ref for name, ref in self.outputs.items() if not name.startswith(f"{kind}/")}
        live = {ref.name for ref in outputs.values()}
        for node in reversed(self.nodes):
            if node.name in live:
                live.update(node.operands)
        nodes = tuple(x for x in self.nodes if x.name in live or x.kind in ("parameter", "data"))
        return replace(self, nodes=nodes, outputs=outputs)

    @cached_property
    def grown_parameters(self) -> frozenset[str]:
        """Parameters that have an axis that grows with the width."""
        kept = (x for x in self.nodes if x.kind == "parameter" and any(size.power for size in x.shape or ()))
        return frozenset(str(x.target) for x in kept)

    @cached_property
    def computed(self) -> frozenset[str]:
        """Nodes of forward passes that are activations, not made of weights only.

        What is computed from data, and products over a growing axis that leave one such axis at the most: a learned
        vector (a query, a first state) times a matrix is an activation, two matrices multiplied are a matrix.
        """
        found = {node.name for node in self.nodes if node.kind == "data"}
        for node in self.nodes:
            if node.kind != "call" or node.origin.phase != "forward":
                continue
            if not found.isdisjoint(node.operands) or self._joins(node):
                found.add(node.name)
        return frozenset(found)

    def _joins(self, node: GraphNode) -> bool:
        at = _FACTORS.get(str(node.target))
        if at is None or sum(size.power for size in node.shape or ()) > 1:
            return False
        left = node.args[at]
        shape = self.named[left.name].shape if isinstance(left, Ref) else None
        return bool(shape and shape[-1].power)


def references(x: Any) -> Iterator[str]:
    """Names of the nodes that an argument list refers to."""
    if isinstance(x, Ref):
        yield x.name
    elif isinstance(x, list | tuple):
        for y in x:
            yield from references(y)
