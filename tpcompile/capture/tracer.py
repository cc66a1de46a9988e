"""A dispatch mode that writes every ATen call of a real run into an fx graph.

It records below autograd, so fused backward operations stay as they are, and runs the operations on
real (small) tensors, so index errors and data dependence show where they happen. Every recorded
tensor carries its node as an attribute, which lives exactly as long as the tensor.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import fx
from torch._decomp import decomposition_table
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tpcompile.capture.graph import Origin
from tpcompile.capture.origin import Position, user_source
from tpcompile.capture.strided import as_slices
from tpcompile.errors import CaptureError

_ATTRIBUTE = "_tpcompile_node"

# Operations that read the shape of their argument, not its entries.
_VALUE_FREE = frozenset(
    {
        torch.ops.aten.ones_like.default,
        torch.ops.aten.zeros_like.default,
        torch.ops.aten.full_like.default,
        torch.ops.aten.new_zeros.default,
        torch.ops.aten._new_zeros_with_same_feature_meta.default,
        torch.ops.aten.new_ones.default,
        torch.ops.aten.new_full.default,
        torch.ops.aten.fill.Scalar,
    }
)
_UNINITIALISED = frozenset(
    {
        *(torch.ops.aten.empty.memory_format, torch.ops.aten.empty_strided.default),
        *(torch.ops.aten.empty_like.default, torch.ops.aten.new_empty.default),
        torch.ops.aten.new_empty_strided.default,
    }
)
# Moves of entries that torch itself writes as views and permutations, where no kernel of its own is at hand.
_WRITTEN_OUT = frozenset(
    {
        *(torch.ops.aten.pixel_shuffle.default, torch.ops.aten.pixel_unshuffle.default),
        *(torch.ops.aten.channel_shuffle.default, torch.ops.aten.rot90.default),
    }
)
_PRODUCTS = frozenset({torch.ops.aten.mm.default, torch.ops.aten.bmm.default})
_READS = frozenset({torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.__array__, torch.Tensor.data_ptr})
_MATMULS = frozenset({torch.matmul, torch.Tensor.matmul, torch.Tensor.__matmul__})
# Tagged as reading values for the sake of boolean masks; integer indices decide no shape.
_INDEXING = frozenset({torch.ops.aten.index.Tensor, torch.ops.aten._unsafe_index.Tensor})
# Operations in which a number of an optimizer (epsilon) stands beside a value: how large that is is noted.
_BESIDE_NUMBERS = frozenset(
    {
        *(torch.ops.aten.add.Tensor, torch.ops.aten.add.Scalar, torch.ops.aten.maximum.default),
        *(torch.ops.aten.clamp.default, torch.ops.aten.clamp_min.default),
    }
)
# Operations that change their running statistics although their schema does not say so.
_HIDDEN_MUTATION = {torch.ops.aten.native_batch_norm.default: (3, 4)}


@dataclass(frozen=True)
class _Facts:
    """What the tracer needs to know of an operation, from its schema and tags."""

    random: bool
    reads_values: bool
    mutated: tuple[int, ...]
    mutated_names: tuple[str, ...]


@cache
def _facts(func: torch._ops.OpOverload) -> _Facts:
    arguments = func._schema.arguments
    mutated = [(i, a.name) for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]
    return _Facts(
        random=torch.Tag.nondeterministic_seeded in func.tags,
        reads_values=bool({torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape} & set(func.tags)),
        mutated=tuple(i for i, _ in mutated),
        mutated_names=tuple(name for _, name in mutated),
    )


def _made_by(node: fx.Node) -> Any:
    """The operation that made a value, seen through other names of the same memory."""
    while node.target in (torch.ops.aten.detach.default, torch.ops.aten.alias.default):
        node = node.all_input_nodes[0]
    return node.target


def _by_integers(indices: Any) -> bool:
    return all(i is None or i.dtype not in (torch.bool, torch.uint8) for i in indices)


class Tracer(TorchDispatchMode):
    """Records ATen calls into ``graph``; ``position`` says where in the model they happen.

    Node metadata: ``shape`` and ``dtype`` of a tensor, ``origin``, ``constant`` (True if the value
    depends on no placeholder), and then ``value``; ``magnitude`` of what a number may be added to in an update.
    """

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: to wrap the method below for torch.compile would import the compiler, which takes a second or two."""
        return False

    def __init__(self, position: Position) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self.position = position
        self.constants: dict[str, torch.Tensor] = {}
        self.mutates = False
        self.fresh_memory = ""  # where memory without values was first made
        self._token = object()
        self._protected: dict[int, str] = {}  # storage address of a placeholder: its description
        self._foreign: dict[int, str] = {}  # parameters that must not be met outside their module
        self._modules: dict[int, str] = {}  # autograd sequence number: module path of its forward
        self._tagged: list[torch.Tensor] = []

    # -- building -------------------------------------------------------------------------------

    def placeholder(self, name: str, tensor: torch.Tensor, description: str, protect: bool) -> None:
        """Make ``tensor`` an input of the graph; ``protect`` refuses in-place changes of it."""
        node = self.graph.placeholder(name.replace(".", "_").replace("/", "_"))
        node.meta["constant"] = False
        self._describe(node, tensor)
        if protect and tensor.numel():
            self._protected[tensor.untyped_storage().data_ptr()] = description

    def forbid(self, tensor: torch.Tensor, name: str) -> None:
        """Refuse to meet ``tensor`` (an original parameter of the model) in the traced run."""
        self._foreign[id(tensor)] = name

    def node_of(self, tensor: torch.Tensor) -> fx.Node:
        """The node of a tensor; a tensor that the trace has not seen becomes a constant."""
        entry = getattr(tensor, _ATTRIBUTE, None)
        if entry is not None and entry[0] is self._token:
            return entry[1]
        return self._constant(tensor)

    def release(self) -> None:
        """Take the node attributes off tensors of the user's that the trace met."""
        for tensor in self._tagged:
            if hasattr(tensor, _ATTRIBUTE):
                delattr(tensor, _ATTRIBUTE)

    def _constant(self, tensor: torch.Tensor) -> fx.Node:
        if id(tensor) in self._foreign:
            raise CaptureError(
                f"parameter '{self._foreign[id(tensor)]}' is reached by another way than its module's attribute",
                where=str(self.position.origin(user_source())),
                advice="read it as an attribute of its module in forward",
            )
        if isinstance(tensor, torch.nn.Parameter):
            raise CaptureError(
                f"a parameter of shape {tuple(tensor.shape)} is used that the module does not own",
                where=str(self.position.origin(user_source())),
                advice="assign it as an attribute of a module (or use nn.ParameterList instead of a list)",
            )
        name = f"constant_{len(self.constants)}"
        value = tensor.detach().clone() if self.position.phase == "update" else tensor.detach()  # counters change
        self.constants[name] = value
        node = self.graph.create_node("get_attr", name, name=name)
        node.meta.update(constant=True, value=value)
        self._describe(node, tensor)
        self._tagged.append(tensor)
        return node

    def _describe(self, node: fx.Node, tensor: torch.Tensor) -> None:
        meta = node.meta
        meta["shape"], meta["dtype"] = tuple(tensor.shape), tensor.dtype
        if "origin" not in meta:
            meta["origin"] = self.position.origin()
        setattr(tensor, _ATTRIBUTE, (self._token, node))

    # -- recording ------------------------------------------------------------------------------

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten.as_strided.default:
            with self:
                slices = as_slices(args[0], args[1], args[2], args[3] if len(args) > 3 else None)
            if slices is not None:
                return slices
        if func is torch.ops.aten.as_strided_scatter.default:
            with self:
                whole = args[0].clone()
                slices = as_slices(whole, args[2], args[3], args[4] if len(args) > 4 else None)
                if slices is not None:
                    slices.copy_(args[1])
                    return whole
        if func is torch.ops.aten.as_strided_.default and tuple(args[1]) == args[0].shape:
            steps = zip(args[1], args[2], args[0].stride(), strict=True)
            if all(size == 1 or new == old for size, new, old in steps):  # another layout of the same entries
                return args[0]
        if func._schema.name.startswith("aten::_foreach_"):  # of many tensors: torch's own loop over them
            with self:
                return func._op_dk(torch._C.DispatchKey.CompositeExplicitAutograd, *args, **kwargs)
        if func in _WRITTEN_OUT:
            with self:
                return decomposition_table[func](*args, **kwargs)
        facts = _facts(func)
        if facts.random:
            raise CaptureError(
                f"the random operation {func} runs inside the model",
                where=str(self.position.origin(user_source())),
                advice="call model.eval() in the factory to switch dropout off, or draw in the factory",
            )
        node_args, node_kwargs = self._nodes(args), self._nodes(kwargs)
        reads = facts.reads_values and not (func in _INDEXING and _by_integers(args[1]))
        if reads and not self._is_constant(node_args):
            raise CaptureError(
                f"Python reads a computed value ({func}), so the graph would depend on the data",
                where=str(self.position.origin(user_source())),
                advice="avoid .item(), bool(tensor), `if tensor:` and boolean indexing on values in forward",
            )
        mutated = self._mutated(func, facts, args, kwargs)
        if mutated and self.position.phase == "update" and self._counts(node_args, node_kwargs, mutated):
            out = func(*args, **kwargs)  # a step counter of the optimizer: a constant again, with another value
            for tensor in mutated:
                delattr(tensor, _ATTRIBUTE)
            return out
        if mutated:
            self.mutates = True
            self._check_mutation(func, mutated)
        if func is torch.ops.aten._efficientzerotensor.default:  # forward-mode zeros: as zeros they need no rules
            func = torch.ops.aten.zeros.default
        out = func(*args, **kwargs)
        if func in _UNINITIALISED and out.is_floating_point():
            out.fill_(math.nan)  # what reads it shows it
            self.fresh_memory = self.fresh_memory or str(self.position.origin(user_source()))
        if func in _HIDDEN_MUTATION and mutated:
            return self._batch_norm(func, args, node_args, mutated, out)
        if isinstance(out, torch.Tensor) or (
            isinstance(out, (tuple, list)) and any(isinstance(o, torch.Tensor) for o in out)
        ):
            self._record(func, args, node_args, node_kwargs, out, mutated)
        elif mutated:  # multi-tensor in-place operations return nothing
            node = self._call(func, node_args, node_kwargs)
            node.meta["constant"] = False
        return out

    def _nodes(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return self.node_of(value)
        if isinstance(value, (list, tuple)):
            return type(value)([self._nodes(v) for v in value])
        if isinstance(value, dict):
            return {k: self._nodes(v) for k, v in value.items()}
        return value

    def _is_constant(self, value: Any) -> bool:
        if isinstance(value, fx.Node):
            return value.meta["constant"]
        if isinstance(value, (list, tuple)):
            return all(self._is_constant(v) for v in value)
        if isinstance(value, dict):
            return all(self._is_constant(v) for v in value.values())
        return True

    def _mutated(self, func: Any, facts: _Facts, args: Any, kwargs: Any) -> list[torch.Tensor]:
        values = [args[i] for i in facts.mutated if i < len(args)]
        values += [kwargs[name] for name in facts.mutated_names if name in kwargs]
        if func in _HIDDEN_MUTATION and args[5]:
            values += [args[i] for i in _HIDDEN_MUTATION[func]]
        flat = [v for value in values for v in (value if isinstance(value, (list, tuple)) else [value])]
        return [v for v in flat if isinstance(v, torch.Tensor)]

    def _counts(self, node_args: Any, node_kwargs: Any, mutated: list[torch.Tensor]) -> bool:
        """True if single numbers that do not depend on the data change in place."""
        constant = self._is_constant(node_args) and self._is_constant(node_kwargs)
        return constant and all(t.dim() == 0 and _made_by(self.node_of(t)) not in _VALUE_FREE for t in mutated)

    def _check_mutation(self, func: Any, mutated: list[torch.Tensor]) -> None:
        for tensor in mutated:
            description = self._protected.get(tensor.untyped_storage().data_ptr()) if tensor.numel() else None
            if description is None and self.node_of(tensor).op == "get_attr":
                description = "a constant tensor"
            if description is not None:
                raise CaptureError(
                    f"{func} changes {description} in place",
                    where=str(self.position.origin(user_source())),
                    advice="compute a new tensor instead; state that changes from step to step must be a buffer",
                )

    def _call(self, func: Any, node_args: Any, node_kwargs: Any) -> fx.Node:
        node = self.graph.call_function(func, tuple(node_args), node_kwargs)
        node.meta["origin"] = self._origin(func)
        return node

    def _record(self, func: Any, args: Any, node_args: Any, node_kwargs: Any, out: Any, mutated: list[Any]) -> None:
        node = self._call(func, node_args, node_kwargs)
        constant = (
            not mutated
            and func not in _UNINITIALISED
            and (func in _VALUE_FREE or (self._is_constant(node_args) and self._is_constant(node_kwargs)))
        )
        node.meta["constant"] = constant
        if node.meta["origin"].phase == "update" and func in _BESIDE_NUMBERS and isinstance(args[0], torch.Tensor):
            node.meta["magnitude"] = float(args[0].detach().double().square().mean().sqrt())
        if isinstance(out, torch.Tensor):
            if constant:
                node.meta["value"] = out
            self._describe(node, out)
            return
        for index, item in enumerate(out):
            if isinstance(item, torch.Tensor):
                child = self.graph.call_function(operator.getitem, (node, index))
                child.meta.update(constant=constant, origin=node.meta["origin"])
                if constant:
                    child.meta["value"] = item
                self._describe(child, item)

    def _batch_norm(self, func: Any, args: Any, node_args: Any, buffers: list[torch.Tensor], out: Any) -> Any:
        """Training-mode batch norm: the functional form, with the new statistics copied to the buffers."""
        functional = torch.ops.aten._native_batch_norm_legit_functional.default
        node = self._call(functional, node_args, {})
        node.meta["constant"] = False
        for index, item in enumerate([*out, *buffers]):
            child = self.graph.call_function(operator.getitem, (node, index))
            child.meta.update(constant=False, origin=node.meta["origin"])
            if index < len(out):
                self._describe(child, item)
            else:
                child.meta.update(shape=tuple(item.shape), dtype=item.dtype)
                copy = self._call(torch.ops.aten.copy_.default, (self.node_of(item), child), {})
                copy.meta["constant"] = False
                self._describe(copy, item)
        return out

    def _origin(self, func: Any) -> Origin:
        position = self.position
        current = torch._C._current_autograd_node()
        if current is not None:
            number = current._sequence_nr()
            module = self._modules.get(number, "")
            phase = position.phase if position.phase == "tangent" else "backward"
            return Origin(module, phase, position.step, product=number if func in _PRODUCTS else None)
        if position.phase in ("backward", "update"):
            return position.origin()
        sequence_number = getattr(torch.autograd, "_get_sequence_nr")() - 1  # noqa: B009, of the autograd node being made
        self._modules[sequence_number] = position.module
        origin = position.origin(user_source())
        return replace(origin, product=sequence_number) if func in _PRODUCTS else origin


class ReadGuard(TorchFunctionMode):
    """Refuses the ways of reading a tensor's entries that no ATen call shows (numpy, tolist)."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func in _READS and not self._tracer.node_of(args[0]).meta["constant"]:
            raise CaptureError(
                f"Python reads a computed value (Tensor.{func.__name__}), which cannot be traced",
                where=str(self._tracer.position.origin(user_source())),
                advice="stay with torch operations in forward",
            )
        if func is torch.nn.functional.one_hot:
            return _one_hot(*args, **(kwargs or {}))
        if func in _MATMULS and not kwargs and _outer(*args):
            return args[0] * args[1]
        return func(*args, **(kwargs or {}))


def _outer(a: torch.Tensor, b: torch.Tensor) -> bool:
    """True for products over an axis of length one: torch would join all axes before it to one, growing or not."""
    return a.dim() > 2 and b.dim() > 2 and a.shape[-1] == b.shape[-2] == 1


def _one_hot(tensor: torch.Tensor, num_classes: int = -1) -> torch.Tensor:
    """``F.one_hot`` without torch's look at the largest and smallest class."""
    if num_classes < 0:
        raise ValueError("one_hot needs num_classes here")
    return (tensor.unsqueeze(-1) == torch.arange(num_classes)).to(torch.int64)
