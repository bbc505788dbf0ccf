"""Error of a reconstruction, pixel by pixel and in the frequency domain."""

from __future__ import annotations

import torch
from torch import nn


class ReconstructionLoss(nn.Module):
    """(1 - a) mean (y - x)^2 + a mean |y - x| + f * focal frequency loss, with x the picture and y its reconstruction.

    Args:
        absolute_share: a, in [0, 1]; 0 is squared error alone.
        frequency_weight: f, at least 0.
    """

    def __init__(self, absolute_share: float = 0.0, frequency_weight: float = 0.0) -> None:
        super().__init__()
        self.absolute_share, self.frequency_weight = absolute_share, frequency_weight

    def forward(self, pixel_values: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
        """Two (B, C, H, W) about [-1, 1] to a scalar in float32."""
        pixel_values, reconstruction = pixel_values.float(), reconstruction.float()
        difference = reconstruction - pixel_values
        loss = (1 - self.absolute_share) * difference.square().mean()
        if self.absolute_share:
            loss = loss + self.absolute_share * difference.abs().mean()
        if self.frequency_weight:
            loss = loss + self.frequency_weight * focal_frequency_loss(pixel_values, reconstruction)
        return loss


def focal_frequency_loss(pixel_values: torch.Tensor, reconstruction: torch.Tensor) -> torch.Tensor:
    """mean over frequencies of w |F(y) - F(x)|^2, with w = |F(y) - F(x)| over its largest value in the picture.

    F is the orthonormal two-dimensional Fourier transform; w, through which no gradient passes, gives most weight to
    the frequencies that are reconstructed worst (Jiang et al. 2021, Focal Frequency Loss).

    Args:
        pixel_values, reconstruction: (B, C, H, W) float32.

    Returns:
        A scalar.
    """
    spectrum = torch.fft.rfft2(reconstruction - pixel_values, norm="ortho")
    power = spectrum.real.square() + spectrum.imag.square()
    weight = power.detach().sqrt()
    largest = weight.amax(dim=(-2, -1), keepdim=True).clamp(min=torch.finfo(weight.dtype).tiny)
    return (weight / largest * power).mean()
