"""The table of operations that are linear in an operand, against the operations themselves."""

from __future__ import annotations

import pytest
import torch

from tpcompile.parametrization.effects import _ADDED

G = torch.Generator().manual_seed(0)


def rand(*shape):
    return torch.randn(*shape, generator=G, dtype=torch.float64)


I3 = torch.tensor([0, 2, 1])
SAMPLES = {
    "aten.mm.default": (rand(2, 3), rand(3, 4)),
    "aten.bmm.default": (rand(5, 2, 3), rand(5, 3, 4)),
    "aten.mv.default": (rand(2, 3), rand(3)),
    "aten.dot.default": (rand(3), rand(3)),
    "aten.mul.Tensor": (rand(2, 3), rand(3)),
    "aten.mul.Scalar": (rand(2, 3), 1.7),
    "aten.add.Tensor": (rand(2, 3), rand(2, 3)),
    "aten.sub.Tensor": (rand(2, 3), rand(2, 3)),
    "aten.addmm.default": (rand(2, 4), rand(2, 3), rand(3, 4)),
    "aten.addmv.default": (rand(2), rand(2, 3), rand(3)),
    "aten.baddbmm.default": (rand(5, 2, 4), rand(5, 2, 3), rand(5, 3, 4)),
    "aten.div.Tensor": (rand(2, 3), rand(3)),
    "aten.embedding.default": (rand(4, 3), I3),
    "aten.index.Tensor": (rand(4, 3), [I3]),
    "aten.index_select.default": (rand(4, 3), 0, I3),
    "aten.convolution.default": (rand(2, 3, 8), rand(4, 3, 3), rand(4), [1], [1], [1], False, [0], 1),
    "aten.native_layer_norm.default": (rand(2, 3), [3], rand(3), rand(3), 1e-5),
    "aten.native_group_norm.default": (rand(2, 4, 3), rand(4), rand(4), 2, 4, 3, 2, 1e-5),
    "aten.native_batch_norm.default": (rand(5, 3), rand(3), rand(3), rand(3), rand(3) ** 2, True, 0.1, 1e-5),
    "aten._native_batch_norm_legit_functional.default": (
        rand(5, 3),
        rand(3),
        rand(3),
        rand(3),
        rand(3) ** 2,
        True,
        0.1,
        1e-5,
    ),
}


def operator(name):
    _, packet, overload = name.split(".")
    return getattr(getattr(torch.ops.aten, packet), overload)


def called(name, args):
    out = operator(name)(*args)
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", sorted(_ADDED))
def test_an_operation_is_linear_once_what_is_added_is_zero(name):
    """f(a + b) = f(a) + f(b) with the added operands at zero, and f - f(added alone) where they are not."""
    for position, added in _ADDED[name].items():
        args = list(SAMPLES[name])
        if not isinstance(args[position], torch.Tensor):
            continue  # a number
        zeroed = [torch.zeros_like(x) if i in added else x for i, x in enumerate(args)]
        a, b = args[position], rand(*args[position].shape)

        def value(x, base=zeroed, position=position):
            return called(name, [x if i == position else y for i, y in enumerate(base)])

        torch.testing.assert_close(value(a + b), value(a) + value(b))
        torch.testing.assert_close(value(-2.5 * a), -2.5 * value(a))
        without = called(name, [torch.zeros_like(a) if i == position else y for i, y in enumerate(args)])
        torch.testing.assert_close(called(name, args) - without, value(a))


def test_every_operation_of_the_table_has_a_sample():
    assert set(SAMPLES) == set(_ADDED)
