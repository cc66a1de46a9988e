"""The ledger of random draws: who drew what, and which tensor entries depend on which draw.

Every entry of a watched tensor is a *cell* ``shift + scale * draw``. A draw is named by a positive
integer; 0 names "no draw" (the cell is the constant ``shift``), and a negative integer names the reason
why the cell's law is unknown. Cells are kept per entry, so independence is looked up, not assumed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tpcompile.capture.pieces import made_alike, read_pieces
from tpcompile.laws import Constant, Law, Normal, Orthogonal, ParameterLaw, TruncatedNormal, Uniform

ROUNDING = 1e-12  # two numbers computed in double precision in different orders are equal up to this
MAX_PARENTS = 16  # a draw made of more draws than this is not followed further


class Cells(NamedTuple):
    """Three tensors of one shape: draw (int64), scale and shift (float64) of every entry."""

    draw: Tensor
    scale: Tensor
    shift: Tensor


@dataclass(frozen=True)
class QFactor:
    """Entries of the Q of a QR decomposition of a Gaussian matrix; ``r_start`` is the first draw of its R."""

    columns: int
    r_start: int
    r_columns: int


@dataclass(frozen=True)
class RFactor:
    """Entries of the R of a QR decomposition of a Gaussian matrix."""


@dataclass(frozen=True)
class SignOfR:
    """Signs of entries of an :class:`RFactor`."""


BaseLaw = Law | QFactor | RFactor | SignOfR


class Stretch(NamedTuple):
    """Where in a generator's stream a draw was made.

    ``root`` names the stream, ``visit`` changes whenever the generator is reset, ``start`` is the
    position at which the visit began and ``position`` that of the draw.
    """

    root: int
    visit: int
    start: int
    position: int

    def repeats(self, other: Stretch) -> bool:
        """True if a reset of the generator may have made the two draws from the same random bits."""
        if self.root != other.root or self.visit == other.visit:
            return False
        return self.position >= other.start and other.position >= self.start


@dataclass(frozen=True)
class Group:
    """Draws ``start .. start + count - 1``, made by one call, with one law.

    ``parents`` (count, k) are the primitive draws (0 for none) that a derived draw is a function of;
    None for primitive draws. ``uses`` are groups of which every draw depends as a whole.
    """

    start: int
    law: BaseLaw
    values: Tensor  # float64 (count,), what was drawn: to notice changes behind our back
    shape: tuple[int, ...]
    parents: Tensor | None
    uses: frozenset[int]
    stretch: Stretch | None


class Footprint(NamedTuple):
    """What a tensor depends on: primitive draws, their groups, and groups that it depends on as a whole."""

    primitives: Tensor
    groups: frozenset[int]
    uses: frozenset[int]


class Ledger:
    """All draws of one run of the factory."""

    def __init__(self) -> None:
        self.groups: list[Group] = []
        self._starts: list[int] = []
        self._next = 1
        self._reasons: list[str] = []
        self._reason_index: dict[str, int] = {}

    # -- writing ------------------------------------------------------------------------------

    def add(
        self,
        law: BaseLaw,
        values: Tensor,
        *,
        parents: Tensor | None = None,
        uses: Iterable[int] = (),
        stretch: Stretch | None = None,
    ) -> Tensor:
        """Enter one draw per entry of ``values``; returns their names, shape of ``values``."""
        flat = values.detach().to("cpu", torch.float64).reshape(-1).clone()
        start = self._next
        self._next += flat.numel()
        self._starts.append(start)
        self.groups.append(Group(start, law, flat, tuple(values.shape), parents, frozenset(uses), stretch))
        return torch.arange(start, self._next).reshape(values.shape)

    def unknown(self, reason: str) -> int:
        """The negative name of a reason."""
        if reason not in self._reason_index:
            self._reasons.append(reason)
            self._reason_index[reason] = -len(self._reasons)
        return self._reason_index[reason]

    # -- looking up ---------------------------------------------------------------------------

    def reason(self, name: int) -> str:
        return self._reasons[-name - 1]

    def group_index(self, draw: Tensor) -> Tensor:
        """Index of the group of every (positive) draw."""
        return torch.searchsorted(torch.tensor(self._starts), draw.contiguous(), right=True) - 1

    def single_group(self, cells: Cells) -> tuple[Group, float, float] | None:
        """The group, scale and shift that all cells have in common, or None."""
        if cells.draw.numel() == 0 or bool((cells.draw <= 0).any()):
            return None
        index = self.group_index(cells.draw)
        for part in (index, cells.scale, cells.shift):
            if bool((part != part.reshape(-1)[0]).any()):
                return None
        group = self.groups[int(index.reshape(-1)[0])]
        return group, float(cells.scale.reshape(-1)[0]), float(cells.shift.reshape(-1)[0])

    def values(self, draw: Tensor) -> Tensor:
        """What was drawn, for a flat tensor of draws (0 and unknown give 0)."""
        out = torch.zeros(draw.shape, dtype=torch.float64)
        known = draw > 0
        index = torch.where(known, self.group_index(draw), -1)
        for i in index.unique().tolist():
            if i >= 0:
                at = index == i
                out[at] = self.groups[i].values[draw[at] - self.groups[i].start]
        return out

    def primitives(self, draw: Tensor) -> Tensor | None:
        """Primitive draws (numel, k), padded with 0, that each of a flat tensor of draws is a function of.

        None if they are too many to follow.
        """
        index = torch.where(draw > 0, self.group_index(draw), -1)
        present = index.unique().tolist()
        width = 1
        for i in present:
            parents = self.groups[i].parents if i >= 0 else None
            width = max(width, 1 if parents is None else parents.shape[1])
        if width > MAX_PARENTS:
            return None
        out = torch.zeros((draw.numel(), width), dtype=torch.int64)
        for i in present:
            if i < 0:
                continue
            at, group = index == i, self.groups[i]
            if group.parents is None:
                out[at, 0] = draw[at]
            else:
                out[at, : group.parents.shape[1]] = group.parents[draw[at] - group.start]
        return out

    def uses(self, draw: Tensor) -> frozenset[int]:
        """Groups that draws of a flat tensor depend on as a whole."""
        present = self.group_index(draw[draw > 0]).unique().tolist()
        return frozenset().union(*(self.groups[i].uses for i in present))

    def footprint(self, draw: Tensor) -> Footprint | None:
        """All that a flat tensor of draws depends on; None if it is too much to follow."""
        draw = draw[draw > 0]
        primitives = self.primitives(draw)
        if primitives is None:
            return None
        primitives = primitives[primitives > 0]
        return Footprint(primitives, frozenset(self.group_index(primitives).unique().tolist()), self.uses(draw))

    def _repeat(self, first: frozenset[int], second: frozenset[int]) -> bool:
        for i in first:
            for j in second:
                a, b = self.groups[i].stretch, self.groups[j].stretch
                if i != j and a is not None and b is not None and a.repeats(b):
                    return True
        return False

    def dependence(self, first: Footprint | None, second: Footprint | None) -> str | None:
        """Why two tensors are not independent of each other, or None if they are."""
        if first is None or second is None:
            return "are sums of too many draws to follow"
        if first.groups & second.groups and bool(torch.isin(first.primitives, second.primitives).any()):
            return "share one random draw"
        if first.uses & second.groups or second.uses & first.groups or first.uses & second.uses:
            return "are computed from one random draw"
        if self._repeat(first.groups | first.uses, second.groups | second.uses):
            return "are drawn from the same random bits, since the generator was reset (manual_seed)"
        return None

    # -- reading a law ------------------------------------------------------------------------

    def read(self, cells: Cells, actual: Tensor) -> ParameterLaw | str:
        """The law of a tensor's entries, or why it has none: a predicate, as in "is never written".

        ``cells`` has the shape of ``actual``, the tensor itself.
        """
        law = self._one_law(cells, actual)
        if not isinstance(law, str) or not actual.ndim or bool((cells.draw < 0).any()):
            return law
        random = cells.draw[cells.draw > 0]
        if random.numel() and self._shared(random) is not None:
            return law

        def part(axis: int, start: int, end: int) -> Law | str:
            narrow = lambda x: x.narrow(axis, start, end - start)
            return self._one_law(Cells(*map(narrow, cells)), narrow(actual))

        group = self.group_index(cells.draw.clamp(min=1).reshape(-1)).reshape(cells.draw.shape)
        return read_pieces(made_alike(cells.draw, group, cells.scale, cells.shift), part) or law

    def _one_law(self, cells: Cells, actual: Tensor) -> Law | str:
        draw, scale, shift = (part.reshape(-1) for part in cells)
        if draw.numel() == 0:
            return Constant(0.0)
        if bool((draw < 0).any()):
            return self.reason(int(draw[draw < 0][0]))
        if not _agrees(shift + scale * self.values(draw), actual):
            return "was changed in a way that tpcompile did not see (through NumPy, or a custom kernel)"
        if bool((draw == 0).all()):
            low, high = float(shift.min()), float(shift.max())
            if not _close(low, high, max(abs(low), abs(high))):
                return f"has constant entries that differ (from {low:.6g} to {high:.6g})"
            return Constant(low)
        if bool((draw == 0).any()):
            share = float((draw == 0).double().mean())
            return (
                f"has entries of different laws: {share:.1%} of them are constants, the others random; only slices of "
                "one axis may have laws of their own"
            )
        if (shared := self._shared(draw)) is not None:
            return shared
        index = self.group_index(draw)
        laws: list[Law] = []
        key = torch.stack([index.double(), scale, shift], dim=1)
        alike = bool((key == key[0]).all())  # the usual case, without the slow search for distinct rows
        for i, s, t in (key[:1] if alike else torch.unique(key, dim=0)).tolist():
            law = _affine(self.groups[int(i)].law, s, t)
            if isinstance(law, str):
                return law
            if laws and not _same(laws[0], law):
                return f"has entries of different laws, such as {laws[0]} and {law}"
            if not laws:
                laws.append(law)
        if isinstance(laws[0], Orthogonal):
            return self._whole_orthogonal(laws[0], cells, index)
        return laws[0]

    def _whole_orthogonal(self, law: Orthogonal, cells: Cells, index: Tensor) -> Law | str:
        draw = cells.draw
        group = self.groups[int(index[0])]
        names = torch.arange(group.start, group.start + group.values.numel()).reshape(group.shape)
        rows = draw.reshape(draw.shape[0], -1) if draw.ndim else draw.reshape(1, 1)
        one_sign = bool((cells.scale == cells.scale.reshape(-1)[0]).all())
        if one_sign and any(m.shape == rows.shape and bool((m == rows).all()) for m in (names, names.T)):
            return law
        return "is a part or a rearrangement of orthogonal matrices"

    def _shared(self, draw: Tensor) -> str | None:
        """Why the entries of one tensor share randomness, or None. Orthogonal matrices count as one draw."""
        footprint = self.footprint(draw)
        if footprint is None:
            return "is a sum of too many draws to follow"
        if footprint.primitives.unique().numel() != footprint.primitives.numel():
            return "has entries that share a random draw, so they are not independent"
        if self._repeat(footprint.groups, footprint.groups):
            return "has entries drawn from the same random bits, since the generator was reset (manual_seed)"
        return None


def _agrees(expected: Tensor, actual: Tensor) -> bool:
    """Up to rounding at single precision: constants may come from float32 even in a float64 tensor."""
    eps = torch.finfo(torch.float32).eps
    if actual.dtype.is_floating_point:
        eps = max(eps, torch.finfo(actual.dtype).eps)
    flat = actual.detach().to("cpu", torch.float64).reshape(-1)
    size = float(expected.abs().nan_to_num(posinf=0.0).max())
    return torch.allclose(flat, expected, rtol=4 * math.sqrt(eps), atol=4 * eps * size, equal_nan=True)


def _close(a: float, b: float, size: float) -> bool:
    return a == b or abs(a - b) <= ROUNDING * size


def _affine(law: BaseLaw, scale: float, shift: float) -> Law | str:
    """The law of ``shift + scale * x`` for x of ``law``."""
    match law:
        case Normal(std=std, mean=mean):
            mean = shift + scale * mean
            return Normal(abs(scale) * std, _snap(mean, abs(scale) * std))
        case Uniform(low=low, high=high):
            low, high = sorted((shift + scale * low, shift + scale * high))
            return Uniform(*_symmetric(low, high))
        case TruncatedNormal(std=std, low=low, high=high, mean=mean):
            low, high = sorted((shift + scale * low, shift + scale * high))
            low, high = _symmetric(low, high)
            return TruncatedNormal(abs(scale) * std, low, high, _snap(shift + scale * mean, abs(scale) * std))
        case Orthogonal(gain=gain) if shift == 0:
            return Orthogonal(abs(scale) * gain)
        case QFactor():
            return "is the Q of a QR decomposition without the sign correction (Q * sign(diag(R))) that makes it Haar"
    return f"is computed from the entries of a random matrix ({type(law).__name__})"


def _snap(mean: float, size: float) -> float:
    """A mean that is the rounding error of sums of the size of the spread is zero."""
    return 0.0 if abs(mean) <= ROUNDING * size else mean


def _symmetric(low: float, high: float) -> tuple[float, float]:
    """Bounds that are opposite up to rounding made exactly opposite: symmetry decides limits."""
    return (-high, high) if abs(low + high) <= ROUNDING * (high - low) else (low, high)


def _same(first: Law, second: Law) -> bool:
    a, b = vars(first), vars(second)
    if type(first) is not type(second):
        return False
    size = max(abs(float(v)) for v in (*a.values(), *b.values()))
    return all(_close(float(a[k]), float(b[k]), size) for k in a)
