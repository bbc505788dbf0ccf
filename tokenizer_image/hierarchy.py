"""A hierarchy of codes: coarser levels above the finest."""

from __future__ import annotations

import torch
from torch import nn

from tokenizer_image.networks import Decoder, Encoder
from tokenizer_image.quantizers import Quantizer


class CoarseLevel(nn.Module):
    """One level above the finest (Razavi et al. 2019, VQ-VAE-2).

    `encoder` halves the features of the next finer level; `head` makes latents of them and of what the coarser levels
    have told already; `decoder` doubles the quantized latents for the next finer level.

    Args:
        channels: features at every level.
        is_conditioned: whether there is a coarser level still.
        num_res_blocks: of its encoder and decoder.
        quantizer: of latents (..., code_dim).
    """

    def __init__(self, channels: int, is_conditioned: bool, num_res_blocks: int, quantizer: Quantizer) -> None:
        super().__init__()
        told = channels if is_conditioned else 0
        # Normalised, unlike the finest level's: what a coarse level adds is little at first, and an optimizer whose
        # steps do not shrink with the gradient would blow a residual stream up before it has found anything to say.
        self.encoder = Encoder(channels, 2, [channels], num_res_blocks, channels, normalize=True)
        self.head = nn.Conv2d(channels + told, quantizer.code_dim, 1)
        self.quantizer = quantizer
        coded = quantizer.code_dim + told
        self.decoder = Decoder(channels, 2, [channels], num_res_blocks, coded, channels, normalize=True)


def joined(own: torch.Tensor, told: torch.Tensor | None) -> torch.Tensor:
    """(B, channels, h, w) of a level's own, and what coarser levels have told, if any."""
    return own if told is None else torch.cat([own, told.to(own.dtype)], dim=1)
