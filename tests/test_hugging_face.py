"""Real models verify without edits: in Table 3 of Tensor Programs V, with attention over d, they are maximal."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="transformers is an extra of the tests")

from hugging_face import MODELS, loss, maximal

import tpcompile as tp

DEFAULT = ("Phi3", "GPTNeoX", "CLIPText")  # each needed something of its own to be traced


def verified(name: str, steps: int = 2):
    model = MODELS[name]
    return tp.verify(maximal(model), *model.data, loss, steps=steps, advice=False)


@pytest.mark.parametrize("name", DEFAULT)
def test_quick_ones(name):
    report = verified(name)
    assert report.verdict == "maximal update", report.first_problem
    assert not report.undecided


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_table_3(name):
    report = verified(name)
    assert report.verdict == "maximal update", report.first_problem
    assert not report.undecided
