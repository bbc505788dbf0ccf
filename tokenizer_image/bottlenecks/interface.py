"""`Bottleneck`, the interface of what may stand between encoder and decoder in a quantizer's place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn

Grid = tuple[int, int]


@dataclass
class Encoded:
    """What a bottleneck's `forward` reads.

    Attributes:
        features: (B, h, w, encoder_channels) float32, the encoder's output, channel-last; h = w = 1 where latents are
            of the whole picture.
        pixel_values: (B, C, H, W), what the encoder has read. Where the bottleneck `needs_input_gradient`, `features`
            has a graph that leads to it.
        layers: the encoder's, where it is fully connected; they map flattened pixel_values to flattened latents.
        classes: (B,) int64, of a conditional bottleneck.
        share: of the training budget that is spent, in [0, 1], which schedules follow.
    """

    features: torch.Tensor
    pixel_values: torch.Tensor
    layers: nn.Sequential | None = None
    classes: torch.Tensor | None = None
    share: float = 1.0


@dataclass
class BottleneckOutput:
    """What a bottleneck's `forward` returns.

    Attributes:
        latents: (B, h, w, decoder_channels) float32, for the decoder, with a gradient to the features.
        loss: scalar float32, already weighted: a mean over pictures of a sum over a picture's latents. It stands beside
            the reconstruction error *summed* over a picture's values, as in the papers; the autoencoder, whose error is
            a mean over values, divides it by their number.
        figures: scalars to log, without gradient.
    """

    latents: torch.Tensor
    loss: torch.Tensor
    figures: dict[str, torch.Tensor] = field(default_factory=dict)


class Bottleneck(nn.Module):
    """Features of the encoder to latents, and a term of the loss.

    In evaluation mode nothing is random unless a figure is an estimate, which then has noise of a fixed seed.

    Attributes:
        code_dim: size of a latent, D.
        num_levels: latents that a picture has, coarse to fine; 1 but for a hierarchy.
        has_prior: whether `sample` draws latents.
        needs_input_gradient: whether the loss differentiates the features with respect to the pixels.
    """

    num_levels: int = 1
    has_prior: bool = False
    needs_input_gradient: bool = False

    def __init__(self, code_dim: int) -> None:
        super().__init__()
        self.code_dim = code_dim

    @property
    def encoder_channels(self) -> int:
        """Channels of the features that it reads."""
        return self.code_dim

    @property
    def decoder_channels(self) -> int:
        """Channels of what the decoder reads."""
        return self.code_dim

    def forward(self, encoded: Encoded) -> BottleneckOutput:
        """The training pass: latents, with noise where the bottleneck has some, and its loss."""
        raise NotImplementedError

    def encode(self, features: torch.Tensor, classes: torch.Tensor | None = None) -> list[torch.Tensor]:
        """Features (B, h, w, encoder_channels) to each level's latents (B, h', w', D) float32, coarse to fine, without
        noise."""
        raise NotImplementedError

    def decoder_input(self, levels: Sequence[torch.Tensor], classes: torch.Tensor | None = None) -> torch.Tensor:
        """Latents of `encode` or `sample` to what the decoder reads, (B, h, w, decoder_channels).

        Args:
            levels: coarse to fine; those that are absent at the end are at the mean of their prior.
        """
        return levels[-1]

    def sample(
        self,
        count: int,
        grid: Grid,
        generator: torch.Generator | None = None,
        classes: torch.Tensor | None = None,
        temperature: float = 1.0,
    ) -> list[torch.Tensor]:
        """Latents of `count` pictures from the prior, as `encode` returns them.

        Args:
            grid: rows and columns of the finest level's latents.
            temperature: the prior's standard deviation is multiplied by it.

        Raises:
            ValueError: the bottleneck has no prior.
        """
        raise ValueError(
            f"the bottleneck {type(self).__name__} has no prior to sample from: those of --bottleneck gaussian, "
            "conditional and hierarchical have one"
        )


def sum_over_picture(values: torch.Tensor) -> torch.Tensor:
    """(B, h, w, D) to a scalar: the sum over a picture's latents, averaged over pictures."""
    return values.flatten(1).sum(dim=1).mean()


def noise_like(values: torch.Tensor, training: bool) -> torch.Tensor:
    """Standard normal noise: of torch's global generator in training, else of a fixed seed."""
    if training:
        return torch.randn_like(values)
    generator = torch.Generator(values.device).manual_seed(0)
    return torch.randn(values.shape, generator=generator, device=values.device, dtype=values.dtype)


def hoyer_sparsity(latents: torch.Tensor) -> torch.Tensor:
    """(sqrt(n) - |h|_1 / |h|_2) / (sqrt(n) - 1) of each picture's n latents, averaged over pictures: 0 where all are
    equal, 1 where one alone is not zero (Hoyer 2004, Non-negative matrix factorization with sparseness constraints).

    Args:
        latents: (B, h, w, D), with at least two numbers a picture, else the sparsity is 0.
    """
    flat = latents.detach().float().flatten(1)
    root = flat.shape[1] ** 0.5
    if root <= 1:
        return flat.new_zeros(())
    ratio = flat.abs().sum(dim=1) / flat.norm(dim=1).clamp(min=torch.finfo(flat.dtype).tiny)
    return ((root - ratio) / (root - 1)).clamp(0, 1).mean()
