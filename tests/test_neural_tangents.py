"""``tp.kernel`` against neural-tangents 0.6.5, whose answers ``tests/benchmarks/nt_worker.py golden`` has written down.

Bounds are relative to the largest entry. Of the tangent kernel they are wider because the other library loses half of
the digits there at correlations of one (a square root of rounding errors); it has no number at all for rectified
monomials at correlations of one.
"""

from __future__ import annotations

from pathlib import Path

import kernel_specs
import numpy as np
import pytest
import torch

import tpcompile as tp

GOLDEN = np.load(Path(__file__).parent / "golden" / "neural_tangents.npz")


@pytest.mark.parametrize("name", list(kernel_specs.SPECS))
def test_agreement(name: str) -> None:
    spec = kernel_specs.SPECS[name]
    x = kernel_specs.inputs(spec)
    kernel = tp.kernel(kernel_specs.make(spec), torch.from_numpy(x[0]).float())
    assert kernel.nngp_exponent == kernel.ntk_exponent == 0
    found = kernel(x)
    assert not kernel.sampled
    for get, bound in (("nngp", 1e-12), ("ntk", 1e-7)):
        wanted = GOLDEN[f"{name}/{get}"]
        known = np.isfinite(wanted)
        assert known.all() or (name == "rectified, depth 1" and known[~np.eye(len(x), dtype=bool)].all())
        assert np.isfinite(getattr(found, get)).all()
        distance = np.abs(getattr(found, get) - wanted)[known].max()
        assert distance <= bound * np.abs(wanted[known]).max(), f"{get}: {distance}"


def test_golden_file_is_complete() -> None:
    assert {name.rsplit("/", 1)[0] for name in GOLDEN.files} == set(kernel_specs.SPECS)
