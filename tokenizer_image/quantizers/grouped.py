"""Grouped quantization: the latent is cut into parts, each with a quantizer of its own."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from tokenizer_image.quantizers.distributed import check_finite
from tokenizer_image.quantizers.interface import Quantizer, QuantizerOutput


class GroupedQuantizer(Quantizer):
    """A quantizer for each part of a latent: product quantization (Jegou et al. 2011), and with residual parts grouped
    residual quantization (Yang et al. 2023, HiFi-Codec).

    The codes of a position are free of each other, so the encoder can put what varies freely (colour and shape, say)
    into different codes, which a language model then need not learn in every combination.

    Args:
        parts: one quantizer for each part, first to last; a latent is as long as all of them together.
    """

    def __init__(self, parts: Sequence[Quantizer]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.widths = [part.code_dim for part in parts]
        self.code_dim = sum(self.widths)

    @property
    def quantizers(self) -> list[Quantizer]:
        """The parts' quantizers, first to last."""
        return list(self.parts)  # type: ignore[arg-type]

    @property
    def codebook_sizes(self) -> list[int]:
        return [size for part in self.quantizers for size in part.codebook_sizes]

    def cut(self, latents: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Latents (..., code_dim) to what each part sees of them."""
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
        pairs = zip(self.quantizers, self.cut(latents), strict=True)
        return torch.cat([part.encode(share) for part, share in pairs], dim=-1)

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        counts = [part.codes_per_position for part in self.quantizers]
        shares = codes.split(counts, dim=-1)
        gaps = [None] * len(counts) if absent is None else list(absent.split(counts, dim=-1))
        rows = [part.decode(*pair) for part, pair in zip(self.quantizers, zip(shares, gaps, strict=True), strict=True)]
        return torch.cat(rows, dim=-1)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim); in train mode every part's codebook learns."""
        if self.learns:  # before any part learns
            check_finite(latents)
        outputs = [part(share) for part, share in zip(self.quantizers, self.cut(latents), strict=True)]
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
            part.refit([self.cut(batch)[index].contiguous() for batch in batches])
