"""Models of Hugging Face transformers, unedited, from small configs at random initialisation: nothing is downloaded.

``MODELS`` has a factory of the width for each; ``maximal`` gives it Table 3 of Tensor Programs V and attention over d.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor, nn

VOCABULARY = 11
TOKENS = torch.tensor([[0, 1, 2, 3, 5], [2, 2, 4, 1, 9]])
NEXT = (TOKENS + 1) % VOCABULARY
IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
CLASSES = torch.tensor([1, 0])


def loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of tokens or of images."""
    return F.cross_entropy(logits.flatten(0, -2), labels.flatten())


class Wrapped(nn.Module):
    """The model as a function from tokens or images to logits."""

    def __init__(self, model: nn.Module, result: str, options: dict[str, Any]) -> None:
        super().__init__()
        self.model, self.result, self.options = model, result, options

    def forward(self, x: Tensor) -> Tensor:
        more = {"decoder_input_ids": x} if self.result == "sequence" else {}
        return getattr(self.model(x, **self.options, **more), "logits" if self.result == "sequence" else self.result)


@dataclass(frozen=True)
class Model:
    """The class and its config; numbers of the config that grow are given in widths."""

    name: str
    config: str
    fixed: dict[str, Any]
    grown: dict[str, float]
    result: str = "logits"
    embedding: float = 0.0  # power of the width in the embedding's entries: some multiply them by its root

    @property
    def data(self) -> tuple[Tensor, Tensor]:
        """Inputs and targets."""
        if "image_size" in self.fixed:
            return IMAGES, CLASSES
        return TOKENS, NEXT if self.result in ("logits", "sequence") else CLASSES

    def __call__(self, n: int) -> nn.Module:
        grown = {key: int(ratio * n) for key, ratio in self.grown.items()}
        sizes = {} if "image_size" in self.fixed else {"vocab_size": VOCABULARY}
        config = getattr(transformers, self.config)(**{"tie_word_embeddings": False, **sizes, **self.fixed, **grown})
        options = {"use_cache": False} if "Causal" in self.name or self.result == "sequence" else {}
        return Wrapped(getattr(transformers, self.name)(config), self.result, options)


BASIC: dict[str, float] = {"hidden_size": 1, "intermediate_size": 2}
DECODER = {"num_hidden_layers": 1, "num_attention_heads": 4, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
GROUPED = {**DECODER, "num_key_value_heads": 2}
HEADS = {**BASIC, "head_dim": 0.25}
ENCODER = {"num_hidden_layers": 1, "num_attention_heads": 4}
DRY = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
DRY_DECODER = {"attention_dropout": 0.0, "hidden_dropout": 0.0}
VISION = {**ENCODER, **DRY, "image_size": 8, "patch_size": 4, "num_labels": 3}
LATENT = {
    **{"q_lora_rank": 0.5, "kv_lora_rank": 0.5, "qk_nope_head_dim": 0.25, "qk_rope_head_dim": 0.25},
    **{"v_head_dim": 0.25},
}


def causal(name: str, fixed: dict[str, Any], grown: dict[str, float], embedding: float = 0.0) -> Model:
    config = "Gemma3TextConfig" if name == "Gemma3" else f"{name}Config"
    return Model(f"{name}ForCausalLM", config, fixed, grown, embedding=embedding)


def masked(name: str, positions: int = 8) -> Model:
    fixed = {**ENCODER, **DRY, "max_position_embeddings": positions}
    return Model(f"{name}ForMaskedLM", f"{name}Config", fixed, BASIC)


def classifier(name: str, **fixed: Any) -> Model:
    return Model(f"{name}ForImageClassification", f"{name}Config", {**VISION, **fixed}, BASIC)


MODELS: dict[str, Model] = {
    **{name: causal(name, GROUPED, BASIC) for name in ("Llama", "Mistral", "Qwen2", "Olmo", "Olmo2", "Cohere")},
    "Qwen3": causal("Qwen3", GROUPED, HEADS),
    "Gemma": causal("Gemma", GROUPED, HEADS, -0.5),
    "Gemma2": causal("Gemma2", GROUPED, {**HEADS, "query_pre_attn_scalar": 0.25}, -0.5),
    "Gemma3": causal("Gemma3", GROUPED, {**HEADS, "query_pre_attn_scalar": 0.25}, -0.5),
    "Phi": causal("Phi", {**DECODER, "resid_pdrop": 0.0}, BASIC),
    "Phi3": causal("Phi3", {**GROUPED, "resid_pdrop": 0.0}, BASIC),
    "StableLm": causal("StableLm", GROUPED, BASIC),
    "Starcoder2": causal("Starcoder2", {**GROUPED, "residual_dropout": 0.0, "embedding_dropout": 0.0}, BASIC),
    "GPTNeoX": causal("GPTNeoX", {**DECODER, **DRY_DECODER}, BASIC),
    "OPT": causal(
        "OPT", {**DECODER, "max_position_embeddings": 8, "dropout": 0.0, "attention_dropout": 0.0},
        {"hidden_size": 1, "word_embed_proj_dim": 1, "ffn_dim": 2},
    ),
    "Bloom": causal("Bloom", {**DECODER, **DRY_DECODER}, {"hidden_size": 1}),
    "DeepseekV3": causal(
        "DeepseekV3", {**DECODER, "num_key_value_heads": 4, "first_k_dense_replace": 1}, {**BASIC, **LATENT}
    ),
    "Bert": masked("Bert"),
    "Roberta": masked("Roberta", 16),
    "Electra": Model(
        "ElectraForMaskedLM", "ElectraConfig", {**ENCODER, **DRY, "max_position_embeddings": 8},
        {**BASIC, "embedding_size": 1},
    ),
    "DistilBert": Model(
        "DistilBertForMaskedLM", "DistilBertConfig",
        {"n_layers": 1, "n_heads": 4, "dropout": 0.0, "attention_dropout": 0.0, "max_position_embeddings": 8},
        {"dim": 1, "hidden_dim": 2},
    ),
    "ViT": classifier("ViT"),
    "DeiT": classifier("DeiT"),
    "Beit": classifier("Beit", drop_path_rate=0.0, use_relative_position_bias=True),
    "Swin": Model(
        "SwinForImageClassification", "SwinConfig",
        {**DRY, "image_size": 8, "patch_size": 2, "num_labels": 3, "window_size": 2, "depths": [2], "num_heads": [4],
         "drop_path_rate": 0.0},
        {"embed_dim": 1},
    ),
    "CLIPVision": Model(
        "CLIPVisionModelWithProjection", "CLIPVisionConfig",
        {**ENCODER, "image_size": 8, "patch_size": 4, "projection_dim": 3}, BASIC, "image_embeds",
    ),
    "CLIPText": Model(
        "CLIPTextModelWithProjection", "CLIPTextConfig",
        {**ENCODER, "max_position_embeddings": 8, "projection_dim": 3, "eos_token_id": 9, "bos_token_id": 0,
         "pad_token_id": 1},
        BASIC, "text_embeds",
    ),
}  # fmt: skip


def _trained(model: Model) -> dict[str, nn.Parameter]:
    """Parameters of a small model after a backward pass."""
    made, (inputs, targets) = model(64), model.data
    loss(made(inputs), targets).backward()
    return dict(made.named_parameters())


SCALES = ("scaling", "scale", "inv_norm_factor")  # names that transformers gives the factor 1/sqrt(d) of the logits


def maximal(model: Model) -> Callable[[int], Any]:
    """Table 3 by shapes: what reads a growing axis is a hidden matrix, or a readout where it ends in a fixed one."""
    small, large = (dict(model(n).named_parameters()) for n in (64, 128))
    unused = {key for key, p in _trained(model).items() if p.grad is None}
    grows = {key: [a != b for a, b in zip(p.shape, large[key].shape, strict=True)] for key, p in small.items()}

    def make(n: int) -> Any:
        made = model(n)
        for module in made.modules():
            for name in SCALES:
                scale = getattr(module, name, None)
                if isinstance(scale, float):
                    setattr(module, name, scale**2)
        groups: dict[float, list[nn.Parameter]] = {0.0: [], -0.5: [], -1.0: []}
        for key, p in made.named_parameters():
            if key in unused:
                p.requires_grad_(False)
                continue
            reads, table = any(grows[key][1:]) and p.dim() > 1, not grows[key][0]
            fan_in = p.numel() / p.shape[0]
            if p.dim() == 1:
                groups[0.0].append(p)
            elif table and isinstance(made.get_submodule(key.rpartition(".")[0]), nn.Embedding):
                power = model.embedding if "position" not in key else 0.0
                nn.init.normal_(p, std=n**power)
                groups[power].append(p)
            elif table and p.dim() == 3:  # a learned token or positions
                nn.init.normal_(p)
                groups[0.0].append(p)
            else:
                nn.init.normal_(p, std=1 / fan_in if reads and table else fan_in**-0.5)
                groups[-1.0 if reads else 0.0].append(p)
        made_groups = [{"params": params, "lr": 0.01 * n**power} for power, params in groups.items() if params]
        return made, torch.optim.AdamW(made_groups, eps=1e-8 / n, weight_decay=0.0)

    return make
