"""GPT-2 of Hugging Face transformers, unedited, with AdamW: verdicts that theory knows."""

from __future__ import annotations

import pytest

pytest.importorskip("transformers", reason="transformers is an extra of the tests")

from gpt2 import LABELS, TOKENS, gpt2, loss

import tpcompile as tp


def test_initial_values_of_one_standard_deviation_at_all_widths_blow_up():
    """The default of transformers: 0.02 whatever the width."""
    report = tp.verify(gpt2(1, std=0.02), TOKENS, LABELS, loss, steps=1, advice=False)
    assert report.verdict == "unstable"
    assert "c_attn" in str(report.first_problem)
    assert report.exponent("gpt.transformer.h.0.attn.c_attn", step=0) == 0.5


def test_small_embeddings_drown_in_the_epsilon_of_layer_norm():
    """Entries of n^(-1/2) have a variance of 1/n, far below the constant epsilon: LayerNorm does not restore them."""
    report = tp.verify(gpt2(2), TOKENS, LABELS, loss, steps=1, advice=False)
    for name in ("wte", "h.0.ln_1", "h.0.attn.c_attn", "h.1.mlp.c_fc"):
        assert report.exponent(f"gpt.transformer.{name}", step=0) == -0.5


def test_embeddings_of_order_one_tied_to_the_readout():
    """Every layer is then of order one, and a token's own logit, its embedding times itself, grows like n."""
    report = tp.verify(gpt2(2, embedding=True), TOKENS, LABELS, loss, steps=1, advice=False)
    for name in ("wte", "h.0.attn.c_attn", "h.0.mlp.c_fc", "h.1.attn.c_proj", "ln_f"):
        assert report.exponent(f"gpt.transformer.{name}", step=0) == 0
    assert report.exponent("gpt.lm_head", step=0) == 1
    assert report.verdict == "unstable"


@pytest.mark.slow
@pytest.mark.parametrize("layers", [4, 12])
def test_the_advice_for_deep_networks_is_verified(layers):
    """As for two layers: 1/d in place of 1/sqrt(d) in every layer, found for all of them at once."""
    report = tp.verify(gpt2(layers), TOKENS, LABELS, loss, steps=2)
    assert report.verdict == "unstable"
    assert report.advised == "maximal update"
    (factors,) = (line for line in report.advice if "1/d for 1/sqrt(d)" in line)
    assert factors.count("gpt.transformer.h.") == layers
