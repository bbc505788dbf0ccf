"""A quantizer between two learned linear projections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import nn

from tokenizer_image.quantizers.interface import Quantizer, QuantizerOutput


class ProjectedQuantizer(Quantizer):
    """Project latents linearly to the dimension of `inner`, quantize there, and project back.

    In a low dimension, 8 to 32 elements, more codes of a large codebook stay in use (Yu et al. 2022, ViT-VQGAN,
    section 3.2, factorized codes).

    Args:
        inner: quantizes vectors of size `inner.code_dim`.
        code_dim: size of a latent.
    """

    decoding_state = ("out_of",)
    outer_layers = ("into", "out_of")

    def __init__(self, inner: Quantizer, code_dim: int) -> None:
        super().__init__()
        self.inner = inner
        self.code_dim = code_dim
        self.into = nn.Linear(code_dim, inner.code_dim)
        self.out_of = nn.Linear(inner.code_dim, code_dim)
        self.shares_codebook = inner.shares_codebook

    @property
    def codebook_sizes(self) -> list[int]:
        return self.inner.codebook_sizes

    def down(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) to (..., inner.code_dim), in float32 under autocast too: codes depend on it."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.into(latents.to(self.into.weight.dtype)).float()

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        return self.inner.encode(self.down(latents))

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        return self.up(self.inner.decode(codes, absent))

    def up(self, quantized: torch.Tensor) -> torch.Tensor:
        """Quantized (..., inner.code_dim) to (..., code_dim) float32."""
        with torch.autocast(quantized.device.type, enabled=False):
            return self.out_of(quantized.to(self.out_of.weight.dtype)).float()

    def code_vectors(self) -> list[torch.Tensor] | None:
        weight, tables = self.out_of.weight.detach().float(), self.inner.code_vectors()
        return None if tables is None else [table.to(weight) @ weight.t() for table in tables]

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim)."""
        output = self.inner(self.down(latents))
        return replace(output, quantized=self.up(output.quantized))

    @torch.no_grad()
    def refit(self, batches: Sequence[torch.Tensor]) -> None:
        self.inner.refit([self.down(batch) for batch in batches])
