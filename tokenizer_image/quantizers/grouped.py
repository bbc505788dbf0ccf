"""Grouped quantization: the latent is split into parts, each with its own quantizer."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from tokenizer_image.quantizers.distributed import check_finite
from tokenizer_image.quantizers.interface import Quantizer, QuantizerOutput


class GroupedQuantizer(Quantizer):
    """One quantizer per part of a latent: product quantization (Jegou et al. 2011); with residual quantizers as parts,
    grouped residual quantization (Yang et al. 2023, HiFi-Codec).

    Any combination of a position's codes is valid, so the encoder can put independent factors (colour and shape, say)
    into different codes, and the language model need not learn a code for every combination.

    Args:
        parts: one quantizer per part, first to last; `code_dim` is the sum of theirs.
    """

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.widths = [part.code_dim for part in parts]
        self.code_dim = sum(self.widths)

    @property
    def quantizers(self) -> list[Quantizer]:
        """The quantizers of the parts, first to last."""
        return list(self.parts)  # type: ignore[arg-type]

    @property
    def codebook_sizes(self) -> list[int]:
        return [size for part in self.quantizers for size in part.codebook_sizes]

    def split(self, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Latents (..., code_dim) to one (..., part.code_dim) per part."""
        return latents.split(self.widths, dim=-1)

    def code_vectors(self) -> list[torch.Tensor] | None:
        vectors, before = [], 0
        for part in self.quantizers:
            tables, after = part.code_vectors(), self.code_dim - before - part.code_dim
            if tables is None:
                return None
            vectors += [F.pad(table, (before, after)) for table in tables]
            before += part.code_dim
        return vectors

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        pairs = zip(self.quantizers, self.split(latents), strict=True)
        return torch.cat([quantizer.encode(part) for quantizer, part in pairs], dim=-1)

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        counts = [quantizer.codes_per_position for quantizer in self.quantizers]
        masks = [None] * len(counts) if absent is None else list(absent.split(counts, dim=-1))
        parts = zip(self.quantizers, codes.split(counts, dim=-1), masks, strict=True)
        return torch.cat([quantizer.decode(part, mask) for quantizer, part, mask in parts], dim=-1)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim); in train mode, update every part's codebook."""
        if self.learns:  # before the first part's update
            check_finite(latents)
        outputs = [quantizer(part) for quantizer, part in zip(self.quantizers, self.split(latents), strict=True)]
        return QuantizerOutput(
            torch.cat([output.quantized for output in outputs], dim=-1),
            torch.cat([output.codes for output in outputs], dim=-1),
            torch.stack([output.loss for output in outputs]).mean(),
            sum(output.dead for output in outputs),
            sum(output.revived for output in outputs),
        )

    @torch.no_grad()
    def refit(self, batches: Sequence[torch.Tensor]) -> None:
        for index, part in enumerate(self.quantizers):
            part.refit([self.split(batch)[index].contiguous() for batch in batches])
