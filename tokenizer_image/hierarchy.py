"""The coarse levels of a hierarchical tokenizer, and how a level is conditioned on the coarser ones."""

from __future__ import annotations

import torch
from torch import nn

from tokenizer_image.networks import Decoder, Encoder, NetworkShape
from tokenizer_image.quantizers import Quantizer


class CoarseLevel(nn.Module):
    """One level above the finest (Razavi et al. 2019, VQ-VAE-2).

    `encoder` halves the resolution of the next finer level's features; `head` maps these features and the context to
    latents; `decoder` doubles the resolution of the quantized latents and the context: its output is the context of
    the next finer level.

    Args:
        channels: feature and context channels, the same at every level.
        has_context: whether there is a coarser level, whose decoder output this level is conditioned on.
        num_res_blocks: residual blocks in the encoder and in the decoder.
        quantizer: of latents (..., code_dim).
    """

    outer_layers = ("head",)

    def __init__(self, channels: int, has_context: bool, num_res_blocks: int, quantizer: Quantizer) -> None:
        super().__init__()
        context_channels = channels if has_context else 0
        # Normalised, unlike the finest level: a coarse level gets small gradients at the start of training, and an
        # optimizer whose step does not shrink with the gradient (Muon, Adam) lets its residual stream grow without
        # bound.
        shape = NetworkShape(channels, 2, [channels], num_res_blocks)
        self.encoder = Encoder(shape, channels, normalize=True)
        self.head = nn.Conv2d(channels + context_channels, quantizer.code_dim, 1)
        self.quantizer = quantizer
        self.decoder = Decoder(shape, quantizer.code_dim + context_channels, channels, normalize=True)


def with_context(hidden: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
    """Concatenate features or quantized latents (B, D, h, w) with the context (B, channels, h, w), if there is one."""
    return hidden if context is None else torch.cat([hidden, context.to(hidden.dtype)], dim=1)
