"""A dispatch mode that keeps, for every tensor entry, the random draw behind it and the arithmetic on it.

The mode is general: what an operation does to cells is a rule in :mod:`tpcompile.capture.transfer`,
found by the operation. Views need no rule, since cells are kept per storage element. A deterministic
operation on constants gives constants. Everything else makes its outputs unknown, with a reason that
names the operation.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tpcompile.capture.draws import BaseLaw, Cells, Ledger, Stretch
from tpcompile.laws import ParameterLaw

FOREIGN = "was copied from data that tpcompile did not see being drawn"
_TORCH = str(Path(str(torch.__file__)).parent)
_PRUNE_EVERY = 256


@dataclass
class _Memory:
    """Cells of a storage, one per element of ``itemsize`` bytes."""

    alive: StorageWeakRef
    nbytes: int
    itemsize: int
    cells: Cells


@dataclass(frozen=True)
class Call:
    """One dispatched operation, after it ran, as its transfer rule sees it."""

    recorder: Recorder
    func: Any  # OpOverload
    args: Mapping[str, Any]  # by schema name, with defaults filled in
    targets: tuple[Tensor, ...]  # the tensors the operation wrote
    stretch: Stretch | None

    @property
    def ledger(self) -> Ledger:
        return self.recorder.ledger

    def cells(self, name: str) -> Cells:
        """Cells, before the operation, of the argument ``name`` (a tensor or a number)."""
        return self.recorder.cells(self.args[name])

    def draw(self, law: BaseLaw, *, target: int = 0) -> Cells:
        """Fresh independent draws of ``law``, one per entry of a target."""
        values = self.targets[target]
        names = self.ledger.add(law, values, stretch=self.stretch)
        return affine(names, 1.0, 0.0)

    def derive(self, law: BaseLaw, source: Cells, *, uses: Sequence[int] = ()) -> Cells | str:
        """Draws of ``law`` that are each a function of the draw of ``source`` at the same entry."""
        parents = self.ledger.primitives(source.draw.reshape(-1))
        if parents is None:
            return "a sum of too many draws"
        uses = [*uses, *self.ledger.uses(source.draw.reshape(-1))]
        return affine(self.ledger.add(law, self.targets[0], parents=parents, uses=uses), 1.0, 0.0)


Rule = Callable[[Call], "Cells | list[Cells] | str"]


def affine(draw: Tensor, scale: float, shift: float) -> Cells:
    """Cells with one scale and one shift."""
    full = lambda v: torch.full(draw.shape, v, dtype=torch.float64)
    return Cells(draw, full(scale), full(shift))


class Recorder(TorchDispatchMode):
    """Watches all tensor operations and keeps the :class:`Ledger` and the cells of every storage."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """False: to wrap the method below for torch.compile would import the compiler, which takes a second or two."""
        return False

    def __init__(self, rules: Mapping[Any, Rule]) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.random_reads: list[str] = []  # where random values were read into Python numbers
        self._tainted: set[float] = set()
        self._rules = rules
        self._memories: dict[int, _Memory] = {}
        self._next_prune = _PRUNE_EVERY
        self._paused = False
        self._last_state: dict[int, int] = {}
        self._visits: dict[int, Stretch] = {}
        self._streams: dict[int, tuple[int, int]] = {}  # state hash -> stream, position
        self._visit_count = 0

    # -- cells of tensors ---------------------------------------------------------------------

    def cells(self, value: Any) -> Cells:
        """Cells of a tensor (views of what is kept: do not write) or of a number (0-dim)."""
        if not isinstance(value, Tensor):
            if float(value) in self._tainted:
                return self._unknown_cells((), "is computed with a number that was read from random values")
            return affine(torch.zeros((), dtype=torch.int64), 0.0, float(value))
        memory = self._memory(value)
        if memory is None:
            return self._unknown_cells(value.shape, "is not a plain dense tensor")
        if memory.itemsize != value.element_size():
            return self._unknown_cells(value.shape, "is a view of the bytes of a tensor of another type")
        view = lambda part: part.as_strided(value.size(), value.stride(), value.storage_offset())
        return Cells(*map(view, memory.cells))

    def read(self, tensor: Tensor) -> ParameterLaw | str:
        """The law of a tensor's entries, or a predicate that says why it is unknown."""
        return self.ledger.read(self.cells(tensor), tensor)

    def declare(self, tensor: Tensor, law: BaseLaw, stretch: Stretch | None) -> None:
        """Enter independent draws of ``law`` as what ``tensor`` now holds."""
        self._write(tensor, affine(self.ledger.add(law, tensor, stretch=stretch), 1.0, 0.0))

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Operations inside are not watched; the caller declares what they did."""
        before, self._paused = self._paused, True
        try:
            yield
        finally:
            self._paused = before

    def _unknown_cells(self, shape: Sequence[int], reason: str) -> Cells:
        return affine(torch.full(tuple(shape), self.ledger.unknown(reason)), 0.0, 0.0)

    def _memory(self, tensor: Tensor, fresh: bool = False) -> _Memory | None:
        """The cells of a tensor's storage; ``fresh`` says that an operation just made it."""
        key = _storage_key(tensor)
        if key is None:
            return None
        storage = tensor.untyped_storage()
        count = storage.nbytes() // tensor.element_size()
        memory = self._memories.get(key)
        # A storage that changed its size was resized: what it holds now was not seen.
        if memory is None or memory.nbytes != storage.nbytes():
            if fresh:
                cells = self._unknown_cells((count,), "has entries that are never written (torch.empty)")
            else:
                cells = self._unseen(tensor.detach().as_strided((count,), (1,), 0))
            memory = _Memory(StorageWeakRef(storage), storage.nbytes(), tensor.element_size(), cells)
            self._memories[key] = memory
            self._prune()
        return memory

    def _unseen(self, flat: Tensor) -> Cells:
        """Cells of data from outside: constants if all entries are equal, else unknown."""
        if flat.numel() and not flat.is_complex() and bool((flat == flat[0]).all()):
            return affine(torch.zeros(flat.shape, dtype=torch.int64), 0.0, float(flat[0]))
        return self._unknown_cells(flat.shape, FOREIGN)

    def _prune(self) -> None:
        if len(self._memories) >= self._next_prune:
            self._memories = {k: m for k, m in self._memories.items() if not m.alive.expired()}
            self._next_prune = 2 * len(self._memories) + _PRUNE_EVERY

    def _write(self, tensor: Tensor, cells: Cells) -> None:
        memory = self._memory(tensor, fresh=True)
        if memory is None:
            return
        if memory.itemsize != tensor.element_size():
            if cells.draw.numel() * tensor.element_size() != tensor.untyped_storage().nbytes():
                cells = self._unknown_cells((), "was written through a view of another type")
            count = tensor.untyped_storage().nbytes() // tensor.element_size()
            memory.itemsize = tensor.element_size()
            memory.cells = self._unknown_cells((count,), "was partly written through a view of another type")
        scale = torch.where(cells.draw > 0, cells.scale, 0.0)
        constant = (cells.draw > 0) & (scale == 0)
        draw = torch.where(constant, 0, cells.draw)
        for kept, part in zip(memory.cells, (draw, scale, cells.shift), strict=True):
            kept.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset()).copy_(part)

    # -- dispatch -----------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._paused or torch.Tag.inplace_view in func.tags:
            return func(*args, **kwargs)
        bound = _bind(func, args, kwargs)
        mutated = tuple(t for name in _written(func) for t in tree_leaves(bound[name]) if isinstance(t, Tensor))
        out_only = {id(t) for name in _out_names(func) for t in tree_leaves(bound[name])}
        inputs = [t for t in tree_leaves(list(bound.values())) if isinstance(t, Tensor) and id(t) not in out_only]
        for tensor in inputs:  # look at data from outside before the operation can change it
            self._memory(tensor)
        random = torch.Tag.nondeterministic_seeded in func.tags
        generator = bound.get("generator")
        stretch = self.before_draw(generator) if random else None
        out = func(*args, **kwargs)
        if random:
            self.after_draw(generator)
        if func.overloadpacket is torch.ops.aten._local_scalar_dense:
            self._note_read(inputs[0], out)
        seen = {_storage_key(t) for t in inputs}
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor) and _storage_key(t) not in seen]
        # A target without dense data (meta, sparse) is unknown in itself, whatever happens to it.
        targets = tuple(t for t in (mutated or outputs) if _storage_key(t) is not None)
        if targets:
            call = Call(self, func, bound, targets, stretch)
            self._transfer(call, inputs, random)
        return out

    def _transfer(self, call: Call, inputs: list[Tensor], random: bool) -> None:
        if _is_raw_copy(call):
            self._raw_copy(call.args["self"], call.args["src"])
            return
        rule = self._rules.get(call.func.overloadpacket)
        # Integers and booleans are rounded: only constants, read off the result, are exact.
        result: Cells | list[Cells] | str | None = None
        if rule is not None and all(t.dtype.is_floating_point for t in call.targets):
            result = rule(call)
            if not isinstance(result, str):
                for target, cells in zip(call.targets, result if isinstance(result, list) else [result], strict=True):
                    self._write(target, cells)
                return
        operands = () if _ignores_values(call.func) else inputs
        reason = None if random else self._first_unknown(operands)
        drawn = (
            random or not _is_deterministic(call.func) or any(bool((self.cells(t).draw > 0).any()) for t in operands)
        )
        for target in call.targets:
            if reason is None and not drawn and not target.is_complex():
                values = target.detach().to("cpu", torch.float64)
                draw = torch.zeros(values.shape, dtype=torch.int64)
                self._write(target, Cells(draw, torch.zeros_like(values), values))
            else:
                detail = f" ({result})" if isinstance(result, str) else ""
                default = f"is a result of {call.func}{detail}{user_line()}, whose law tpcompile does not know"
                self._write(target, self._unknown_cells(target.shape, reason or default))

    def _first_unknown(self, inputs: Sequence[Tensor]) -> str | None:
        """The reason that an input already has: the first operation that was not understood is the cause."""
        for tensor in inputs:
            draw = self.cells(tensor).draw
            if bool((draw < 0).any()):
                return self.ledger.reason(int(draw[draw < 0].reshape(-1)[0]))
        return None

    def _raw_copy(self, target: Tensor, source: Tensor) -> None:
        """A copy of all bytes of a storage (``copy.deepcopy`` of a buffer) copies its cells."""
        from_, to = self._memory(source), self._memory(target, fresh=True)
        if from_ is not None and to is not None:
            to.itemsize = from_.itemsize
            to.cells = Cells(*(part.clone() for part in from_.cells))

    def _note_read(self, tensor: Tensor, value: Any) -> None:
        """Remember ``.item()`` of a random value; arithmetic in Python on it cannot be followed."""
        if bool((self.cells(tensor).draw != 0).any()):
            self.random_reads.append(user_line().strip(" ()"))
            if isinstance(value, float) and not value.is_integer():
                self._tainted |= {value, -value, 1 / value, -1 / value}

    # -- generators ---------------------------------------------------------------------------

    def before_draw(self, generator: torch.Generator | None) -> Stretch:
        """Where in which stream the next draw of a generator is made; a reset starts a new visit."""
        generator = generator or torch.default_generator
        key, state = id(generator), _state(generator)
        if self._last_state.get(key) != state:
            self._visit_count += 1
            root, position = self._streams.setdefault(state, (len(self._streams), 0))
            self._visits[key] = Stretch(root, self._visit_count, position, position)
        return self._visits[key]

    def after_draw(self, generator: torch.Generator | None) -> None:
        """To be called after the draw that :meth:`before_draw` announced."""
        generator = generator or torch.default_generator
        key, state = id(generator), _state(generator)
        visit = self._visits[key]
        self._visits[key] = visit._replace(position=visit.position + 1)
        self._last_state[key] = state
        self._streams.setdefault(state, (visit.root, visit.position + 1))


def _state(generator: torch.Generator) -> int:
    return hash(generator.get_state().numpy().tobytes())


def _storage_key(tensor: Tensor) -> int | None:
    """Names a storage for as long as a weak reference to it is held; None without dense data."""
    if tensor.layout is not torch.strided or tensor.is_meta or tensor.is_quantized:
        return None
    try:
        return tensor.untyped_storage()._cdata
    except (NotImplementedError, RuntimeError):
        return None


def _bind(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    bound: dict[str, Any] = {}
    for i, argument in enumerate(func._schema.arguments):
        default = argument.default_value if argument.has_default_value() else None
        bound[argument.name] = args[i] if i < len(args) else kwargs.get(argument.name, default)
    return bound


def _written(func: Any) -> list[str]:
    return [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]


def _out_names(func: Any) -> list[str]:
    """Arguments whose old contents an operation does not read."""
    if func.overloadpacket in (torch.ops.aten.zero_, torch.ops.aten.fill_, torch.ops.aten.copy_):
        return ["self"]
    return [a.name for a in func._schema.arguments if a.is_out]


def _ignores_values(func: Any) -> bool:
    """``zeros_like`` and ``new_zeros`` read only the shape and the type of their argument."""
    name = func.overloadpacket.__name__
    return name.endswith("_like") or name.startswith("new_")


def _is_deterministic(func: Any) -> bool:
    """Whether constants in mean constants out; a custom operation may draw or read anything."""
    return func.namespace in ("aten", "prims") and "philox" not in func.overloadpacket.__name__


def _is_raw_copy(call: Call) -> bool:
    if call.func.overloadpacket is not torch.ops.aten.copy_:
        return False
    pair = (call.args["self"], call.args["src"])
    return all(
        t.dtype is torch.uint8 and _storage_key(t) and t.numel() == t.untyped_storage().nbytes() and t.is_contiguous()
        for t in pair
    )


def user_line() -> str:
    """`` (file.py:12)`` of the innermost frame outside PyTorch and this package, for error messages."""
    frame = sys._getframe(1)
    here = str(Path(__file__).parent)
    while frame is not None:
        file = frame.f_code.co_filename
        if not file.startswith((_TORCH, here, "<")):
            return f" ({Path(file).name}:{frame.f_lineno})"
        frame = frame.f_back
    return ""
