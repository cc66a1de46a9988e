"""What a nonlinearity is to the compiler: a record of facts about one pointwise function.

A file of this folder holds the records of one nonlinearity or family. The folder is scanned, so a
new file is all that a new nonlinearity needs; its tests and its row in the documentation follow.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import sympy as sp
from torch import Tensor

from tpcompile.nonlin.atoms import Expression

Parity: TypeAlias = Literal["even", "odd"] | None
Domain: TypeAlias = Literal["real", "positive", "nonzero", "above -1"]

Growth: TypeAlias = tuple[Any, ...]
"""Behaviour at infinity, one of

``("bounded", left, right)``            tends to ``left`` at -infinity and to ``right`` at +infinity;
``("oscillating", lower, upper)``       bounded without a limit;
``("polynomial", d, left, right)``      ~ ``left * |x|**d`` at -infinity, ~ ``right * x**d`` at +infinity;
``("logarithmic",)``                    unbounded, slower than any power;
``("exponential",)``                    faster than any power on one side at least.

The entry of a side outside the function's domain is None.
"""


class Apply(Protocol):
    """Applies the derivative of that order of a registered nonlinearity to a value of any kind."""

    def __call__(self, name: str, value: Any, /, order: int = 0, **parameters: Any) -> Any: ...


@dataclass(frozen=True, eq=False)
class Backward:
    """An ATen operation that computes ``grad * factor(saved)``.

    ``saved`` says whether the saved tensor is the nonlinearity's input or its output. ``factor(saved,
    apply, **scalars)`` uses only ``+ - *`` and numbers on ``saved``, and ``apply`` for the rest, so that it
    works on tensors and on the compiler's abstract values alike; ``scalars`` are the operation's
    non-tensor arguments by their schema names. ``flag`` is the boolean argument, with its value, that
    selects this variant of the operation (``is_result`` of ``elu_backward``); it is not handed to ``factor``.
    """

    target: str
    saved: Literal["input", "output"]
    factor: Callable[..., Any]
    flag: tuple[str, bool] | None = None


def always(value: Any) -> Callable[..., Any]:
    """The fact that holds whatever the parameters are."""
    return lambda **_: value


_EMPTY = always(())
_NONE = always(None)
_REAL = always("real")
_SMOOTH = always(math.inf)


@dataclass(frozen=True, eq=False)
class Nonlinearity:
    """One pointwise function and the facts that the compiler uses about it.

    Every callable field receives all ``parameters`` as keywords. ``derivatives`` returns torch functions
    of the derivatives of order 1, 2, ..; where it ends, and ``smoothness`` allows more, they are
    derived from ``sympy``. A function that is not infinitely smooth must give all it has.
    """

    name: str
    """Its name in the text of a program."""
    fn: Callable[..., Tensor]
    """``fn(x, **parameters)``, the torch operation itself."""
    growth: Callable[..., Growth]
    """Behaviour at infinity, see :data:`Growth`."""
    targets: tuple[str, ...] = ()
    """ATen overloads that compute it of their first tensor argument."""
    tuple_targets: tuple[str, ...] = ()
    """Those among ``targets`` that return a tuple, whose first entry is the value."""
    parameters: tuple[tuple[str, Any], ...] = ()
    """Names and defaults, in the order of the ATen schema after x."""
    sympy: Callable[..., sp.Expr] | None = None
    """``sympy(x, **parameters)`` with x a real symbol."""
    derivatives: Callable[..., Sequence[Callable[[Tensor], Tensor]]] = _EMPTY
    smoothness: Callable[..., float] = _SMOOTH
    """Highest order of a derivative that is an ordinary function, without a delta (relu 1, sign 0)."""
    kinks: Callable[..., tuple[float, ...]] = _EMPTY
    """Points where some derivative (the function itself counts) jumps."""
    parity: Callable[..., Parity] = _NONE
    homogeneity: Callable[..., float | None] = _NONE
    """The d of ``f(c x) = c**d f(x)`` for all c > 0, if there is one."""
    domain: Callable[..., Domain] = _REAL
    atoms: Callable[..., Expression | None] = _NONE
    """The function as a sum of atoms whose Gaussian expectations are closed; None if it is none (see nonlin.atoms)."""
    backward: tuple[Backward, ...] = ()
    examples: tuple[dict[str, Any], ...] = ()
    """Parameters that the generated tests try besides the defaults."""
    note: str = ""
    """What a reader of the documentation's table should know besides."""

    @property
    def defaults(self) -> dict[str, Any]:
        return dict(self.parameters)
