"""Remove in-place operations and views of changed tensors from a traced graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from tpcompile.capture.graph import Origin
from tpcompile.capture.origin import Position
from tpcompile.capture.tracer import Tracer


class _Replay(fx.Interpreter):
    """Runs a traced graph again, so that a new tracer records it with the old origins."""

    def __init__(self, root: torch.nn.Module, graph: fx.Graph, tracer: _OriginTracer) -> None:
        super().__init__(root, garbage_collect_values=False, graph=graph)  # without the code of a GraphModule
        self._tracer = tracer

    def run_node(self, n: fx.Node) -> Any:
        self._tracer.current = n.meta.get("origin", self._tracer.current)
        return super().run_node(n)

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target is torch.ops.aten.addcdiv_.default:  # in place its shape is checked in Python: a millisecond
            return args[0].copy_(torch.ops.aten.addcdiv.default(*args, **kwargs))
        return super().call_function(target, args, kwargs)


class _OriginTracer(Tracer):
    current: Origin = Origin("", "forward", 0)

    def _origin(self, func: Any) -> Origin:
        return self.current


def functionalized(
    graph: fx.Graph,
    constants: dict[str, torch.Tensor],
    inputs: list[torch.Tensor],
    outputs: dict[str, fx.Node],
) -> tuple[fx.Graph, dict[str, torch.Tensor], dict[str, fx.Node]]:
    """The graph traced again under ``torch.func.functionalize``: same outputs, no mutation."""
    graph.output(tuple(outputs.values()))
    root = torch.nn.Module()
    for name, value in constants.items():
        root.register_buffer(name, value)
    tracer = _OriginTracer(Position())
    with torch.no_grad():
        for node, tensor in zip(graph.find_nodes(op="placeholder"), inputs, strict=True):
            tracer.current = node.meta["origin"]
            tracer.placeholder(node.target, tensor, "", protect=False)
            new = tracer.node_of(tensor)
            new.meta["origin"] = node.meta["origin"]
        with tracer:
            results = torch.func.functionalize(_Replay(root, graph, tracer).run)(*inputs)
    renamed = dict(zip(outputs, (tracer.node_of(r) for r in results), strict=True))
    return tracer.graph, tracer.constants, renamed
