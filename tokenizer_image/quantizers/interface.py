"""`Quantizer`, the interface of all quantizers, and `QuantizerOutput`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class QuantizerOutput:
    """What a quantizer's `forward` returns.

    Attributes:
        quantized: (..., code_dim) float32, with a gradient to the latents.
        codes: (..., codes_per_position) int64, each in its own range `0 .. codebook_sizes[depth] - 1`.
        loss: scalar float32, already weighted.
        dead: number of codes whose moving count is below the revival threshold, before any is revived.
        revived: number of dead codes that were replaced in this step.
    """

    quantized: torch.Tensor
    codes: torch.Tensor
    loss: torch.Tensor
    dead: int = 0
    revived: int = 0


class Quantizer(nn.Module):
    """Latents to codes and back: the interface that `VQVAE` requires of a quantizer.

    Latents are channel-last, (..., code_dim), with any number of leading dimensions: pictures (B, h, w, D), audio
    (B, t, D), video (B, t, h, w, D). Only `forward` in train mode updates a codebook; `encode` and `decode` are pure.

    Attributes:
        code_dim: size of a latent.
        shares_codebook: whether all codes of a position come from one codebook (and so from one range of codes).
        frozen: whether the codebook stays as it is in train mode, too.
        learning_state: names of its parameters, buffers and sub-modules that neither codes nor their decoding depend
            on, such as moving averages.
        decoding_state: names of those that only `decode` depends on. Neither is part of the tokenizer's fingerprint.
    """

    code_dim: int
    shares_codebook: bool = False
    learning_state: tuple[str, ...] = ()
    decoding_state: tuple[str, ...] = ()

    @property
    def codebook_sizes(self) -> list[int]:
        """Codebook size of each of the `codes_per_position` codes."""
        raise NotImplementedError

    @property
    def codes_per_position(self) -> int:
        """Number of codes per latent."""
        return len(self.codebook_sizes)

    @property
    def codebook_size(self) -> int:
        """Number of different codes, over all codebooks."""
        sizes = self.codebook_sizes
        return sizes[0] if self.shares_codebook else sum(sizes)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim) float; in train mode, update the codebook."""
        raise NotImplementedError

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) to codes (..., codes_per_position) int64. Never changes a buffer."""
        raise NotImplementedError

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        """Codes (..., codes_per_position) int64 to quantized (..., code_dim) float32.

        Where `absent` (the codes' shape, bool) is set, the mean of the codebook replaces the code.

        Raises:
            ValueError: a code is outside its range.
        """
        raise NotImplementedError

    def code_vectors(self) -> list[torch.Tensor] | None:
        """One (codebook size, code_dim) table per code of a position: each code's contribution to the quantized latent.
        None if the quantized latent is not a sum over codes."""
        return None

    def prepare(self, latents: torch.Tensor) -> torch.Tensor:
        """Latents (..., code_dim) in the space of `code_vectors`, float32: normalised or bounded, in some kinds."""
        return latents.float()

    def refit(self, batches: Sequence[torch.Tensor]) -> None:
        """Fit the codebook to batches of latents (n, code_dim) of changed encoder weights. Does nothing if the kind has
        no codebook or the quantizer is frozen."""

    def freeze(self, frozen: bool = True) -> None:
        """Stop updates of the codebook, or with False resume them; gradients to the latents are unaffected."""
        for module in self.modules():
            if isinstance(module, Quantizer):
                module.frozen = frozen

    frozen: bool = False

    @property
    def learns(self) -> bool:
        """Whether `forward` updates the codebook."""
        return self.training and not self.frozen


def check_values(options: Mapping[str, Any], labels: Mapping[str, str] | None = None) -> None:
    """Raise ValueError for an option of a quantizer with a value out of its range.

    Args:
        options: values by name; a name that is not in `RANGES` is not checked.
        labels: what the message calls an option instead of its name, such as {"ema_decay": "--codebook_decay"}.
    """
    for name, value in options.items():
        if name in RANGES and not RANGES[name][0](value):
            label = f"{labels[name]} " if labels and name in labels else f"{name}="
            raise ValueError(f"{label}{value} must be {RANGES[name][1]}")


Range = tuple[Callable[[float], bool], str]
NOT_NEGATIVE: Range = (lambda value: value >= 0, "at least 0")
POSITIVE_COUNT: Range = (lambda value: value >= 1, "at least 1")
RANGES: dict[str, Range] = {
    "commitment_weight": NOT_NEGATIVE,
    "ema_decay": (lambda value: 0 <= value < 1, "in [0, 1); 0.99 is usual"),
    "revival_threshold": (lambda value: 0 <= value < 1, "in [0, 1): a share of the mean count"),
    "temperature": NOT_NEGATIVE,
    "epsilon": NOT_NEGATIVE,
    "entropy_weight": NOT_NEGATIVE,
    "diversity": NOT_NEGATIVE,
    "entropy_temperature": (lambda value: value > 0, "above 0"),
    "codebook_dim": POSITIVE_COUNT,
    "depth_dropout": (lambda value: 0 <= value <= 1, "in [0, 1]: a share of the examples"),
}


def check_range(codes: torch.Tensor, codebook_size: int) -> None:
    """Raise ValueError unless every code is in [0, codebook_size)."""
    if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= codebook_size):
        raise ValueError(
            f"codes from {int(codes.min())} to {int(codes.max())}: this codebook has codes 0 to {codebook_size - 1}"
        )
