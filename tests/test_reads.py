"""Moves of entries composed to one read of the source, against the moves one by one."""

from __future__ import annotations

import math
from typing import Any

import kernel_specs
import pytest
import torch
from torch import nn

import tpcompile as tp
from tpcompile.evaluate.gaussian import placed
from tpcompile.evaluate.gaussian.factored import Factoring
from tpcompile.evaluate.gaussian.order import order
from tpcompile.evaluate.gaussian.reads import ReadArray, evaluate_read
from tpcompile.evaluate.gaussian.terms import Array, DualArray, GatherArray, ReshapeArray, SumArray, Term
from tpcompile.ir import Data, Finite, Gather, Node, Permute, Slice, Sum


def windows(padding: list[int], size: int, stride: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Indices of a padded axis, and of windows of three over it (offsets first)."""
    padded = torch.tensor(padding)
    starts = torch.arange(0, len(padding) - size + 1, stride)
    return padded, torch.arange(size)[:, None] + starts


def compare(padding: list[int], stride: int) -> None:
    """A box filter along the diagonal of a kernel over 4 positions of either input."""
    source = Array((4, 4))
    padded, window = windows(padding, 3, stride)
    n, m = len(padded), window.shape[1]
    rows = GatherArray((n, 4), source, 0, padded, 0)
    both = GatherArray((n, n), rows, 1, padded, 1)
    left = GatherArray((3, m, n), both, 0, window, 0)
    right = GatherArray((3, m, 3, m), left, 2, window, 1)
    lengths = {0: 3, 1: m, 2: m}
    total = SumArray((m, m), (Term(1.0, ((right, (0, 1, 0, 2)),)),), (1, 2), lengths)
    found = Factoring(lambda _: None)(total)
    assert isinstance(found, ReadArray)
    assert found.source is source
    value = torch.randn(2, 3, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = torch.cat([value, torch.zeros(2, 3, 1, 4)], 2)
    wide = torch.cat([wide, torch.zeros(2, 3, 5, 1)], 3)  # place -1 holds zero
    at = padded[window]
    expected = sum(wide[:, :, at[s]][:, :, :, at[s]] for s in range(3))
    torch.testing.assert_close(evaluate_read(found, value), expected)


def test_a_box_filter_along_the_diagonal() -> None:
    for padding in ([-1, 0, 1, 2, 3, -1], [3, 0, 1, 2, 3, 0], [0, 1, 2, 3], [1, 0, 1, 2, 3, 2]):
        for stride in (1, 2):
            compare(padding, stride)


def test_a_sum_over_merged_axes_is_a_sum() -> None:
    source = Array((2, 3))
    flat = ReshapeArray((6,), source, (2, 3))
    found = Factoring(lambda _: None)(SumArray((), (Term(1.0, ((flat, (0,)),)),), (), {0: 6}))
    assert isinstance(found, ReadArray)
    assert found.groups is not None
    assert len(found.groups) == 1
    value = torch.arange(6.0).reshape(1, 1, 2, 3)
    torch.testing.assert_close(evaluate_read(found, value), torch.full((1, 1), 15.0))


@pytest.mark.parametrize("end", ["flatten", "mean"])
def test_tangent_kernels_need_no_larger_arrays(end: str) -> None:
    """A sum of two moved arrays is moved once: windows are never laid out, nor is a depth paid for twice."""
    spec = kernel_specs.convolutional(2, 1, "SAME", end, 3)
    kernel = tp.kernel(kernel_specs.make(spec, (6, 6, 2)), torch.zeros(6, 6, 2))
    found = {}
    for get in ("nngp", "ntk"):
        root = kernel.pairs(get).cross
        assert root is not None
        found[get] = [x for x in order([root]).reads if isinstance(x, SumArray | DualArray | ReadArray)]
    assert max(math.prod(x.sizes) for x in found["ntk"]) == max(math.prod(x.sizes) for x in found["nngp"])
    boxes = {get: sum(isinstance(x, ReadArray) and x.summed for x in arrays) for get, arrays in found.items()}
    assert boxes["ntk"] <= 2 * boxes["nngp"]


def test_moved_numbers_are_reads_of_the_input() -> None:
    """Any chain of moves is one read: the entries at its places are those of the chain executed."""
    x = Node(Data("x", (3, 4, 5)), (), (3, 4, 5), 0)
    turned = Node(Permute((2, 0, 1)), (x,), (5, 3, 4), 1)
    padding = (("%", 0), (1, 2), 0.0)
    padded = Node(Finite("aten.constant_pad_nd.default", padding, (), None, (5, 3, 7)), (turned,), (5, 3, 7), 2)
    cut = Node(Slice(0, 1, 5, 2), (padded,), (2, 3, 7), 3)
    index = torch.tensor([[0, 2, 4], [1, 3, -1]])
    places = Node(Data("index", (2, 3)), (), (2, 3), 4)
    windows = Node(Gather(2), (cut, places), (2, 3, 2, 3), 5)
    found = placed.moved(windows, lambda node: index if node is places else None)
    assert found is not None
    source, axes = found
    assert source is x
    value = torch.randn(3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    wide = torch.nn.functional.pad(value, (0, 1, 0, 1, 0, 1))  # place -1 holds zero
    at = [i.reshape([n if d in where else 1 for d, n in enumerate((2, 3, 2, 3))]) for i, where in axes]
    shifted = torch.nn.functional.pad(value.permute(2, 0, 1), (1, 2))[1:5:2]
    expected = torch.nn.functional.pad(shifted, (0, 1))[..., index]
    torch.testing.assert_close(wide[tuple(at)], expected, rtol=0, atol=0)
    assert placed.moved(Node(Sum((2.0,)), (cut,), (2, 3, 7), 6), lambda _: None) is None


@pytest.mark.parametrize(
    ("options", "end"),
    [
        ({"padding": 1}, "flatten"),
        ({"padding": 2, "dilation": 2}, "flatten"),
        ({"padding": 1, "padding_mode": "circular"}, "mean"),
        ({"stride": 2}, "flatten"),
    ],
)
def test_windows_are_multiplied_once(options: dict[str, Any], end: str) -> None:
    """First layers, with inputs last in memory and without, against sums over laid out windows."""
    x = torch.randn(40, 2, 7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def make(width: int) -> nn.Module:
        first, last = nn.Conv2d(2, width, 3, bias=False, **options), nn.LazyLinear(1, bias=False)
        nn.init.normal_(first.weight)
        pool = nn.Flatten() if end == "flatten" else nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
        model = nn.Sequential(first, pool, last)
        with torch.no_grad():
            model(x[:1].float())
            last.weight.normal_(std=last.in_features**-0.5)
        return model

    kernel = tp.kernel(make, x[0].float())
    mode = "circular" if "padding_mode" in options else "constant"
    side = options.get("padding", 0)
    wide = torch.nn.functional.pad(x, (side,) * 4, mode=mode)
    windows = torch.nn.functional.unfold(
        wide, 3, dilation=options.get("dilation", 1), stride=options.get("stride", 1)
    )  # (N, 18, P)
    over = "aip,bip->ab" if end == "flatten" else "aip,biq->ab"
    count = windows.shape[2] ** (1 if end == "flatten" else 2)
    expected = torch.einsum(over, windows, windows) / count
    for block in (None, 3):
        torch.testing.assert_close(kernel.nngp(x, block=block), expected, rtol=1e-12, atol=1e-12)
