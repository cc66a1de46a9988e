"""Functions of values that grow with the width: their powers at plus and minus infinity (theory, section 3)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from tpcompile import nonlin
from tpcompile.errors import UnstableError
from tpcompile.lowering.value import HALF, Value

if TYPE_CHECKING:
    from tpcompile.lowering.functions import Functions

_FAR = (1e6, 1e8)
_MOST = 4  # the largest power that counts as one; exponentials are beyond it


def at_infinity(f: Functions, name: str, order: int, params: Mapping[str, Any], value: Value) -> Value:
    """A function of a value of size ``n**lead``, ``lead > 0``, by its leading powers on the two sides.

    tanh becomes the sign, gelu and silu the relu. Raises UnstableError where the function has no power, as exp.
    """
    a, lead = f.a, value.terms[0][0]
    sides = [_power(name, order, params, side) for side in (1.0, -1.0)]
    if any(side is None for side in sides):
        raise UnstableError(
            f"{name} of a value of size n^{lead}: the limit does not exist",
            value=name,
            step=None,
            exponent=lead,
            where=a.place,
        )
    x = a.scale(value, 1.0, -lead)
    (p, c), (q, d) = (side for side in sides if side is not None)
    if c == 0.0 and d == 0.0:  # nothing is left but what is left near zero, which few coordinates are
        return Value(value.axes, (), -lead / 2)  # n^-lead of them, in root mean square
    out = a.zeros(value.axes)
    if p == q and abs(c) == abs(d):
        out = a.scale(_symmetric(f, x, p, even=c == d), c, p * lead)
    else:
        for power, factor, part in ((p, c, x), (q, d, a.scale(x, -1.0))):
            if factor:
                out = a.add((1.0, out), (1.0, a.scale(_rectified(f, part, power), factor, power * lead)))
    largest = max(power for power, factor in ((p, c), (q, d)) if factor)
    return a.cut(out, largest * lead - min(lead if largest else lead / 2, HALF))


def _power(name: str, order: int, params: Mapping[str, Any], side: float) -> tuple[int, float] | None:
    """``(p, c)`` with ``f(side * t) ~ c t**p`` for large t; None if there is no such power."""
    near, far = (
        float(nonlin.evaluate(name, torch.tensor(side * t, dtype=torch.float64), order, **params)) for t in _FAR
    )
    if abs(far) < 1e-12:
        return (0, 0.0)
    if not (math.isfinite(near) and math.isfinite(far)) or near == 0.0 or near * far < 0:
        return None
    power = math.log(far / near) / math.log(_FAR[1] / _FAR[0])
    p = round(power)
    if abs(power - p) > 1e-3 or not 0 <= p <= _MOST:
        return None
    return p, round(far / _FAR[1] ** p, 9)


def _symmetric(f: Functions, x: Value, power: int, even: bool) -> Value:
    """``|x|**power``, times the sign of x unless even."""
    out = f.a.number(1.0, axes=x.axes) if even == (power % 2 == 0) else f.apply("sign", x)
    for _ in range(power):
        out = f.a.mul(out, x)
    return out


def _rectified(f: Functions, x: Value, power: int) -> Value:
    out = f.apply("heaviside" if power == 0 else "relu", x)
    for _ in range(power - 1):
        out = f.a.mul(out, f.apply("relu", x))
    return out
