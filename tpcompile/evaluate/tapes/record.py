"""Writing down the instructions of an evaluation while it runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes, _get_current_dispatch_mode

from tpcompile.evaluate.duals.elementary import recording
from tpcompile.evaluate.tapes.steps import CONSTANT, INPUT, OUT, SIZED, VIEWS, Step, layout

_FILLED = {"zeros_like": 0.0, "ones_like": 1.0, "new_zeros": 0.0, "new_ones": 1.0, "zeros": 0.0, "ones": 1.0}
_NAMES = {"_to_copy": "copy", "max": "amax", "logical_and": "bitwise_and"}


class Refused(Exception):  # noqa: N818 (no error: it is evaluated as it was)
    """An evaluation that is more than a fixed list of known operations."""


@dataclass(frozen=True)
class Input:
    """A tensor that changes from block to block: ``copy`` says with the rows (0) or with the columns (1)."""

    value: Tensor
    copy: int


@dataclass(frozen=True)
class Recording:
    """What an evaluation computes, the decisions that it took, and what it gave."""

    inputs: tuple[Step, ...]
    results: tuple[Step, ...]
    decisions: tuple[tuple[Step, bool], ...]
    order: tuple[Step, ...]
    values: tuple[Tensor, ...]


def recorded(
    function: Callable[[], Sequence[Tensor]], inputs: Sequence[Input], constants: Mapping[str, Tensor]
) -> Recording:
    """Run a function of the inputs and of constants, and write down what it computes. Raises Refused."""
    recorder = _Recorder(constants)
    steps = tuple(recorder.add_input(x) for x in inputs)
    with torch.no_grad(), recorder:
        found = function()
    results = tuple(recorder.step(x) for x in found)
    return Recording(steps, results, tuple(recorder.decisions.items()), tuple(recorder.known.values()), tuple(found))


def as_one(name: str, function: Callable[[Any, Tensor], Tensor], given: Hashable, x: Tensor) -> Tensor:
    """``function(given, x)``, which a recording takes for one instruction."""
    if not recording():
        return function(given, x)
    recorder = _get_current_dispatch_mode()
    if not isinstance(recorder, _Recorder):
        return function(given, x)
    step = recorder.step(x)
    with _disable_current_modes():
        found = function(given, x)
    recorder.add(found, name, step, given)
    return found


class _Recorder(TorchDispatchMode):
    """Instructions without changes in place: a tensor that is written to stands for another step afterwards."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # guarding against compilation imports torch's compiler, at the first evaluation

    def __init__(self, constants: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.constants = {id(x) for x in constants.values()}
        self.steps: dict[int, Step] = {}
        self.tensors: list[Tensor] = []  # kept, so that no other gets the same identity
        self.shared: dict[int, set[int]] = {}  # tensors on the same memory
        self.known: dict[Any, Step] = {}
        self.decisions: dict[Step, bool] = {}

    def add_input(self, given: Input) -> Step:
        shape, own = tuple(given.value.shape), layout(given.value)
        step = Step(INPUT, (), (), shape, given.value.dtype, frozenset([given.copy]), layout=own)
        self._bind(given.value, step)
        return step

    def add(self, found: Tensor, name: str, *args: Any) -> None:
        """An instruction that has been computed elsewhere."""
        self._bind(found, self._once(name, args, (), tuple(found.shape), found.dtype, order=layout(found)))

    def step(self, x: Tensor) -> Step:
        """The step that a tensor stands for."""
        if id(x) not in self.steps:
            if x.numel() != 1 and id(x) not in self.constants:
                raise Refused(f"a tensor of shape {tuple(x.shape)} from elsewhere")
            self._bind(x, self._constant(x))
        return self.steps[id(x)]

    def _bind(self, x: Tensor, step: Step) -> None:
        self.tensors.append(x)
        self.steps[id(x)] = step
        self.shared.setdefault(x.untyped_storage().data_ptr(), set()).add(id(x))

    def _unwritten(self, x: Tensor) -> bool:
        return id(x) in self.steps and self.steps[id(x)].name == "empty"

    @staticmethod
    def _constant(x: Tensor) -> Step:
        return Step(CONSTANT, (), (), tuple(x.shape), x.dtype, frozenset(), x.clone())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        full = func._schema.name.split("::")[1]
        name = full.rstrip("_")
        if name == "_local_scalar_dense":
            return self._decided(func, args[0])
        if name == "lift_fresh":
            self.step(args[0])
            found = func(*args, **options)
            self._bind(found, self.steps[id(args[0])])
            return found
        into = options.pop("out", None) if func._schema.is_mutable else None
        if func._schema.is_mutable and into is None:
            into = args[0]
        if name in ("empty_like", "empty", "new_empty") or (name in VIEWS and self._unwritten(args[0])):
            found = func(*args, **options)
            self._bind(found, Step("empty", (), (), tuple(found.shape), found.dtype, frozenset()))
            return found
        try:
            given = [self.step(x) if isinstance(x, Tensor) else x for x in args]
        except Refused as error:
            raise Refused(f"{func}: {error}") from None
        found = func(*args, **(kwargs or {}))
        if name in VIEWS and found.shape == args[0].shape and found.stride() == args[0].stride():
            self._bind(found, given[0])
            return found
        step = self._found(name, func, given, options, found)
        if into is None:
            self._bind(found, step)
            return found
        if into.shape != found.shape:
            raise Refused(f"{func} writes to another shape")
        for other in self.shared.get(into.untyped_storage().data_ptr(), set()) - {id(into)}:
            self.steps[other] = Step("overwritten", (), (), step.shape, step.dtype, frozenset())
        self._bind(into, step)
        return found

    def _found(self, name: str, func: Any, args: list[Any], options: dict[str, Any], found: Any) -> Step:
        name = _NAMES.get(name, name)
        if not isinstance(found, Tensor) or any(isinstance(x, list) and any(map(torch.is_tensor, x)) for x in args):
            raise Refused(str(func))
        shape = tuple(found.shape)
        if name in _FILLED or name in ("full_like", "full", "new_full", "fill", "scalar_tensor"):
            value = _FILLED[name] if name in _FILLED else args[0 if name == "scalar_tensor" else 1]
            if isinstance(value, Step):
                value = value.number
            if value is None:
                raise Refused(str(func))
            one = self._once(CONSTANT, (), (("value", value),), (), found.dtype, torch.tensor(value, dtype=found.dtype))
            return self._once("expand", (one, shape), (), shape, found.dtype)
        if any(isinstance(x, Step) and x.name in ("empty", "overwritten") for x in args):
            raise Refused(f"{func} reads memory that was written in another way")
        if name == "copy" and len(args) > 1 and isinstance(args[1], Step):
            args = [args[1]]
        if name == "copy" or name == "clone":
            options = {}
        if (
            (name == "amax" and len(args) > 1)
            or (name == "sum" and (len(args) < 2 or options))
            or (name not in OUT and name not in VIEWS and name != "rsub")
        ):
            raise Refused(str(func))
        if name == "rsub":
            other = args[1]
            if not isinstance(other, Step):
                other = self._once(
                    CONSTANT, (), (("value", other),), (), found.dtype, torch.tensor(other, dtype=found.dtype)
                )
            name, args = "sub", [other, args[0]]
        kept = tuple(tuple(x) if isinstance(x, list) else x for x in args)
        order = () if name in VIEWS else layout(found)
        return self._once(name, kept, tuple(sorted(options.items())), shape, found.dtype, order=order)

    def _once(
        self,
        name: str,
        args: tuple[Any, ...],
        options: Any,
        shape: Any,
        dtype: torch.dtype,
        value: Any = None,
        order: tuple[int, ...] = (),
    ) -> Step:
        """The same step for the same operation."""
        key = (name, args, options, shape, dtype, order)
        if key not in self.known:
            sides = frozenset[int]().union(*(x.sides for x in args if isinstance(x, Step)))
            given = args[0].value if args and isinstance(args[0], Step) else None
            if given is not None and name in SIZED and given.numel() == 1 and math.prod(shape) == 1:
                value = given.reshape(shape)
            self.known[key] = Step(name, args, options, shape, dtype, sides, value, order)
        return self.known[key]

    def _decided(self, func: Any, x: Tensor) -> Any:
        step, found = self.step(x), func(x)
        if step.sides and (x.dtype != torch.bool or len(step.sides) > 1):
            raise Refused("a number that depends on the block")
        if step.sides:
            self.decisions[step] = bool(found)
        return found
