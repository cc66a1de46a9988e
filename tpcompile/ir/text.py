"""The text form of a program, and its parser.

One line a value::

    %7 = tanh' %6 : [3, n] @ module 'hidden.1', step 0
    %8 = matmul<transpose=False> %2 %7 : [3, n]
    %9 = sum 1.0*%8 + -0.5*%4 : [3, n]
    output loss/0 = n^0 %12 + O(n^-1/2) : []
    data 'inputs#1f' float64 (3, 4) <base64>

What follows ``;`` is comment. Pointwise functions stand under their own name, a prime for each
derivative. Exponents are exact, numbers are printed so that they read back bit for bit.
"""

from __future__ import annotations

import ast
import base64
import dataclasses
import re
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

import numpy as np
import torch

from tpcompile import laws
from tpcompile.errors import ProgramError
from tpcompile.ir.op import Op
from tpcompile.ir.ops import OPS, Map, Sum
from tpcompile.ir.program import Builder, Node, Output, Program
from tpcompile.ir.types import Dims, dims_text, parse_dims

_LAWS = {cls.__name__: cls for cls in (laws.Normal, laws.Uniform, laws.TruncatedNormal, laws.Constant, laws.Orthogonal)}


def format_program(program: Program, comment: Callable[[Node], str] | None = None, data: bool = True) -> str:
    """The text of a program; ``comment`` adds a remark to each value, ``data=False`` leaves the tensors out."""
    names = program.names()
    lines = ["program"]
    for node in program.nodes:
        remark = comment(node) if comment else ""
        lines.append(format_node(program, node, names) + (f"  ; {remark}" if remark else ""))
    lines += [_format_output(name, output, names) for name, output in program.outputs.items()]
    if data:
        lines += [_format_data(name, tensor) for name, tensor in program.data.items()]
    return "\n".join(lines) + "\n"


def format_node(program: Program, node: Node, names: Mapping[Node, str]) -> str:
    """One value as a line of text."""
    op = node.op
    operands = [names[x] for x in node.operands]
    if isinstance(op, Sum):
        body = "sum " + " + ".join(f"{c!r}*{x}" for c, x in zip(op.coefficients, operands, strict=True))
    elif isinstance(op, Map):
        primes = "'" * op.order if op.order < 4 else f"^({op.order})"
        body = op.fn + primes + _attributes(dict(op.params)) + " " + " ".join(operands)
    else:
        fields = {f.name: getattr(op, f.name) for f in dataclasses.fields(op) if f.name != "dims"}
        body = " ".join([op.mnemonic + _attributes(fields), *operands])
    origin = program.origins.get(node)
    return f"{names[node]} = {body} : {dims_text(node.dims)}" + (f" @ {origin}" if origin else "")


def _attributes(fields: Mapping[str, Any]) -> str:
    return "<" + ", ".join(f"{k}={_literal(v)}" for k, v in fields.items()) + ">" if fields else ""


def _literal(value: Any) -> str:
    if isinstance(value, float) and not np.isfinite(value):
        return f"float('{value}')"
    if isinstance(value, Fraction):
        return f"Fraction('{value}')"
    if isinstance(value, torch.dtype):
        return f"dtype('{str(value).removeprefix('torch.')}')"
    if isinstance(value, tuple):
        return "(" + "".join(_literal(v) + ", " for v in value) + ")"
    if dataclasses.is_dataclass(value):
        fields = ((f.name, getattr(value, f.name)) for f in dataclasses.fields(value))
        return type(value).__name__ + "(" + ", ".join(f"{k}={_literal(v)}" for k, v in fields) + ")"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    raise ProgramError(f"an attribute of type {type(value).__name__} has no text form")


def _format_output(name: str, output: Output, names: Mapping[Node, str]) -> str:
    terms = [f"n^{e} {names[node]}" for e, node in output.terms]
    if output.remainder is not None:
        terms.append(f"O(n^{output.remainder})")
    return f"output {name} = {' + '.join(terms) or '0'} : {dims_text(output.shape)}"


def _format_data(name: str, tensor: torch.Tensor) -> str:
    dtype = str(tensor.dtype).removeprefix("torch.")
    raw = base64.b64encode(tensor.cpu().contiguous().numpy().tobytes()).decode()
    return f"data {name!r} {dtype} {tuple(tensor.shape)} <{raw}>"


_NODE = re.compile(r"%(\d+) = ([\w]+(?:'+|\^\(\d+\))?)(?:<(.*)>)?((?: .*?)?) : (\[[^\]]*\])(?: @ (.*))?$")
_OUTPUT = re.compile(r"output (\S+) = (.*) : (\[[^\]]*\])$")
_DATA = re.compile(r"data ('.*') (\w+) (\(.*\)) <(.*)>$")


def parse(text: str) -> Program:
    """Read a program from its text; ProgramError with the line number where it does not parse."""
    builder = Builder()
    nodes: list[Node] = []
    outputs: dict[str, Output] = {}
    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.split("  ;")[0].strip()
        if not line or line == "program" or line.startswith(";"):
            continue
        try:
            if match := _NODE.match(line):
                if int(match[1]) != len(nodes):
                    raise ProgramError(f"expected %{len(nodes)}, found %{match[1]}")
                nodes.append(_parse_node(builder, nodes, match))
            elif match := _OUTPUT.match(line):
                outputs[match[1]] = _parse_output(match, nodes)
            elif match := _DATA.match(line):
                builder.data[ast.literal_eval(match[1])] = _parse_data(match)
            else:
                raise ProgramError("expected a value, an output or data")
        except ProgramError as error:
            raise ProgramError(error.what, where=f"line {number}: {line[:80]}") from error
        except (ValueError, SyntaxError, IndexError, TypeError, KeyError, AttributeError) as error:
            raise ProgramError(f"cannot read this line ({error})", where=f"line {number}: {line[:80]}") from error
    return Program(tuple(nodes), outputs, builder.data, builder.origins)


def _parse_node(builder: Builder, nodes: list[Node], match: re.Match[str]) -> Node:
    mnemonic, attributes, body = match[2], _parse_attributes(match[3] or ""), match[4].strip()
    dims = parse_dims(match[5])
    operands = [nodes[int(i)] for i in re.findall(r"%(\d+)", body)]
    builder.origin = match[6] or ""
    if mnemonic == "sum":
        op: Op = Sum(tuple(float(c) for c in re.findall(r"(\S+)\*%", body)))
    elif mnemonic in OPS:
        cls = OPS[mnemonic]
        if any(f.name == "dims" for f in dataclasses.fields(cls)):
            attributes["dims"] = dims
        op = cls(**attributes)
    else:
        name, order = _parse_function(mnemonic)
        op = Map(name, order, tuple(attributes.items()))
    node = builder.node(op, *operands)
    if node.dims != dims:
        raise ProgramError(f"expected axes {dims_text(node.dims)}, found {dims_text(dims)}")
    return node


def _parse_function(mnemonic: str) -> tuple[str, int]:
    if mnemonic.endswith(")"):
        name, _, order = mnemonic.partition("^(")
        return name, int(order[:-1])
    name = mnemonic.rstrip("'")
    return name, len(mnemonic) - len(name)


def _parse_attributes(text: str) -> dict[str, Any]:
    call = ast.parse(f"f({text})", mode="eval").body
    assert isinstance(call, ast.Call)
    return {str(k.arg): _value(k.value) for k in call.keywords}


def _value(node: ast.expr) -> Any:
    if isinstance(node, ast.Tuple):
        return tuple(_value(x) for x in node.elts)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        args = [_value(x) for x in node.args]
        match node.func.id:
            case "Fraction":
                return Fraction(*args)
            case "float":
                return float(*args)
            case "dtype":
                return getattr(torch, args[0])
            case name if name in _LAWS:
                return _LAWS[name](**{str(k.arg): _value(k.value) for k in node.keywords})
            case name:
                raise ProgramError(f"'{name}' is no attribute type")
    return ast.literal_eval(node)


def _parse_output(match: re.Match[str], nodes: list[Node]) -> Output:
    terms = tuple((Fraction(e), nodes[int(i)]) for e, i in re.findall(r"n\^(\S+) %(\d+)", match[2]))
    remainder = re.search(r"O\(n\^(\S+)\)", match[2])
    shape: Dims = parse_dims(match[3])
    return Output(terms, Fraction(remainder[1]) if remainder else None, shape)


def _parse_data(match: re.Match[str]) -> torch.Tensor:
    dtype = getattr(torch, match[2])
    shape = ast.literal_eval(match[3])
    raw = np.frombuffer(base64.b64decode(match[4]), dtype=torch.empty(0, dtype=dtype).numpy().dtype)
    return torch.from_numpy(raw.copy()).reshape(shape)
