"""The one form in which every quantizer answers."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass
class QuantizerOutput:
    """What a quantizer's `forward` returns.

    Attributes:
        quantized: (..., code_dim) float32, with the straight-through gradient to the latents.
        codes: (..., codes_per_position) int64, each in its own range `0 .. codebook_sizes[depth] - 1`.
        loss: scalar float32, already weighted.
        revived: number of dead codes that were replaced in this step.
    """

    quantized: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor
    revived: int = 0
