"""Values of a program in the notation of the Tensor Programs papers, one formula an instruction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

from tpcompile.ir import (
    Concat,
    Const,
    Contract,
    Data,
    Expand,
    Finite,
    Gather,
    Gaussian,
    Init,
    Map,
    MatMul,
    MergeWidth,
    Mul,
    Node,
    Permute,
    Scatter,
    Slice,
    SplitWidth,
    Sum,
    Unslice,
    View,
    Width,
    dims_text,
    split_spec,
)
from tpcompile.laws import Constant, Law, Normal, Orthogonal, ParameterLaw, Pieces, TruncatedNormal, Uniform

Names = Mapping[Node, str]
_LETTERS = "ijklmpqrstuvwxyzabcdefgh"  # n is the width


def symbol(node: Node, names: Names) -> str:
    """``Z%7`` for the random variable of a vector, ``%7`` for a scalar or a matrix."""
    return f"Z{names[node]}" if node.kind == "vector" else names[node]


def formula(node: Node, names: Names) -> str:
    """The value of a node from its operands, as the right side of an equation."""
    op = node.op
    x = [symbol(operand, names) for operand in node.operands]
    match op:
        case Data(name=name):
            return f"data '{name.rpartition('#')[0]}'"
        case Const(value=value):
            return number(value)
        case Init(name=name, law=law):
            return f"'{name}' ~ {law_text(law)}" if node.kind != "matrix" else f"'{name}', entries {_entries(law)}"
        case MatMul(transpose=transpose):
            return f"{x[0]}{'ᵀ' if transpose else ''} {names[node.operands[1]]}"
        case Map(fn=fn, order=order, params=params):
            return f"{function(fn, order, params)}({x[0]})"
        case Sum(coefficients=coefficients):
            return linear(coefficients, x)
        case Mul():
            return " · ".join(x)
        case Gaussian(spec=spec):
            return f"n^(-1/2) Σ_α {_einsum(spec, node.operands, [names[o] for o in node.operands])[0]}"
        case Contract(spec=spec):
            body, mean = _einsum(spec, node.operands, x)
            return f"E[{body}]" if mean else body
        case Concat(axis=axis):
            return f"({'; '.join(x)}) joined along axis {axis}"
        case View():
            return f"{x[0]} as {dims_text(node.dims)}"
        case SplitWidth(parts=parts, inner=inner):
            return f"{x[0]} in {parts} {'interleaved ' if inner else ''}blocks of its coordinates"
        case MergeWidth(inner=inner):
            return f"the {'interleaved ' if inner else ''}blocks of {x[0]} as one vector"
        case Permute(order=order):
            return f"{x[0]}ᵀ" if order == (1, 0) else f"{x[0]} with axes in the order {order}"
        case Expand():
            return f"{x[0]} repeated to {dims_text(node.dims)}"
        case Slice(axis=axis, start=start, stop=stop, step=step):
            return f"{x[0]}[{':, ' * axis}{start}:{stop}{f':{step}' if step != 1 else ''}]"
        case Unslice(axis=axis, start=start, stop=stop):
            return f"{x[0]} at {start}:{stop} of axis {axis}, zeros elsewhere"
        case Gather(axis=axis):
            return f"{x[0]}[{':, ' * axis}{x[1]}], zeros at -1"
        case Scatter(axis=axis, size=size):
            return f"{x[0]} summed at {x[1]} of axis {axis} of length {size}"
        case Finite(target=target, args=args, kwargs=kwargs, index=index):
            shown = [_argument(a, x) for a in args] + [f"{k}={_argument(v, x)}" for k, v in kwargs]
            call = f"{target.removeprefix('aten.').removesuffix('.default')}({', '.join(shown)})"
            return call if index is None else f"{call}[{index}]"
    return f"{op.mnemonic}({', '.join(x)})"


def law_text(law: ParameterLaw) -> str:
    """``N(0, 1)`` and the like: an entry without its power of n; of slices, each with its power against the largest."""
    match law:
        case Pieces(laws=laws):
            top = law.width_exponent
            each = [scaled_law(own, Fraction(own.width_exponent) - top) for own in laws]
            return f"slices of axis {law.axis}: {'; '.join(each)}"
        case Normal(std=std, mean=mean):
            return f"N({number(mean)}, {number(std**2)})"
        case Uniform(low=low, high=high):
            return f"U({number(low)}, {number(high)})"
        case TruncatedNormal(std=std, low=low, high=high, mean=mean):
            return f"N({number(mean)}, {number(std**2)}) on [{number(low)}, {number(high)}]"
        case Constant(value=value):
            return number(value)
        case Orthogonal(gain=gain):
            return f"{number(gain)} · Haar orthogonal"


def scaled_law(law: Law, exponent: Fraction) -> str:
    """A law times a power of n; zero has none."""
    text = law_text(law)
    return text if exponent == 0 or law == Constant(0.0) else f"{power(exponent)} {text}"


def power(exponent: Fraction) -> str:
    """``n^(-1/2)``, ``n``, ``1``."""
    if exponent == 0:
        return "1"
    if exponent == 1:
        return "n"
    return f"n^{exponent}" if exponent > 0 and exponent.denominator == 1 else f"n^({exponent})"


def scaled(coefficient: float, exponent: Fraction) -> str:
    """``0.3 n``, ``0.3``, ``n^(-1)``."""
    if exponent == 0 or coefficient == 0:
        return number(coefficient)
    return power(exponent) if coefficient == 1 else f"{number(coefficient)} {power(exponent)}"


def number(value: float) -> str:
    """A number in at most six digits."""
    return f"{value:.6g}"


def function(fn: str, order: int, params: Sequence[tuple[str, Any]]) -> str:
    """``tanh'``, ``leaky_relu<negative_slope=0.1>``."""
    primes = "'" * order if order < 4 else f"^({order})"
    settings = ", ".join(f"{k}={v:.6g}" if isinstance(v, float) else f"{k}={v}" for k, v in params)
    return fn + primes + (f"<{settings}>" if settings else "")


def linear(coefficients: Sequence[float], terms: Sequence[str]) -> str:
    """``%1 - 0.5 %2``."""
    out = ""
    for c, term in zip(coefficients, terms, strict=True):
        size = term if abs(c) == 1 else f"{number(abs(c))} {term}"
        sign = ("-" if c < 0 else "") if not out else (" - " if c < 0 else " + ")
        out += sign + size
    return out


def _entries(law: Law) -> str:
    return f"N(0, {number(law.std**2)}/n)" if isinstance(law, Normal) else law_text(law)


def _argument(a: Any, x: Sequence[str]) -> str:
    if isinstance(a, tuple):
        if len(a) == 2 and a[0] == "%":
            return x[int(a[1])]
        return "[" + ", ".join(_argument(b, x) for b in a) + "]"
    return str(a)


def _einsum(spec: str, operands: Sequence[Node], x: Sequence[str]) -> tuple[str, bool]:
    """An Einstein sum with an index for every finite axis, and whether it averages over the width."""
    inputs, out = split_spec(spec)
    width = {
        letter
        for word, node in zip(inputs, operands, strict=True)
        for letter, dim in zip(word, node.dims, strict=True)
        if isinstance(dim, Width)
    }
    order = [*out, *dict.fromkeys("".join(inputs))]  # output axes are named first
    finite = list(dict.fromkeys(letter for letter in order if letter not in width))
    index = dict(zip(finite, _LETTERS, strict=False))
    terms = []
    for word, name in zip(inputs, x, strict=True):
        axes = ",".join(index[letter] for letter in word if letter in index)
        terms.append(f"{name}[{axes}]" if axes else name)
    summed = "".join(index[letter] for letter in finite if letter not in out)
    body = " ".join(terms)
    return (f"Σ_{summed} {body}" if summed else body), bool(width - set(out))
