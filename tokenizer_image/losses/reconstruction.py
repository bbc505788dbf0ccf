"""Error of a reconstruction, pixel by pixel and in the frequency domain."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

PART = 1024  # samples
LEAST_ERROR = 1e-5  # of a part, in its weight: what is as good as exact is no longer weighed up
RECONSTRUCTION_LOSSES = ("squared", "absolute", "cross_entropy")


def pixel_error(kind: str, pixel_values: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """The error of a decoder's outputs, a mean over all values, in float32.

    - "squared": mean (y - x)^2;
    - "absolute": mean |y - x|;
    - "cross_entropy": the outputs are logits, and with x in [0, 1] and p = sigmoid(logit) it is the mean of
      -x log p - (1 - x) log(1 - p), in nats (Kingma and Welling 2014, appendix C.1; Vincent et al. 2010). It is not
      zero for an exact reconstruction of values between 0 and 1.

    Args:
        kind: a name in `RECONSTRUCTION_LOSSES`.
        pixel_values: (B, C, H, W) in [-1, 1].
        outputs: (B, C, H, W), about [-1, 1], or logits.

    Raises:
        ValueError: an unknown kind.
    """
    pixel_values, outputs = pixel_values.float(), outputs.float()
    if kind == "squared":
        return F.mse_loss(outputs, pixel_values)
    if kind == "absolute":
        return F.l1_loss(outputs, pixel_values)
    if kind == "cross_entropy":
        return F.binary_cross_entropy_with_logits(outputs, (pixel_values + 1) / 2)
    raise ValueError(f"unknown reconstruction loss {kind!r}: choose one of {', '.join(RECONSTRUCTION_LOSSES)}")


class ReconstructionLoss(nn.Module):
    """(1 - a) mean (y - x)^2 + a mean |y - x| + f * focal frequency loss, with x the picture and y its reconstruction.

    Args:
        absolute_share: a, in [0, 1]; 0 is squared error alone.
        frequency_weight: f, at least 0.
    """

    def __init__(self, absolute_share: float = 0.0, frequency_weight: float = 0.0) -> None:
        super().__init__()
        self.absolute_share, self.frequency_weight = absolute_share, frequency_weight

    def forward(self, pixel_values: torch.Tensor, reconstruction: torch.Tensor, evenness: float = 0.0) -> torch.Tensor:
        """Two (B, C, H, W) about [-1, 1], or with `evenness` two (B, C, time), to a scalar in float32.

        Args:
            evenness: in [0, 1], how far parts of a sound count alike, whatever their error (`evened`).
        """
        pixel_values, reconstruction = pixel_values.float(), reconstruction.float()
        difference = reconstruction - pixel_values
        errors = (1 - self.absolute_share) * difference.square()
        if self.absolute_share:
            errors = errors + self.absolute_share * difference.abs()
        loss = evened(errors, evenness) if evenness else errors.mean()
        if self.frequency_weight:
            loss = loss + self.frequency_weight * focal_frequency_loss(pixel_values, reconstruction)
        return loss


def evened(errors: torch.Tensor, evenness: float) -> torch.Tensor:
    """The mean of m (e_i / m)^(1 - evenness) over parts of sounds, with e_i the error of a part and m that of all.

    Its gradient goes through one factor e_i alone, so that its scale is that of the mean error; at an evenness of 1 its
    direction is that of the mean of log e_i. In the plain mean, a noise, whose samples no code can tell, has the
    largest gradient once everything else is learned, and drowns what other terms say of it: it is learned as silence.

    Args:
        errors: (B, C, time), at least 0.
        evenness: in [0, 1]; 0 is the plain mean.
    """
    parts = F.avg_pool1d(errors, min(PART, errors.shape[2]), ceil_mode=True)
    weights = ((parts.mean() + LEAST_ERROR) / (parts + LEAST_ERROR)).detach() ** evenness
    return (parts * weights).mean()


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
