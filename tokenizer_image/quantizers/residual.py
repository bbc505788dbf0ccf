"""Residual quantization: several codes a position, each for what the ones before left over."""

from __future__ import annotations

import torch

from tokenizer_image.quantizers.output import QuantizerOutput
from tokenizer_image.quantizers.stacked import StackedQuantizer


class ResidualQuantizer(StackedQuantizer):
    """A stack of vector quantizers, one codebook per depth (Lee et al. 2022, RQ-VAE, section 3.2).

    Depth d quantizes r_d = r_{d-1} - e(k_d), starting at r_0 = latents; the quantized vector is the sum of the
    codes' rows. The commitment loss is taken at every depth, so that each partial sum is close to the latents.

    Args:
        codebook_sizes: size of each depth's codebook, first to last.
        code_dim: size of a latent.
        options: passed on to each `VectorQuantizer`.
    """

    def __init__(self, codebook_sizes: list[int], code_dim: int, **options: float) -> None:
        super().__init__(codebook_sizes, code_dim, code_dim, **options)

    def inputs(self, latents: torch.Tensor, depth: int) -> torch.Tensor:
        """What depth `depth` quantizes of latents (..., code_dim): what the depths before it left over."""
        residual = latents.float()
        for quantizer in self.quantizers[:depth]:
            residual = residual - quantizer.decode(quantizer.encode(residual))
        return residual

    def code_vectors(self) -> list[torch.Tensor]:
        """For each of the `codes_per_position` codes, what it adds to a quantized latent: (its size, code_dim)."""
        return [quantizer.codebook.float() for quantizer in self.quantizers]

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) to codes (..., depths) int64. Changes nothing."""
        residual, codes = latents.float(), []
        for quantizer in self.quantizers:
            codes.append(quantizer.encode(residual))
            residual = residual - quantizer.decode(codes[-1])
        return torch.cat(codes, dim=-1)

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (..., depths) int64 to quantized (..., code_dim) float32: the sum of the rows.

        `absent` as in `VectorQuantizer.decode`.
        """
        return torch.stack(self.rows(codes, absent)).sum(0)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim); in train mode every depth's codebook learns."""
        latents = latents.float()
        residual, quantized, codes = latents, torch.zeros_like(latents), []
        loss, revived = latents.new_zeros(()), 0
        for quantizer in self.quantizers:
            output = quantizer(residual)
            # The rows alone: with the straight-through value the next residual would lose its gradient.
            rows = output.quantized.detach()
            residual, quantized = residual - rows, quantized + rows
            loss, revived = loss + output.loss, revived + output.revived
            codes.append(output.codes)
        quantized = latents + (quantized - latents).detach()
        return QuantizerOutput(quantized, torch.cat(codes, dim=-1), loss / len(codes), revived)
