"""The coarse levels of a hierarchical model, and how a level is conditioned on the coarser ones."""

from __future__ import annotations

import torch
from torch import nn

from tokenizer_image.networks import Axes, Decoder, Encoder, NetworkShape
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
        axes: of pictures or of signals.
    """

    outer_layers = ("head",)

    def __init__(self, channels: int, has_context: bool, num_res_blocks: int, quantizer: Quantizer, axes: Axes) -> None:
        super().__init__()
        context_channels = channels if has_context else 0
        # Normalised, unlike the finest level: a coarse level gets small gradients at the start of training, and an
        # optimizer whose step does not shrink with the gradient (Muon, Adam) lets its residual stream grow without
        # bound.
        shape = NetworkShape(channels, 2, [channels], num_res_blocks, axes=axes)
        self.encoder = Encoder(shape, channels, normalize=True)
        self.head = axes.conv(channels + context_channels, quantizer.code_dim, 1)
        self.quantizer = quantizer
        self.decoder = Decoder(shape, quantizer.code_dim + context_channels, channels, normalize=True)


def with_context(hidden: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
    """Concatenate features or quantized latents (B, D, h, w) with the context (B, channels, h, w), if there is one."""
    return hidden if context is None else torch.cat([hidden, context.to(hidden.dtype)], dim=1)


def level_networks(
    before: int, after: int, num_res_blocks: int, count: int, scale: int, *, up: bool
) -> list[nn.Module]:
    """`count` networks between the grids of two levels, of a bottleneck that has levels of its own.

    Args:
        before: channels that they read.
        after: channels that they return.
        num_res_blocks: of each, where it changes the resolution.
        scale: 2: from (B, _, h, w) to (B, _, h / 2, w / 2), or with `up` False to (B, _, 2h, 2w); 1: at each place by
            itself.
        up: to the coarser level.
    """
    if scale == 1:
        return [nn.Sequential(nn.Conv2d(before, after, 1), nn.SiLU(), nn.Conv2d(after, after, 1)) for _ in range(count)]
    if up:
        shape = NetworkShape(before, 2, [after], num_res_blocks)
        return [Encoder(shape, after, normalize=True) for _ in range(count)]
    shape = NetworkShape(after, 2, [after], num_res_blocks)
    return [Decoder(shape, before, after, normalize=True) for _ in range(count)]
