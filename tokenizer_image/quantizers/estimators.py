"""How a gradient passes the rounding: what stands for quantized = lookup(latents) in the backward pass."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def straight_through(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """`quantized`, whose gradient goes to `latents` unchanged (Bengio et al. 2013). Both (..., D)."""
    return latents + (quantized - latents).detach()


def rotate(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """`quantized`, written as a rotation and rescaling of `latents` that counts as constant (Fifty et al. 2024).

    With e = latents / |latents|, q = quantized / |quantized| and r = (e + q) / |e + q|, section 4.2:

        quantized = |quantized| / |latents| (I - 2 r r^T + 2 q e^T) latents

    so that the gradient keeps its angle to the code, where straight-through copies it. Both (..., D).
    """
    with torch.no_grad():
        length = latents.norm(dim=-1, keepdim=True)
        size = quantized.norm(dim=-1, keepdim=True) / length.clamp(min=1e-6)
        e, q = F.normalize(latents, dim=-1), F.normalize(quantized, dim=-1)
        r = F.normalize(e + q, dim=-1)
    reflected = latents - 2 * (latents * r).sum(-1, keepdim=True) * r
    rotated = size * (reflected + 2 * (latents * e).sum(-1, keepdim=True) * q)
    # A latent at zero has no direction to turn from: straight through. And the value is the code, to the last bit.
    rotated = torch.where(length > 1e-6, rotated, latents)
    return rotated + (quantized - rotated).detach()
