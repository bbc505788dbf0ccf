"""Residual quantization: several codes per position, each quantizing the residual of the ones before."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from tokenizer_image.quantizers.distributed import check_finite
from tokenizer_image.quantizers.estimators import rotate, straight_through
from tokenizer_image.quantizers.interface import Quantizer, QuantizerOutput, check_values
from tokenizer_image.quantizers.vector import VectorQuantizer


class ResidualQuantizer(Quantizer):
    """A stack of vector quantizers (Lee et al. 2022, RQ-VAE, section 3.2).

    With r_0 = latents, depth d = 1, 2, ... quantizes r_{d-1} to code k_d and leaves r_d = r_{d-1} - e(k_d); the
    quantized vector is the sum of the codebook rows e(k_d). The commitment loss is the mean over depths, so that each
    partial sum is close to the latents.

    Args:
        codebook_sizes: size of each depth's codebook, first to last.
        code_dim: size of a latent.
        shared_codebook: one codebook for all depths, as in the paper; the sizes must then be equal.
        depth_dropout: share of training examples that are quantized by fewer depths, 1 to all but one with equal
            probability, so that the first depths stand alone (Zeghidour et al. 2021, SoundStream, section III-C).
            Every depth's codebook learns from all examples.
        options: keyword arguments of each `VectorQuantizer`.

    Raises:
        ValueError: a shared codebook of several sizes.
    """

    def __init__(
        self,
        codebook_sizes: list[int],
        code_dim: int,
        *,
        shared_codebook: bool = False,
        depth_dropout: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__()
        check_values({"depth_dropout": depth_dropout})
        if shared_codebook and len(set(codebook_sizes)) > 1:
            raise ValueError(
                f"codebook_sizes {codebook_sizes}: depths that share a codebook have one size; make them equal, or "
                "give each depth its own (shared_codebook=False)"
            )
        self.code_dim = code_dim
        self.shares_codebook = shared_codebook
        self.num_depths = len(codebook_sizes)
        self.depth_dropout = depth_dropout
        distinct = codebook_sizes[:1] if shared_codebook else codebook_sizes
        self.depths = nn.ModuleList(VectorQuantizer(size, code_dim, **options) for size in distinct)

    @property
    def quantizers(self) -> list[VectorQuantizer]:
        """The quantizer of each depth, first to last."""
        distinct: list[VectorQuantizer] = list(self.depths)  # type: ignore[arg-type]
        return distinct * self.num_depths if self.shares_codebook else distinct

    @property
    def codebook_sizes(self) -> list[int]:
        return [quantizer.size for quantizer in self.quantizers]

    def code_vectors(self) -> list[torch.Tensor]:
        return [quantizer.code_vectors()[0] for quantizer in self.quantizers]

    def encode(self, latents: torch.Tensor) -> torch.Tensor:
        residual, codes = latents.float(), [self.quantizers[0].encode(latents)]
        for before, quantizer in pairwise(self.quantizers):
            residual = residual - before.decode(codes[-1])
            codes.append(quantizer.encode(residual))
        return torch.cat(codes, dim=-1)

    def decode(self, codes: torch.Tensor, absent: torch.Tensor | None = None) -> torch.Tensor:
        rows = [
            quantizer.decode(codes[..., d : d + 1], None if absent is None else absent[..., d : d + 1])
            for d, quantizer in enumerate(self.quantizers)
        ]
        return torch.stack(rows).sum(0)

    def forward(self, latents: torch.Tensor) -> QuantizerOutput:
        """Quantize latents (..., code_dim); in train mode, update every depth's codebook."""
        latents = latents.float()
        if self.learns:  # before the first depth's update
            check_finite(latents)
        residual, quantized, codes = latents, torch.zeros_like(latents), []
        loss, dead, revived = latents.new_zeros(()), 0, 0
        kept = self._kept_depths(latents)
        for depth, quantizer in enumerate(self.quantizers):
            output = quantizer(residual)
            # Detached: with the straight-through gradient of `rows`, the next residual's gradient would cancel to zero.
            rows = output.quantized.detach()
            residual = residual - rows
            quantized = quantized + (rows if kept is None else torch.where(kept > depth, rows, 0))
            loss, dead, revived = loss + output.loss, dead + output.dead, revived + output.revived
            codes.append(output.codes)
        estimator = rotate if self.quantizers[0].rotation_trick else straight_through
        quantized = estimator(latents, quantized)
        return QuantizerOutput(quantized, torch.cat(codes, dim=-1), loss / len(codes), dead, revived)

    def _kept_depths(self, latents: torch.Tensor) -> torch.Tensor | None:
        """How many depths each example of latents (B, ..., code_dim) is quantized by, int64 (B, 1, ...); None: all."""
        if not self.training or not self.depth_dropout or self.num_depths == 1:
            return None
        count, device = len(latents), latents.device
        fewer = torch.randint(1, self.num_depths, (count,), device=device)
        kept = torch.where(torch.rand(count, device=device) < self.depth_dropout, fewer, self.num_depths)
        return kept.view(-1, *[1] * (latents.ndim - 1))

    @torch.no_grad()
    def refit(self, batches: Sequence[torch.Tensor]) -> None:
        if self.shares_codebook:
            # One refit over the residuals of all depths: a row becomes the mean of all vectors quantized to it.
            residuals: list[torch.Tensor] = []
            for _ in self.quantizers:
                residuals += batches
                batches = [batch - self.quantizers[0].decode(self.quantizers[0].encode(batch)) for batch in batches]
            self.quantizers[0].refit(residuals)
            return
        for quantizer in self.quantizers:
            quantizer.refit(batches)
            batches = [batch - quantizer.decode(quantizer.encode(batch)) for batch in batches]
