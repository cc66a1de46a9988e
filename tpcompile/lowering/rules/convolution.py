"""Convolutions: patches are gathered, multiplied by the weight, and summed over its offsets (Einstein sums).

A weight of growing channels is an independent initial matrix for every offset. In the labels ``n`` is the batch, ``g``
the groups, ``c`` and ``o`` input and output channels of a group, ``uvw`` offsets and ``xyz`` output positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import torch

from tpcompile.capture.graph import Scaled
from tpcompile.ir import Node, Width
from tpcompile.lowering.axes import merge_finite, refactor
from tpcompile.lowering.context import Context, length
from tpcompile.lowering.gather import constant_index, put, take
from tpcompile.lowering.registry import rule
from tpcompile.lowering.value import AnyValue, Axes, Axis, MatrixValue, Value
from tpcompile.lowering.windows import Windows

_OFFSETS, _PLACES = "uvw", "xyz"


@rule("aten.convolution.default")
def convolution(
    ctx: Context,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: Any,
) -> Any:
    """``convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups)``"""
    x = ctx.value(x)
    if x.is_zero or (isinstance(weight, Value | MatrixValue) and weight.is_zero):
        out: AnyValue = ctx.filled(0)
    elif transposed:
        conv = _Convolution(ctx, weight, stride, padding, dilation, groups, ctx.result_axes()[2:], x.axes[2:])
        out = conv.back(x, weight)
    else:
        conv = _Convolution(ctx, weight, stride, padding, dilation, groups, x.axes[2:], ctx.result_axes()[2:])
        out = conv.forward(x, weight)
    if bias is None:
        return out
    return ctx.add(out, ctx.with_axes(bias, (*bias.axes, *(() for _ in stride))))


@rule("aten.convolution_backward.default")
def convolution_backward(
    ctx: Context,
    g: Any,
    x: Any,
    weight: Any,
    bias_sizes: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: Any,
    mask: Any,
) -> Any:
    """``convolution_backward(grad_output, input, weight, bias_sizes, ..., output_mask)``: of input, weight, bias"""
    g, x = ctx.value(g), ctx.value(x)
    spatial = (g.axes[2:], x.axes[2:]) if transposed else (x.axes[2:], g.axes[2:])
    conv = _Convolution(ctx, weight, stride, padding, dilation, groups, *spatial)
    if transposed:  # the roles of input and output gradient are exchanged
        of_input = conv.forward(g, weight) if mask[0] else None
        of_weight = conv.outer(x, g, weight) if mask[1] else None
    else:
        of_input = conv.back(g, weight) if mask[0] else None
        of_weight = conv.outer(g, x, weight) if mask[1] else None
    of_bias = ctx.sum(g, [0, *range(2, len(g.axes))], keepdim=False) if mask[2] else None
    return [of_input, of_weight, of_bias]


@rule("aten.im2col.default")
def im2col(ctx: Context, x: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    """``im2col(self, kernel_size, dilation, padding, stride)``: channels and offsets as one axis, positions as one"""
    x = ctx.value(x)
    windows = _image_windows(x.axes[-2:], kernel, dilation, padding, stride)
    start = len(x.axes) - 2
    patches = take(ctx, x, start, start + 2, constant_index(ctx, windows.index()))
    c, u, v, a, b = patches.axes[start - 1 :]
    return ctx.with_axes(patches, (*patches.axes[: start - 1], (*c, *u, *v), merge_finite((*a, *b))))


@rule("aten.col2im.default")
def col2im(ctx: Context, x: Any, size: Any, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Any:
    """``col2im(self, output_size, kernel_size, dilation, padding, stride)``: its adjoint"""
    x, axes = ctx.value(x), ctx.result_axes()
    windows = _image_windows(axes[-2:], kernel, dilation, padding, stride)
    index = windows.index()
    channels = _size(x.axes[-2])
    parts = [(channels[0] / (kernel[0] * kernel[1]), channels[1]), *((Fraction(k), 0) for k in kernel)]
    split = refactor((x.axes[-2],), parts, ctx.place)
    places = tuple(merge_finite([k]) for k in index.shape[2:])
    patches = ctx.with_axes(x, (*x.axes[:-2], *split, *places))
    return put(ctx, patches, len(axes) - 2, constant_index(ctx, index), axes[-2:])


def _image_windows(image: Axes, kernel: Any, dilation: Any, padding: Any, stride: Any) -> Windows:
    sizes = _lengths(image)
    reach = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    places = [(n + 2 * p - r) // s + 1 for n, p, r, s in zip(sizes, padding, reach, stride, strict=True)]
    return Windows(sizes, kernel, stride, padding, dilation, places)


class _Convolution:
    """The bilinear map of one convolution, from positions on the axes ``large`` to those on ``small``."""

    def __init__(
        self, ctx: Context, weight: Any, stride: Any, padding: Any, dilation: Any, groups: Any, large: Axes, small: Axes
    ) -> None:
        self.ctx = ctx
        self.kernel: Axes = weight.axes[2:]
        self.large, self.small = large, small
        grown = groups if isinstance(groups, Scaled) else Scaled(groups, Fraction(0))
        self.groups = (Fraction(grown.coefficient), int(grown.exponent))
        self.windows = Windows(_lengths(large), _lengths(self.kernel), stride, padding, dilation, _lengths(small))
        rank = len(large)
        self.offsets, self.places = _OFFSETS[:rank], _PLACES[:rank]

    def forward(self, x: Value, weight: AnyValue) -> Value:
        """The convolution: patches times weight."""
        patches, places = self._patches(x), self.places
        if self._stacked(weight):
            out = self.ctx.einsum(patches, f"ngc{self.offsets}{places}", weight, f"rc{self.offsets}", f"ngr{places}")
            return self._joined(self._own(self._split(out, 2)), 1)
        out = self.ctx.einsum(
            patches, f"ngc{self.offsets}{places}", self._split(weight, 0), f"goc{self.offsets}", f"ngo{places}"
        )
        return self._joined(out, 1)

    def back(self, g: Value, weight: AnyValue) -> Value:
        """Its adjoint in the input: the transposed convolution."""
        g, places = self._split(g, 1), self.places
        if self._stacked(weight):
            patches = self.ctx.einsum(
                self._spread(g), f"ngr{places}", weight, f"rc{self.offsets}", f"ngc{self.offsets}{places}"
            )
        else:
            patches = self.ctx.einsum(
                g, f"ngo{places}", self._split(weight, 0), f"goc{self.offsets}", f"ngc{self.offsets}{places}"
            )
        patches = self._joined(patches, 1)
        if self.windows.trivial:
            return self.ctx.with_axes(patches, (*patches.axes[:2], *self.large))
        return put(self.ctx, patches, 2, self._index(), self.large)

    def outer(self, g: Value, x: Value, weight: AnyValue) -> AnyValue:
        """Its adjoint in the weight."""
        g, patches, places = self._split(g, 1), self._patches(x), self.places
        if self._stacked(weight):
            return self.ctx.einsum(
                self._spread(g), f"ngr{places}", patches, f"ngc{self.offsets}{places}", f"rc{self.offsets}"
            )
        out = self.ctx.einsum(g, f"ngo{places}", patches, f"ngc{self.offsets}{places}", f"goc{self.offsets}")
        return self._joined(out, 0)

    def _stacked(self, weight: AnyValue) -> bool:
        """True for the matrices of several groups stacked in one growing axis of rows, which stays whole."""
        several = self.groups[0] > 1 and self.groups[1] == 0
        return several and isinstance(weight, MatrixValue) and len(weight.axes[0]) == 1 and not weight.is_zero

    def _own(self, x: Value) -> Value:
        """Rows of every group's own matrix, from those of all groups: axes ``n g h o`` to ``n g o``."""
        return take(self.ctx, x, 1, 3, self._diagonal())

    def _spread(self, g: Value) -> Value:
        """Its adjoint, all rows stacked: axes ``n g o`` to ``n g r``, zero in the rows of other groups."""
        return self._joined(put(self.ctx, g, 1, self._diagonal(), (g.axes[1], g.axes[1])), 2)

    def _diagonal(self) -> Node:
        count = int(self.groups[0])
        return constant_index(self.ctx, torch.arange(count) * (count + 1))

    def _patches(self, x: Value) -> Value:
        x = self._split(x, 1)
        if self.windows.trivial:
            return self.ctx.with_axes(x, (*x.axes[:3], *self.kernel, *self.small))
        return take(self.ctx, x, 3, len(x.axes), self._index())

    def _index(self) -> Node:
        return constant_index(self.ctx, self.windows.index())

    def _split(self, value: Any, dim: int) -> Any:
        """The channels at a torch axis as two: the groups, and those of a group."""
        axes = value.axes
        coefficient, power = _size(axes[dim])
        each = (coefficient / self.groups[0], power - self.groups[1])
        parts = refactor((axes[dim],), [self.groups, each], self.ctx.place)
        return self._regrouped(value, (*axes[:dim], *parts, *axes[dim + 1 :]))

    def _joined(self, value: Any, dim: int) -> Any:
        axes = value.axes
        return self._regrouped(value, (*axes[:dim], (*axes[dim], *axes[dim + 1]), *axes[dim + 2 :]))

    def _regrouped(self, value: Any, axes: Axes) -> Any:
        return (
            self.ctx.matrices.view(value, axes) if isinstance(value, MatrixValue) else self.ctx.with_axes(value, axes)
        )


def _lengths(axes: Sequence[Axis]) -> list[int]:
    return [length(a) for a in axes]


def _size(axis: Axis) -> tuple[Fraction, int]:
    coefficient, power = Fraction(1), 0
    for d in axis:
        coefficient *= d.ratio if isinstance(d, Width) else d
        power += isinstance(d, Width)
    return coefficient, power
