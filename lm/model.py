"""Vocabulary to a stock transformers causal LM."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)

from lm.vocabulary import MultimodalVocabulary

ARCHITECTURES = ("qwen3", "llama", "gpt2")
HEAD_DIM = 64
# Classes whose logits are one linear map of the backbone's output. Others (soft-capped or scaled logits, wrapped or
# quantized models) compute logits in their own forward.
PLAIN_HEADS = frozenset(
    {"LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "MistralForCausalLM", "GPT2LMHeadModel"}
)
TOKENS_PER_PARAMETER = 1.0  # that a size has to read to be chosen
# What embeddings and output layer call the layer with the rows of new tokens, where only those are trained (`lm.lora`).
NEW_ROWS = "new_rows"
# Standard deviations that rows start with: of all tokens in the embeddings, of image codes in the output layer.
EMBEDDING_SCALE, OUTPUT_SCALE = 0.3, 0.15
USUAL_BATCH = 64  # that the default learning rate is for

# (layers, hidden_size, intermediate_size), named by rough parameters without embeddings.
SIZES: dict[str, tuple[int, int, int]] = {
    "2M": (4, 192, 512),
    "3M": (4, 256, 704),
    "10M": (6, 384, 1024),
    "25M": (8, 512, 1408),
    "85M": (12, 768, 2048),
    "300M": (24, 1024, 2816),
    "1B": (24, 1792, 4864),
}


def default_size(tokens_per_image: int) -> str:
    """The size to start from: longer rows of codes come from larger pictures, which larger models serve better."""
    for limit, size in ((64, "2M"), (144, "10M"), (300, "25M")):
        if tokens_per_image <= limit:
            return size
    return "85M"


def affordable_size(largest: str, tokens: Callable[[int], float]) -> str:
    """The largest size, up to `largest`, that reads at least `TOKENS_PER_PARAMETER` tokens for each of its parameters;
    the smallest one where none does.

    A model that is too large for its budget has hardly begun to learn at its end (Hoffmann et al. 2022, whose optimum
    is about 20 tokens a parameter; models that see few pictures many times do best with fewer).

    Args:
        tokens: how many tokens a model of so many parameters, without embeddings, reads in the whole run.
    """
    names = list(SIZES)
    for name in reversed(names[: names.index(largest) + 1]):
        layers, hidden, intermediate = SIZES[name]
        parameters = layers * hidden * (4 * hidden + 3 * intermediate)
        if tokens(parameters) >= TOKENS_PER_PARAMETER * parameters:
            return name
    return names[0]


def default_learning_rate(hidden_size: int, batch_size: int = USUAL_BATCH) -> float:
    """AdamW's peak learning rate: 3e-3 at a width of 192 and 64 sequences a step; less in proportion to the width (Yang
    et al. 2022, muP) and, of smaller batches, to the square root of their size (Malladi et al. 2022, "On the SDEs and
    scaling rules for adaptive gradient algorithms"). docs/results.md has what that gains.
    """
    return 3e-3 * 192 / hidden_size * min(1.0, batch_size / USUAL_BATCH) ** 0.5


def model_sizes(
    architecture: str,
    size: str,
    num_layers: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_heads: int | None = None,
) -> tuple[int, int, int, int]:
    """(layers, hidden_size, intermediate_size, heads): explicit sizes override those of the named `size`.

    Raises:
        ValueError: an unknown architecture or size, or a hidden size that the heads do not divide.
    """
    if architecture not in ARCHITECTURES:
        raise ValueError(f"unknown architecture {architecture!r}: choose one of {', '.join(ARCHITECTURES)}")
    if size not in SIZES:
        raise ValueError(f"unknown LM size {size!r}: choose one of {', '.join(SIZES)}, or give explicit sizes")
    layers, hidden, intermediate = SIZES[size]
    layers, hidden = num_layers or layers, hidden_size or hidden
    if architecture == "gpt2":  # two matrices in place of three
        intermediate = 4 * hidden
    elif hidden != SIZES[size][1]:
        intermediate = -(-hidden * 8 // 3 // 64) * 64
    heads = num_heads or max(1, hidden // HEAD_DIM)
    if hidden % heads:
        raise ValueError(f"hidden_size {hidden} is not a multiple of num_heads {heads}; change one of them")
    if architecture != "gpt2" and hidden // heads % 2:
        raise ValueError(
            f"hidden_size {hidden} gives each of {heads} heads {hidden // heads} numbers, and rotary positions need an "
            "even number; change hidden_size or num_heads"
        )
    return layers, hidden, intermediate_size or intermediate, heads


def build_configuration(
    vocabulary: MultimodalVocabulary,
    *,
    architecture: str = "llama",
    size: str = "2M",
    num_layers: int | None = None,
    hidden_size: int | None = None,
    intermediate_size: int | None = None,
    num_heads: int | None = None,
    max_positions: int = 256,
) -> PretrainedConfig:
    """A configuration for a model from scratch, of the sizes that `model_sizes` gives (which says what it raises)."""
    layers, hidden, intermediate, heads = model_sizes(
        architecture, size, num_layers, hidden_size, intermediate_size, num_heads
    )
    ids = {
        "vocab_size": vocabulary.size,
        "bos_token_id": vocabulary.bos_id,
        "eos_token_id": vocabulary.eos_id,
        "pad_token_id": vocabulary.pad_id,
        "tie_word_embeddings": False,
    }
    if architecture == "gpt2":
        return GPT2Config(
            n_positions=max_positions, n_embd=hidden, n_layer=layers, n_head=heads, n_inner=intermediate,
            embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0, **ids,
        )  # fmt: skip
    config_class = Qwen3Config if architecture == "qwen3" else LlamaConfig
    # Both would otherwise take head_dim and key-value heads from some other, larger model.
    return config_class(
        hidden_size=hidden, num_hidden_layers=layers, intermediate_size=intermediate, num_attention_heads=heads,
        num_key_value_heads=heads, head_dim=hidden // heads, max_position_embeddings=max_positions, **ids,
    )  # fmt: skip


def build_model(config: PretrainedConfig) -> PreTrainedModel:
    """A stock causal LM with random weights, in float32."""
    return AutoModelForCausalLM.from_config(config)


@torch.no_grad()
def start_text_rows(model: PreTrainedModel, vocabulary: MultimodalVocabulary) -> None:
    """Start the embeddings of text tokens as large as those of image codes (`start_code_rows`).

    transformers starts them at 0.02; docs/results.md has what the larger start gains.
    """
    rows = model.get_input_embeddings().weight[: vocabulary.image_offset]
    rows.copy_(torch.randn(rows.shape) * EMBEDDING_SCALE)


@torch.no_grad()
def start_code_rows(model: PreTrainedModel, vocabulary: MultimodalVocabulary, vectors: torch.Tensor) -> None:
    """Start the rows of image codes, in the embeddings and in the output layer, as projections of their own vectors.

    With random rows the model has to learn from data which codes look alike. A random projection of the image
    tokenizer's vectors keeps their angles and distances, so an update for one code also moves the predictions for
    similar codes from the first step on (docs/results.md has the gain). transformers starts all rows at a standard
    deviation of 0.02; these start larger, so that training does not erase the similarity.

    Args:
        vectors: (num_codes, D) float, what each code stands for in the image tokenizer.

    Raises:
        ValueError: not one vector for each code.
    """
    if vectors.ndim != 2 or len(vectors) != vocabulary.num_codes:
        raise ValueError(
            f"code vectors of shape {tuple(vectors.shape)}: expected one row for each of the vocabulary's "
            f"{vocabulary.num_codes} image codes"
        )
    layers = ((model.get_input_embeddings(), EMBEDDING_SCALE), (model.get_output_embeddings(), OUTPUT_SCALE))
    for low, high in vocabulary.id_ranges[1:]:
        part = vectors[low - vocabulary.image_offset : high - vocabulary.image_offset].float()
        part = part - part.mean(0)
        for layer, scale in layers:
            rows = part.to(layer.weight.device) @ torch.randn(part.shape[1], layer.weight.shape[1]).to(layer.weight)
            if bool(rows.std() > 0):
                layer.weight[low:high] = rows * (scale / rows.std())


def recompute_layers(model: PreTrainedModel) -> None:
    """Have layers compute their activations again in the backward pass instead of keeping them."""
    # Named anew in transformers 5; the older name goes in 6.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def plain_head(model: Any) -> nn.Linear | None:
    """The output layer of `model` where its logits are that layer's product and nothing more, else None."""
    head = model.get_output_embeddings()
    return head if type(model).__name__ in PLAIN_HEADS and type(head) is nn.Linear else None


def partial_logits(head: nn.Linear, hidden: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Logits (..., high - low) of the ids `low <= id < high`, of hidden states (..., d) and an output layer."""
    new = getattr(head, NEW_ROWS, None)
    if new is None:
        return F.linear(hidden, head.weight[low:high], None if head.bias is None else head.bias[low:high])
    first, last = new.first, new.first + new.out_features
    parts = []
    for start, end, layer, offset in (
        (low, min(high, first), head, 0),
        (max(low, first), min(high, last), new, first),
        (max(low, last), high, head, 0),
    ):
        if start < end:
            rows = slice(start - offset, end - offset)
            parts.append(F.linear(hidden, layer.weight[rows], None if layer.bias is None else layer.bias[rows]))
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def load_model(folder: str, **options: Any) -> PreTrainedModel:
    """Read a causal LM that `save_pretrained` wrote (safetensors only)."""
    return AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)


def check_vocabulary(config: AutoConfig, vocabulary: MultimodalVocabulary) -> None:
    """Raise ValueError unless the model's output layer has a row for every id of the vocabulary."""
    size = config.vocab_size
    if size < vocabulary.size:
        raise ValueError(
            f"the language model has {size} output rows, the vocabulary {vocabulary.size} ids: "
            "they do not belong together"
        )
