"""Causal attention by plain matrix products, which on a CPU beats the fused kernel for short sequences."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from lm.model import plain_head

NAME = "tessera_short_causal"
# Above this many tokens the (L, L) scores cost more memory traffic than the fused kernel's slower products.
LONGEST = 256


def short_causal_attention(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **unused: Any,
) -> tuple[torch.Tensor, None]:
    """softmax(scaling Q K^T + causal mask) V, with the signature of transformers' attention functions.

    In training there is no cache: a token attends to all tokens before it in its row, or, with `attention_mask` (rows
    of several documents), in its document. Calls with a cache (sample pictures) go to transformers' own attention.

    Args:
        query, key, value: (B, heads, L, head_dim), with fewer heads for key and value where they are shared.
        attention_mask: (B, 1, L, L) bool, True where a token (third axis) attends to another (last axis); None: to all
            before it.

    Returns:
        (B, L, heads, head_dim), and no weights.
    """
    has_float_mask = attention_mask is not None and attention_mask.dtype != torch.bool
    if has_float_mask or query.shape[2] != key.shape[2] or dropout:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **unused
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    length = query.shape[2]
    if attention_mask is None:
        bias = torch.full((length, length), float("-inf"), dtype=query.dtype, device=query.device).triu(1)
    else:
        # Finite, since padding on the left of a prompt attends to nothing, and softmax of -inf alone is NaN.
        lowest = torch.finfo(query.dtype).min / 2
        bias = torch.zeros_like(attention_mask, dtype=query.dtype).masked_fill(~attention_mask, lowest)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    dtype = _product_dtype(query)
    scores = _Scores.apply((query * scale).to(dtype), key.to(dtype)) + bias
    return torch.matmul(scores.softmax(-1).to(value.dtype), value).transpose(1, 2), None


def _product_dtype(tensor: torch.Tensor) -> torch.dtype:
    """The type that autocast gives a product's operands; a custom autograd function has to cast them itself."""
    device = tensor.device.type
    if device == "meta" or tensor.dtype == torch.float64 or not torch.is_autocast_enabled(device):
        return tensor.dtype
    return torch.get_autocast_dtype(device)


class _Scores(torch.autograd.Function):
    """Q K^T of (B, heads, L, head_dim) each.

    Autograd would compute the gradient of K^T and transpose it, and compiled layers (torch.compile) would then read it
    with a stride for the rotary positions, which takes 1 or 2% of a step.
    """

    @staticmethod
    def forward(ctx: Any, query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(query, key)
        return torch.matmul(query, key.transpose(-1, -2))

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        query, key = ctx.saved_tensors
        return torch.matmul(gradient, key), torch.matmul(gradient.transpose(-1, -2), query)


AttentionInterface.register(NAME, short_causal_attention)
# Without this, transformers makes no mask, and tokens attend to padding.
AttentionMaskInterface.register(NAME, sdpa_mask)


def use_fastest_attention(model: PreTrainedModel, longest: int) -> None:
    """Choose how `model` attends in training, to sequences of up to `longest` tokens.

    Models with more than one linear map for a head keep their own attention, which may differ from this one, too.
    """
    if plain_head(model) is None:
        return
    model.set_attn_implementation(attention_for(longest, next(model.parameters()).device.type))


def attention_for(longest: int, device: str) -> str:
    """The name of the fastest attention to sequences of up to `longest` tokens on a type of device."""
    return NAME if device == "cpu" and longest <= LONGEST else "sdpa"
