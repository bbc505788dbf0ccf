"""How much arithmetic a batch takes: the matrix products of a forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from lm.training.attention import NAME as SHORT_ATTENTION
from lm.training.losses import places_read

# Model types whose feed-forward parts have two matrices; all others have three, one of them a gate.
UNGATED = frozenset(
    [
        "gpt2",
        "gpt_neo",
        "gptj",
        "gpt_neox",
        "opt",
        "bloom",
        "falcon",
        "phi",
        "codegen",
        "starcoder2",
        "gpt_bigcode",
        "mpt",
    ]
)


def layer_products(config: Any) -> tuple[int, int]:
    """(multiplications of one token with all weights of one layer, width of all its queries together).

    For decoders of the GPT-2 and of the Llama kind (Qwen, Mistral and Gemma among them), told apart by what their
    configurations have: gated feed-forward parts and shared key-value heads. Mixtures of experts count one expert.
    """
    hidden, heads = config.hidden_size, config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or hidden // heads
    queries = heads * head_dim
    keys = (getattr(config, "num_key_value_heads", None) or heads) * head_dim
    attention = hidden * queries + 2 * hidden * keys + queries * hidden
    matrices = 2 if config.model_type in UNGATED else 3
    intermediate = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None) or 4 * hidden
    return attention + matrices * hidden * intermediate, queries


def forward_flops(
    config: Any, id_ranges: Sequence[tuple[int, int]], batch: Mapping[str, torch.Tensor], *, plain_head: bool = True
) -> float:
    """Floating-point operations of the matrix products that `lm.training.losses.NextTokenLoss` executes for a batch.

    Layers at every place that it reads (`lm.training.losses.places_read`), padding included; attention over the whole
    square where it is computed as one (`lm.training.attention`, or a mask for packed rows), else over the half that is
    not masked; of the output layer only the rows of a label's own range of ids, at places that have a label.
    Embeddings, norms and softmaxes are left out. A backward pass takes twice as much again.

    Args:
        config: of the language model (transformers).
        id_ranges: `MultimodalVocabulary.id_ranges`.
        batch: as `lm.sequences.collate` makes it, (B, L).
        plain_head: False where the model's own forward computes all logits.
    """
    config = config.get_text_config()
    rows = len(batch["input_ids"])
    length = places_read(config, batch["position_ids"])
    places = rows * length
    products, queries = layer_products(config)
    positions = batch["position_ids"][:, :length]
    packed = bool((positions[:, 1:] <= positions[:, :-1]).any())
    square = packed or getattr(config, "_attn_implementation", None) in (SHORT_ATTENTION, "eager")
    pairs = length * length if square else length * (length + 1) // 2
    layers = config.num_hidden_layers * (places * products + rows * pairs * 2 * queries)
    if plain_head:
        labels = batch["labels"][:, 1:]
        scores = sum(int(((labels >= low) & (labels < high)).sum()) * (high - low) for low, high in id_ranges)
    else:
        scores = places * config.vocab_size
    return 2.0 * (layers + scores * config.hidden_size)
