"""Continuous latents, uniformly quantized: what an autoencoder without a quantizer costs in bits."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipelines.evaluation.rates.scalar_codes import CodeHistogram, ScalarQuantizers, uniform_quantizers


@dataclass(frozen=True)
class LatentCoding:
    """The two halves of a model with continuous latents.

    Attributes:
        encode: pixel_values (B, C, H, W) in [-1, 1] to each level's latents (B, h, w, D).
        decode: these latents to pixel_values in [-1, 1].
    """

    encode: Callable[[Tensor], Sequence[Tensor]]
    decode: Callable[[list[Tensor]], Tensor]


class QuantizedLatents:
    """Latents whose numbers each have so many levels of equal steps.

    Each channel of each level has a range of its own, that of the training latents, without one in a thousand at each
    end, which are clipped.

    Args:
        coding: of the model.
        training: latents of training pictures, batch by batch, as `coding.encode` returns them.
        levels: of each number.

    Raises:
        ValueError: no latents, or fewer than two levels.
    """

    def __init__(self, coding: LatentCoding, training: Iterable[Sequence[Tensor]], levels: int) -> None:
        batches = [[one.float().cpu() for one in batch] for batch in training]
        if not batches:
            raise ValueError("there are no latents to take ranges from: give at least one batch")
        whole = [torch.cat(parts).double().numpy() for parts in zip(*batches, strict=True)]
        self.coding = coding
        self._quantizers: list[ScalarQuantizers] = [
            uniform_quantizers(one.reshape(-1, one.shape[-1]), levels) for one in whole
        ]
        self.numbers = sum(int(np.prod(one.shape[1:])) for one in whole)
        self.fixed_bits = self.numbers * float(np.log2(levels))
        codes = self._codes(whole)
        self._histograms = [
            CodeHistogram(one.reshape(-1, one.shape[-1]), quantizers.low, quantizers.high)
            for one, quantizers in zip(codes, self._quantizers, strict=True)
        ]

    def _codes(self, levels: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Latents (B, h, w, D) of each level to codes (B, h * w, D)."""
        return [
            quantizers.encode(one.reshape(-1, one.shape[-1])).reshape(len(one), -1, one.shape[-1])
            for one, quantizers in zip(levels, self._quantizers, strict=True)
        ]

    @torch.inference_mode()
    def restore(self, pixel_values: Tensor) -> tuple[Tensor, np.ndarray]:
        """Pictures (B, C, H, W) in [-1, 1] through quantized latents: pictures, and the bits of each (B,) under the
        histogram of the training pictures' codes."""
        latents = list(self.coding.encode(pixel_values))
        codes = self._codes([one.double().cpu().numpy() for one in latents])
        bits = np.zeros(len(pixel_values))
        decoded = []
        for one, code, quantizers, histogram in zip(latents, codes, self._quantizers, self._histograms, strict=True):
            flat = code.reshape(-1, code.shape[-1])
            bits += histogram.bits(flat).reshape(len(one), -1).sum(axis=1)
            decoded.append(torch.from_numpy(quantizers.decode(flat)).reshape(one.shape).to(one))
        return self.coding.decode(decoded), bits
