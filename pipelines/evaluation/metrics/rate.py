"""What the codes of a picture cost: bits at a fixed rate and under the code histogram, and compression factors."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from tokenizer_image.layout import CodeLayout


def rate_figures(codes: Tensor, layout: CodeLayout, picture_shape: tuple[int, int, int]) -> dict[str, Any]:
    """Bits of a picture's codes, all and level by level.

    At a fixed rate each code takes log2 of its codebook's size. Under the histogram of a level and depth over these
    very pictures it takes the entropy -sum p log2 p: what an ideal entropy coder needs that knows the histogram, which
    itself is left out. With few pictures for each code that is too low. VQ-VAE-2 (Razavi et al. 2019, figure 3) calls a
    level so many times smaller than the picture as the picture has 8-bit values for each of its codes, whatever a
    code's bits: `values_per_code`. `compression` is the picture's bits over the level's at the fixed rate.

    Args:
        codes: (n, T) int64.
        layout: of the T codes.
        picture_shape: (channels, height, width), of 8 bits each.

    Returns:
        `bits_per_picture`, `entropy_bits_per_picture`, `bits_per_pixel` (fixed rate), `compression`, and `levels`,
        coarse to fine: `level`, `num_codes` (of a picture), `bits`, `entropy_bits`, `values_per_code`, `compression`.
    """
    channels, height, width = picture_shape
    picture_bits = 8 * channels * height * width
    low, high = torch.from_numpy(layout.low), torch.from_numpy(layout.high)
    parts: dict[tuple[int, int], list[int]] = {}
    for position, place in enumerate(zip(layout.level.tolist(), layout.depth.tolist(), strict=True)):
        parts.setdefault(place, []).append(position)
    levels: dict[int, dict[str, Any]] = {}
    for (level, _), positions in parts.items():
        own = levels.setdefault(level, {"level": level, "num_codes": 0, "bits": 0.0, "entropy_bits": 0.0})
        first, size = int(low[positions[0]]), int(high[positions[0]] - low[positions[0]])
        counts = torch.bincount((codes[:, positions] - first).reshape(-1), minlength=size)
        own["num_codes"] += len(positions)
        own["bits"] += len(positions) * math.log2(size)
        own["entropy_bits"] += len(positions) * entropy_bits(counts)
    for own in levels.values():
        own["values_per_code"] = channels * height * width / own["num_codes"]
        own["compression"] = picture_bits / own["bits"] if own["bits"] else math.inf
    bits = sum(own["bits"] for own in levels.values())
    return {
        "n": len(codes),
        "bits_per_picture": bits,
        "entropy_bits_per_picture": sum(own["entropy_bits"] for own in levels.values()),
        "bits_per_pixel": bits / (height * width),
        "compression": picture_bits / bits if bits else math.inf,
        "levels": [levels[level] for level in sorted(levels)],
    }


def entropy_bits(counts: Tensor) -> float:
    """-sum p log2 p of the shares p of counts (K,), at least 0."""
    shares = counts[counts > 0].double() / counts.sum()
    return max(0.0, float(-(shares * shares.log2()).sum()))
