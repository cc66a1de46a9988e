"""What all instructions have in common."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from tpcompile.errors import ProgramError
from tpcompile.ir.types import Dims, broadcast, dims_text


@dataclass(frozen=True)
class Op:
    """Base of all instructions. Traits: ``pointwise`` acts coordinate by coordinate, ``linear`` in each operand."""

    mnemonic: ClassVar[str]
    pointwise: ClassVar[bool] = False
    linear: ClassVar[bool] = False

    def infer(self, operands: tuple[Dims, ...]) -> Dims:
        """Axes of the value; ProgramError if the operands do not fit."""
        raise NotImplementedError


def expect(condition: bool, op: Op, what: str, operands: tuple[Dims, ...]) -> None:
    """ProgramError unless the condition holds."""
    if not condition:
        found = " ".join(dims_text(d) for d in operands)
        raise ProgramError(f"{op.mnemonic}: expected {what}, found {found or 'no operands'}")


def broadcast_dims(op: Op, operands: tuple[Dims, ...]) -> Dims:
    """Axes of operands that broadcast; ProgramError if they do not."""
    try:
        dims = broadcast(*operands)
    except ValueError:
        dims = None
    expect(dims is not None, op, "operands that broadcast", operands)
    assert dims is not None
    return dims
