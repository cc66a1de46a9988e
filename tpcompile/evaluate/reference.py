"""The program at finite width, on the model's own weights: the test of every lowering rule."""

from __future__ import annotations

import math
from collections.abc import Mapping
from fractions import Fraction

import torch
from torch import Tensor

from tpcompile.analysis.semantics import execute
from tpcompile.errors import EvaluationError
from tpcompile.ir import Contract, Data, Dims, Init, MatMul, Node, Program, Width, width_positions


def run(
    program: Program, weights: Mapping[str, Tensor], width: int, dtype: torch.dtype = torch.float64
) -> dict[Node, Tensor]:
    """Every node's value of a program that was lowered at ``width``, from actual weights.

    Such a program has each power of n as a number, so its outputs equal the traced graph's to rounding.
    """
    values: dict[Node, Tensor] = {}

    def length(w: Width) -> int:
        n = w.ratio * width
        if n.denominator != 1:
            raise EvaluationError(f"width {width} does not divide into axes of {w}")
        return int(n)

    for node in program.nodes:
        op = node.op
        x = [values[y] for y in node.operands]
        match op:
            case Data(name=name):
                tensor = program.data[name]
                values[node] = tensor.to(dtype) if tensor.is_floating_point() else tensor
            case Init(name=name):
                values[node] = (
                    weights[name].to(dtype).reshape(tuple(length(d) if isinstance(d, Width) else d for d in node.dims))
                )
            case MatMul(transpose=transpose):
                values[node] = _product(x[0], node.operands[0].dims, x[1], node.dims, transpose)
            case Contract():
                summed = op.contracted_widths(tuple(y.dims for y in node.operands))
                scale = math.prod(1.0 / float(w.ratio * Fraction(width)) for w in summed)
                values[node] = execute(op, x, node.dims, length, dtype) * scale
            case _:
                values[node] = execute(op, x, node.dims, length, dtype)
    return values


def _product(matrix: Tensor, matrix_dims: Dims, x: Tensor, dims: Dims, transpose: bool) -> Tensor:
    """``W_f x[f]`` for every index f of the matrix's finite axes."""
    rows, columns = width_positions(matrix_dims)
    matrix = torch.movedim(matrix, (columns, rows) if transpose else (rows, columns), (-2, -1))
    (axis,) = width_positions(dims)
    moved = torch.movedim(x, axis, -1)
    batch = matrix.shape[:-2]
    product = moved.reshape(*batch, -1, matrix.shape[-1]) @ matrix.mT
    return torch.movedim(product.reshape(*moved.shape[:-1], matrix.shape[-2]), -1, axis)
