"""What every quantizer is and answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn


@dataclass
class QuantizerOutput:
    """What a quantizer's `forward` returns.

    Attributes:
        quantized: (..., code_dim) float32, with a gradient to the latents.
        codes: (..., codes_per_position) int64, each in its own range `0 .. codebook_sizes[depth] - 1`.
        loss: scalar float32, already weighted.
        dead: number of codes that hardly any latent has used of late, before any was revived.
        revived: number of dead codes that were replaced in this step.
    """

    quantized: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor
    dead: int = 0
    revived: int = 0


class Quantizer(nn.Module):
    """Latents to codes and back: what `VQVAE` asks of a quantizer, and what one of your own must offer.

    Latents are channel-last, (..., code_dim), with any number of leading dimensions: pictures (B, h, w, D), audio
    (B, t, D), video (B, t, h, w, D). `forward` returns a `QuantizerOutput` and is the only call in which anything
    learns, in train mode; `encode` and `decode` are pure.

    Attributes:
        code_dim: size of a latent.
        shares_codebook: whether all codes of a position come from one codebook (and so from one range of codes).
    """

    code_dim: int
    shares_codebook: bool = False

    @property
    def codebook_sizes(self) -> list[int]:
        """Codebook size of each of the `codes_per_position` codes."""
        raise NotImplementedError

    @property
    def codes_per_position(self) -> int:
        """Codes that one latent becomes."""
        return len(self.codebook_sizes)

    @property
    def codebook_size(self) -> int:
        """Number of different codes, over all codebooks."""
        sizes = self.codebook_sizes
        return sizes[0] if self.shares_codebook else sum(sizes)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim) float; learn from them in train mode."""
        raise NotImplementedError

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) to codes (..., codes_per_position) int64. Changes nothing, in train mode too."""
        raise NotImplementedError

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (..., codes_per_position) int64 to quantized (..., code_dim) float32.

        Where `absent` (the codes' shape, bool) is set, there is no code yet, and a mean stands in.

        Raises:
            ValueError: a code is outside its range.
        """
        raise NotImplementedError

    def code_vectors(self) -> list[torch.Tensor] | None:
        """For each of the `codes_per_position` codes, what it adds to a quantized latent: (its size, code_dim). None:
        this cannot be said."""
        return None

    def prepare(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) float32 as they are compared with `code_vectors`: some kinds put them on a sphere, or
        into bounds, first."""
        return latents.float()

    def refit(self, batches: Sequence[torch.Tensor]) -> None:
        """Fit the codebook to latents (n, code_dim) of another encoder than it followed; nothing where there is nothing
        to fit, or the quantizer is frozen."""

    def freeze(self, frozen: bool = True) -> None:
        """Stop learning (or go on): the codebook stays as it is, the latents still get their gradient."""
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.frozen = frozen

    frozen: bool = False

    @property
    def learns(self) -> bool:
        """Whether this `forward` teaches the codebook."""
        return self.training and not self.frozen


def check_not_negative(**values: float) -> None:
    """Raise ValueError for a value below zero, by its name."""
    for name, value in values.items():
        if value < 0:
            raise ValueError(f"{name}={value} must be at least 0")


def check_range(codes: torch.Tensor, codebook_size: int) -> None:
    """Raise ValueError unless every code is in [0, codebook_size)."""
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= codebook_size):
        raise ValueError(
            f"codes from {int(codes.min())} to {int(codes.max())}: this codebook has codes 0 to {codebook_size - 1}"
        )
