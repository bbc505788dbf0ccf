"""A patch discriminator, what it learns from, and what the decoder learns from it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

GROUPS = 8  # of channels, normalised together
SLOPE = 0.2  # of the leaky ReLUs


class PatchDiscriminator(nn.Module):
    """Pictures (B, C, H, W) to one logit for each patch, above zero where the patch looks real (Isola et al. 2017).

    3x3 convolutions, each but the last followed by a leaky ReLU and a blurred down-sampling by 2 (Zhang 2019), in
    which periods of two and of four vanish wherever the grid begins. All but the first have group normalisation (Wu and
    He 2018) in front of them, as in TiTok (Yu et al. 2024). Spectral normalisation (Miyato et al. 2018) in its place,
    together with the means over neighbours, left logits of a few hundredths, and the discriminator told nothing apart.

    Args:
        num_channels: C.
        hidden_sizes: channels of each layer; a patch is 2 ** len(hidden_sizes) pixels wide, its receptive field wider.
    """

    def __init__(self, num_channels: int, hidden_sizes: Sequence[int] = (32, 64, 128)) -> None:
        super().__init__()
        sizes = [num_channels, *hidden_sizes]
        self.layers = nn.ModuleList(
            nn.Conv2d(before, after, 3, padding=1) for before, after in zip(sizes[:-1], sizes[1:], strict=True)
        )
        self.norms = nn.ModuleList(nn.GroupNorm(math.gcd(size, GROUPS), size) for size in hidden_sizes)
        self.head = nn.Conv2d(sizes[-1], 1, 3, padding=1)

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Logits (B, 1, h, w) and the features of each layer."""
        features = []
        hidden = pixel_values
        for layer, norm in zip(self.layers, self.norms, strict=True):
            hidden = F.leaky_relu(layer(hidden), SLOPE)
            features.append(hidden)
            hidden = norm(blurred_half(hidden))
        return self.head(hidden), features


def blurred_half(hidden: torch.Tensor) -> torch.Tensor:
    """(B, C, h, w) to (B, C, h / 2, w / 2): means over 4 x 4 positions, which overlap."""
    return F.avg_pool2d(hidden, 4, stride=2, padding=1, count_include_pad=False)


def hinge_loss(real: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """What the discriminator makes small: half of mean max(0, 1 - real) + mean max(0, 1 + drawn), for logits of any
    shape (Lim and Ye 2017, Geometric GAN)."""
    return 0.5 * (F.relu(1 - real.float()).mean() + F.relu(1 + drawn.float()).mean())


def feature_matching(wanted: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> torch.Tensor:
    """Mean over layers of |a - b| over the mean of |a| (Larsen et al. 2016; the scale as in EnCodec, Défossez et al.
    2022). Gradients pass through `found` alone."""
    terms = [
        F.l1_loss(other.float(), one.detach().float()) / one.detach().float().abs().mean().clamp(min=1e-6)
        for one, other in zip(wanted, found, strict=True)
    ]
    return torch.stack(terms).mean()


class LeCam(nn.Module):
    """Keeps a discriminator that has few pictures from being too sure (Tseng et al. 2021, LeCam GAN).

    mean max(0, real - m_drawn)^2 + mean max(0, m_real - drawn)^2, with m the moving averages of the logits.

    Args:
        decay: of the moving averages, in [0, 1).
    """

    real: torch.Tensor
    drawn: torch.Tensor

    def __init__(self, decay: float = 0.99) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("real", torch.zeros(()))
        self.register_buffer("drawn", torch.zeros(()))

    @torch.no_grad()
    def update(self, real: torch.Tensor, drawn: torch.Tensor) -> None:
        """Fold in the mean logits, two scalars, the same on all processes."""
        self.real.lerp_(real.float(), 1 - self.decay)
        self.drawn.lerp_(drawn.float(), 1 - self.decay)

    def forward(self, real: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """A scalar for logits of any shape."""
        above = F.relu(real.float() - self.drawn).square().mean()
        return above + F.relu(self.real - drawn.float()).square().mean()


def augment(
    pixel_values: torch.Tensor, generator: torch.Generator, window: tuple[int, int] | None = None
) -> torch.Tensor:
    """Brightness, saturation, contrast and a small shift, at random for each picture, through which gradients pass
    (Zhao et al. 2020, DiffAugment without cutout).

    Args:
        pixel_values: (B, C, H, W) about [-1, 1].
        generator: of random numbers, on the CPU.
        window: (height, width) of the part of each picture that is returned, from a random place (default: all of it).
    """
    count, _, *sides = pixel_values.shape
    draws = torch.rand(count, 5, generator=generator)
    brightness, saturation, contrast = (one.view(-1, 1, 1, 1).to(pixel_values) for one in draws[:, :3].unbind(1))
    pixels = pixel_values + (brightness - 0.5)
    grey = pixels.mean(dim=1, keepdim=True)
    pixels = grey + (pixels - grey) * (2 * saturation)
    mean = pixels.mean(dim=(1, 2, 3), keepdim=True)
    pixels = mean + (pixels - mean) * (contrast + 0.5)
    windows = _windows(pixels, draws[:, 3:], window or (sides[0], sides[1]))
    return windows.contiguous(memory_format=torch.channels_last)


def _windows(pixels: torch.Tensor, draws: torch.Tensor, window: tuple[int, int]) -> torch.Tensor:
    """A window of each picture (B, C, H, W), padded with zeros by an eighth of its sides, from a place by `draws`
    (B, 2)."""
    down, right = pixels.shape[2] // 8, pixels.shape[3] // 8
    padded = F.pad(pixels, (right, right, down, down))
    room = torch.tensor([side - part + 1 for side, part in zip(padded.shape[2:], window, strict=True)])
    places = (draws * room).long().tolist()
    height, width = window
    return torch.stack([padded[i, :, top : top + height, left : left + width] for i, (top, left) in enumerate(places)])
