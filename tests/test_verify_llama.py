"""Llama and its like of Hugging Face transformers, unedited: rotary frequencies are a buffer of growing length."""

from __future__ import annotations

import pytest
import torch
from torch import nn

pytest.importorskip("transformers", reason="transformers is an extra of the tests")

import transformers
from gpt2 import LABELS, TOKENS, VOCABULARY, loss

import tpcompile as tp


class Logits(nn.Module):
    """The model as a function from tokens to logits, of standard deviation n^(-1/2) of its weights."""

    def __init__(self, name: str, n: int) -> None:
        super().__init__()
        config = getattr(transformers, f"{name}Config")(
            vocab_size=VOCABULARY, hidden_size=n, intermediate_size=2 * n, num_hidden_layers=1, head_dim=n // 4,
            num_attention_heads=4, num_key_value_heads=2, initializer_range=n**-0.5, pad_token_id=0, bos_token_id=0,
            eos_token_id=0,
        )  # fmt: skip
        self.lm = getattr(transformers, f"{name}ForCausalLM")(config)

    def forward(self, tokens):
        return self.lm(tokens, use_cache=False).logits


def maximal(name: str, divided: bool):
    """Table 3 of Tensor Programs V; attention with 1/d where ``divided``."""

    def make(n: int):
        model = Logits(name, n)
        nn.init.normal_(model.lm.model.embed_tokens.weight)
        nn.init.normal_(model.lm.lm_head.weight, std=1 / n)
        for layer in model.lm.model.layers if divided else ():
            layer.self_attn.scaling = 4 / n
        hidden = [p for k, p in model.named_parameters() if p.ndim == 2 and "embed" not in k]
        vectors = [p for k, p in model.named_parameters() if p.ndim == 1 or "embed" in k]
        groups = [{"params": hidden, "lr": 0.01 / n}, {"params": vectors, "lr": 0.01}]
        return model, torch.optim.AdamW(groups, eps=1e-8 / n, weight_decay=0.0)

    return make


@pytest.mark.parametrize("name", ["Llama", "Mistral", "Qwen2"])
def test_table_3_is_maximal(name):
    report = tp.verify(maximal(name, True), TOKENS, LABELS, loss, steps=2, advice=False)
    assert report.verdict == "maximal update", report
    assert not report.undecided


def test_the_default_scale_of_attention_is_not():
    report = tp.verify(maximal("Llama", False), TOKENS, LABELS, loss, steps=1, advice=False)
    assert "self_attn' grows like n^1/2 at step 1" in str(report.first_problem)
