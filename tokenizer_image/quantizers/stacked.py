"""What quantizers with several codes a position have in common."""

from __future__ import annotations

import torch
from torch import nn

from tokenizer_image.quantizers.vector import VectorQuantizer


class StackedQuantizer(nn.Module):
    """One `VectorQuantizer`, with a codebook of its own, for each code of a position.

    Args:
        codebook_sizes: size of each codebook, first to last.
        code_dim: size of a latent.
        part_dim: size of what each of the quantizers sees.
        options: passed on to each `VectorQuantizer`.
    """

    def __init__(self, codebook_sizes: list[int], code_dim: int, part_dim: int, **options: float) -> None:
        super().__init__()
        self.code_dim = code_dim
        self.depths = nn.ModuleList(VectorQuantizer(size, part_dim, **options) for size in codebook_sizes)

    @property
    def codes_per_position(self) -> int:
        return len(self.depths)

    @property
    def codebook_sizes(self) -> list[int]:
        """Size of each codebook, first to last."""
        return [quantizer.codebook_size for quantizer in self.quantizers]

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """The quantizers, first to last."""
        return list(self.depths)  # type: ignore[arg-type]

    def rows(self, codes: torch.Tensor, absent: torch.Tensor | None) -> list[torch.Tensor]:
        """Each quantizer's rows (..., part_dim) for codes (..., codes_per_position)."""
        return [
            quantizer.decode(codes[..., d : d + 1], None if absent is None else absent[..., d : d + 1])
            for d, quantizer in enumerate(self.quantizers)
        ]
