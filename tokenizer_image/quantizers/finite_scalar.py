"""Finite scalar quantization: every number of a latent is rounded to one of a few levels."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from tokenizer_image.quantizers.distributed import check_finite
from tokenizer_image.quantizers.estimators import straight_through
from tokenizer_image.quantizers.interface import Quantizer, QuantizerOutput, check_range

# Levels for about 2^8, 2^10, ... codes (Mentzer et al. 2023, table 1).
LEVELS = {8: (8, 6, 5), 10: (8, 5, 5, 5), 12: (7, 5, 5, 5, 5), 14: (8, 8, 8, 6, 5), 16: (8, 8, 8, 5, 5, 5)}
SLACK = 1e-3  # so that tanh, which never reaches 1, can reach the outermost level


def levels_for(codebook_size: int) -> tuple[int, ...]:
    """The paper's levels whose product is nearest to `codebook_size` on a log scale."""
    return min(LEVELS.values(), key=lambda levels: abs(math.log(math.prod(levels) / codebook_size)))


class FiniteScalarQuantizer(Quantizer):
    """A grid in place of a codebook (Mentzer et al. 2023, FSQ): nothing to learn, nothing to collapse, no extra loss.

    Number i of a latent is squeezed into L_i levels, z -> round(h tanh(z + s) - o) with h = (L_i - 1) / 2, and o, s
    shifts that make an even number of levels symmetric. Quantized numbers are in [-1, 1]. A code is the levels read as
    digits, the first the least significant.

    Args:
        levels: number of levels of each of the `code_dim = len(levels)` numbers.

    Raises:
        ValueError: fewer than 2 levels somewhere.
    """

    levels: torch.Tensor
    strides: torch.Tensor

    def __init__(self, levels: Sequence[int]) -> None:
        super().__init__()
        if not levels or min(levels) < 2:
            raise ValueError(f"levels={list(levels)}: each number of a latent needs at least 2 levels")
        self.code_dim = len(levels)
        self.size = math.prod(levels)
        self.register_buffer("levels", torch.tensor(levels))
        self.register_buffer("strides", torch.tensor([math.prod(levels[:i]) for i in range(len(levels))]))

    @property
    def codebook_sizes(self) -> list[int]:
        return [self.size]

    def squeeze(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) to numbers whose rounding is a level, about -L/2 .. L/2, float32."""
        half = (self.levels - 1) * (1 + SLACK) / 2
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        # Of two levels the paper's shift would put the border far from where latents start.
        shift = torch.where(self.levels > 2, torch.atanh((offset / half).clamp(max=0.9)), 0.0)
        return torch.tanh(latents.float() + shift) * half - offset

    def prepare(self, latents: torch.Tensor) -> torch.Tensor:
        return self.squeeze(latents) / (self.levels // 2)

    def digits(self, latents: torch.Tensor) -> torch.Tensor:
        """(..., code_dim) int64, each in 0 .. levels - 1."""
        digits = self.squeeze(latents).round().long() + self.levels // 2
        return torch.minimum(digits.clamp(min=0), self.levels - 1)

    def place(self, digits: torch.Tensor) -> torch.Tensor:
        """Digits (..., code_dim) to quantized numbers in [-1, 1]."""
        middle = self.levels // 2
        return (digits - middle).float() / middle

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        return (self.digits(latents) * self.strides).sum(-1, keepdim=True)

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        check_range(codes, self.size)
        found = self.place(codes // self.strides % self.levels)
        return found if absent is None else torch.where(absent, torch.zeros_like(found), found)

    def code_vectors(self) -> list[torch.Tensor]:
        return [self.decode(torch.arange(self.size, device=self.levels.device)[:, None])]

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim). The gradient passes the rounding, not the tanh."""
        if self.learns:
            check_finite(latents)
        digits = self.digits(latents)
        quantized = straight_through(self.prepare(latents), self.place(digits))
        return QuantizerOutput(quantized, (digits * self.strides).sum(-1, keepdim=True), quantized.new_zeros(()))
