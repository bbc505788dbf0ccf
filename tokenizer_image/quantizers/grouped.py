"""Grouped quantization: the latent is cut into parts, each with a codebook of its own."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from tokenizer_image.quantizers.output import QuantizerOutput
from tokenizer_image.quantizers.stacked import StackedQuantizer
from tokenizer_image.quantizers.vector import check_finite


class GroupedQuantizer(StackedQuantizer):
    """One code for each part of a latent (product quantization, Jegou et al. 2011).

    The codes of a position are free of each other, so the encoder can put what varies freely (colour and shape, say)
    into different codes, which a language model then need not learn in every combination.

    Args:
        codebook_sizes: size of each part's codebook, first to last.
        code_dim: size of a latent; each part has an equal share.
        options: passed on to each `VectorQuantizer`.

    Raises:
        ValueError: the parts do not divide `code_dim`.
    """

    def __init__(self, codebook_sizes: list[int], code_dim: int, **options: float) -> None:
        if code_dim % len(codebook_sizes):
            raise ValueError(
                f"code_dim {code_dim} cannot be cut into {len(codebook_sizes)} equal parts, one for each of "
                f"codebook_sizes {codebook_sizes}: choose a multiple of {len(codebook_sizes)}"
            )
        super().__init__(codebook_sizes, code_dim, code_dim // len(codebook_sizes), **options)

    def inputs(self, latents: torch.Tensor, depth: int) -> torch.Tensor:
        """What part `depth` quantizes of latents (..., code_dim)."""
        return latents.chunk(len(self.depths), dim=-1)[depth]

    def code_vectors(self) -> list[torch.Tensor]:
        """For each of the `codes_per_position` codes, what it adds to a quantized latent: (its size, code_dim)."""
        share = self.code_dim // len(self.depths)
        return [
            F.pad(quantizer.codebook.float(), (d * share, self.code_dim - (d + 1) * share))
            for d, quantizer in enumerate(self.quantizers)
        ]

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) to codes (..., parts) int64. Changes nothing."""
        parts = [quantizer.encode(self.inputs(latents, d)) for d, quantizer in enumerate(self.quantizers)]
        return torch.cat(parts, dim=-1)

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (..., parts) int64 to quantized (..., code_dim) float32; `absent` as in `VectorQuantizer.decode`."""
        return torch.cat(self.rows(codes, absent), dim=-1)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim); in train mode every part's codebook learns."""
        if self.training:  # before any part learns
            check_finite(latents.detach(), torch.tensor(latents[..., 0].numel()))
        outputs = [quantizer(self.inputs(latents, d)) for d, quantizer in enumerate(self.quantizers)]
        return QuantizerOutput(
            torch.cat([output.quantized for output in outputs], dim=-1),
            torch.cat([output.codes for output in outputs], dim=-1),
            torch.stack([output.loss for output in outputs]).mean(),
            sum(output.revived for output in outputs),
        )
