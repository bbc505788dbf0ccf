"""Finite scalar quantization: every element of a latent is rounded to one of a few levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tokenizer_image.quantizers.distributed import check_finite
from tokenizer_image.quantizers.estimators import straight_through
from tokenizer_image.quantizers.interface import Quantizer, QuantizerOutput, check_range

# Levels for about 2^8, 2^10, ... codes (Mentzer et al. 2023, table 1).
LEVELS = ((8, 6, 5), (8, 5, 5, 5), (7, 5, 5, 5, 5), (8, 8, 8, 6, 5), (8, 8, 8, 5, 5, 5))
SLACK = 1e-3  # widens the range a little, because tanh never reaches 1 and so not the outermost level


def levels_for(codebook_size: int) -> tuple[int, ...]:
    """The paper's levels whose product is nearest to `codebook_size` on a log scale."""
    return min(LEVELS, key=lambda levels: abs(math.log(math.prod(levels) / codebook_size)))


class FiniteScalarQuantizer(Quantizer):
    """A fixed grid in place of a codebook (Mentzer et al. 2023, FSQ): no parameters and no loss term.

    Element i of a latent is bounded and rounded to one of L_i levels, z -> round(h tanh(z + s) - o) with
    h = (L_i - 1) / 2; the shifts o and s make an even number of levels symmetric. Quantized elements are in [-1, 1]. A
    code is the mixed-radix number whose digits are the levels, the first the least significant.

    Args:
        levels: number of levels of each of the `code_dim = len(levels)` elements.

    Raises:
        ValueError: an element with fewer than 2 levels.
    """

    levels: torch.Tensor
    strides: torch.Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels={list(levels)}: each element of a latent needs at least 2 levels")
        self.code_dim = len(levels)
        self.size = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels))
        self.register_buffer("strides", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]))

    @property
    def codebook_sizes(self) -> list[int]:
        return [self.size]

    def bound(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) to float32 values in about -L/2 .. L/2, to be rounded to a level."""
        half = (self.levels - 1) * (1 + SLACK) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        # With two levels the paper's shift puts the threshold far from zero, where latents start.
        shift = torch.where(self.levels > 2, torch.atanh((offset / half).clamp(max=0.9)), 0.0)
        return torch.tanh(latents.float() + shift) * half - offset

    def prepare(self, latents: torch.Tensor) -> torch.Tensor:
        return self.bound(latents) / (self.levels // 2)

    def digits(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) to each element's level, (..., code_dim) int64 in 0 .. levels - 1."""
        digits = self.bound(latents).round().long() + self.levels // 2
        return torch.minimum(digits.clamp(min=0), self.levels - 1)

    def values(self, digits: torch.Tensor) -> torch.Tensor:
        """Digits (..., code_dim) to quantized elements in [-1, 1], float32."""
        middle = self.levels // 2
        return (digits - middle).float() / middle

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        return (self.digits(latents) * self.strides).sum(-1, keepdim=True)

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        check_range(codes, self.size)
        quantized = self.values(codes // self.strides % self.levels)
        return quantized if absent is None else torch.where(absent, torch.zeros_like(quantized), quantized)

    def code_vectors(self) -> list[torch.Tensor]:
        return [self.decode(torch.arange(self.size, device=self.levels.device)[:, None])]

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim). The gradient of the rounding is straight-through, that of tanh exact."""
        if self.learns:
            check_finite(latents)
        digits = self.digits(latents)
        quantized = straight_through(self.prepare(latents), self.values(digits))
        return QuantizerOutput(quantized, (digits * self.strides).sum(-1, keepdim=True), quantized.new_zeros(()))
