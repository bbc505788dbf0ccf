"""Gradient estimators: the backward pass of quantized = lookup(latents), which has no useful gradient of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def straight_through(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """`quantized`, whose gradient goes to `latents` unchanged (Bengio et al. 2013). Both (..., D)."""
    return _StraightThrough.apply(latents, quantized)


class _StraightThrough(torch.autograd.Function):
    """latents + (quantized - latents).detach(), without its two passes over memory and its rounding error."""

    @staticmethod
    def forward(ctx: Any, latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        return gradient, None


def straight_through_with_loss(latents: torch.Tensor, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`straight_through`, and the mean of (latents - quantized)^2, whose gradient goes to `latents` alone.

    Both are (..., D). One operation adds both gradients in one pass over memory: on a CPU, memory traffic is most of a
    quantizer's time besides the search.
    """
    return _StraightThroughWithLoss.apply(latents, quantized)


class _StraightThroughWithLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, latents: torch.Tensor, quantized: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        difference = latents - quantized
        ctx.save_for_backward(difference)
        ctx.set_materialize_grads(False)
        return quantized.view_as(quantized), torch.linalg.vector_norm(difference).square() / difference.numel()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor | None, of_loss: torch.Tensor | None) -> tuple[Any, None]:
        if of_loss is None:
            return gradient, None
        (difference,) = ctx.saved_tensors
        scale = of_loss * (2 / difference.numel())
        return difference * scale if gradient is None else torch.addcmul(gradient, difference, scale), None


def rotate(latents: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
    """`quantized` as a rotation and rescaling of `latents`, both constant in the backward pass (Fifty et al. 2024).

    With e = latents / |latents|, q = quantized / |quantized| and r = (e + q) / |e + q|, section 4.2:

        quantized = |quantized| / |latents| (I - 2 r r^T + 2 q e^T) latents

    The angle between gradient and latent equals the angle between gradient and code, whereas straight-through copies
    the gradient. Both (..., D).
    """
    with torch.no_grad():
        length = latents.norm(dim=-1, keepdim=True)
        size = quantized.norm(dim=-1, keepdim=True) / length.clamp(min=1e-6)
        e, q = F.normalize(latents, dim=-1), F.normalize(quantized, dim=-1)
        r = F.normalize(e + q, dim=-1)
    reflected = latents - 2 * (latents * r).sum(-1, keepdim=True) * r
    rotated = size * (reflected + 2 * (latents * e).sum(-1, keepdim=True) * q)
    # A latent at zero has no direction to rotate: it takes the straight-through gradient. The last line makes the
    # value exactly the code.
    rotated = torch.where(length > 1e-6, rotated, latents)
    return rotated + (quantized - rotated).detach()
