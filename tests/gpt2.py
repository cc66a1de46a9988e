"""GPT-2 of Hugging Face transformers from a config, at random initialisation: nothing is downloaded."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

VOCABULARY = 11
TOKENS = torch.tensor([[0, 1, 2, 3, 5, 6], [2, 2, 4, 1, 9, 10]])
LABELS = (TOKENS + 1) % VOCABULARY


class Logits(nn.Module):
    """The model as a function from tokens to logits."""

    def __init__(self, width: int, layers: int, std: float) -> None:
        super().__init__()
        config = GPT2Config(
            vocab_size=VOCABULARY,
            n_positions=8,
            n_embd=width,
            n_layer=layers,
            n_head=4,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            use_cache=False,
            initializer_range=std,
            bos_token_id=0,
            eos_token_id=0,
        )
        self.gpt = GPT2LMHeadModel(config)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.gpt(tokens).logits


def gpt2(layers: int, std: float | None = None, rate: float = -1.0, embedding: bool = False) -> Callable[[int], object]:
    """A factory with AdamW: initial values of ``std`` (None: n^(-1/2)), learning rates of the power ``rate`` of n.

    ``embedding`` gives both embeddings (the tokens' is tied to the readout) entries of order one.
    """

    def make(width: int) -> object:
        model = Logits(width, layers, width**-0.5 if std is None else std)
        if embedding:
            nn.init.normal_(model.gpt.transformer.wte.weight)
            nn.init.normal_(model.gpt.transformer.wpe.weight)
        return model, torch.optim.AdamW(model.parameters(), lr=1e-2 * width**rate, eps=1e-8 / width)

    return make


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of the next token."""
    return F.cross_entropy(logits.flatten(0, 1), labels.flatten())
