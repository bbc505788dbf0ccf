"""Encoders and decoders: a convolutional pair and an MLP pair.

A module names its layers at the network's ends (from or to pixels, latents or codes) in `outer_layers`, from which
`pipelines.training.optimizers` knows that Muon is not for them.
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn
from torch.nn import functional as F

HEAD_CHANNELS = 16


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))). The second convolution is initialised to zero, so that every block starts as the
    identity and needs no normalisation (Zhang et al. 2019, Fixup)."""

    def __init__(self, channels: int, kernel_sizes: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        first, second = kernel_sizes
        self.conv1 = nn.Conv2d(channels, channels, first, padding=first // 2)
        self.conv2 = nn.Conv2d(channels, channels, second, padding=second // 2)
        self.conv2.starts_at_zero = True  # type: ignore[assignment]  # read by VQVAE._init_weights

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, channels, h, w) to the same shape."""
        return hidden + self.conv2(F.silu(self.conv1(F.silu(hidden))))


def residual_blocks(channels: int, count: int, kernel_sizes: tuple[int, int] = (3, 3)) -> nn.Sequential:
    """`count` residual blocks in a row."""
    return nn.Sequential(*(ResidualBlock(channels, kernel_sizes) for _ in range(count)))


class ChannelNorm(nn.Module):
    """Zero mean and unit variance over the channels of each position; no learned scale (Ba et al. 2016)."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, C, h, w) to the same shape."""
        return F.layer_norm(hidden.permute(0, 2, 3, 1), hidden.shape[1:2]).permute(0, 3, 1, 2)


class Encoder(nn.Module):
    """Pictures (B, C, H, W) to latents (B, code_dim, H / downsampling, W / downsampling).

    A patch embedding, then residual blocks at each resolution, with a strided convolution between resolutions. Only
    blocks of the finest resolution have spatial convolutions, one of `kernel_size` each; with `kernel_size` 1 the
    receptive field of a latent is its own `downsampling` x `downsampling` pixels. A language model learns to predict
    such local codes much sooner than codes from an encoder with a wide receptive field (figures in docs/results.md);
    the decoder, whose convolutions are 3x3, combines positions.

    Args:
        num_channels: C.
        patch_size: kernel size and stride of the first convolution.
        hidden_sizes: channels at each resolution, fine to coarse.
        num_res_blocks: per resolution.
        code_dim: channels of the output.
        kernel_size: odd.
        normalize: apply `ChannelNorm` before the output convolution.
    """

    outer_layers = ("stem", "head")

    def __init__(
        self,
        num_channels: int,
        patch_size: int,
        hidden_sizes: list[int],
        num_res_blocks: int,
        code_dim: int,
        kernel_size: int = 1,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.norm = ChannelNorm() if normalize else nn.Identity()
        self.stem = nn.Conv2d(num_channels, hidden_sizes[0], patch_size, stride=patch_size)
        stages: list[nn.Module] = [residual_blocks(hidden_sizes[0], num_res_blocks, (kernel_size, 1))]
        for fine, coarse in zip(hidden_sizes[:-1], hidden_sizes[1:], strict=True):
            stages.append(nn.Conv2d(fine, coarse, 2, stride=2))
            stages.append(residual_blocks(coarse, num_res_blocks, (1, 1)))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Conv2d(hidden_sizes[-1], code_dim, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, code_dim, H / downsampling, W / downsampling)."""
        return self.head(F.silu(self.norm(self.stages(self.stem(pixel_values)))))


class Decoder(nn.Module):
    """Quantized latents (B, code_dim, h, w) to pictures (B, C, h * downsampling, w * downsampling).

    The stages of the encoder in reverse order, with 3x3 convolutions. Each up-sampling is a 1x1 convolution and a pixel
    shuffle (Shi et al. 2016); a last 3x3 convolution at full resolution smooths the edges between patches.

    Args: as `Encoder`; `code_dim` is the channels of the input, `head_channels` those at full resolution before the
    last convolution.
    """

    outer_layers = ("stem", "head", "to_pixels")

    def __init__(
        self,
        num_channels: int,
        patch_size: int,
        hidden_sizes: list[int],
        num_res_blocks: int,
        code_dim: int,
        head_channels: int = HEAD_CHANNELS,
        normalize: bool = False,
    ) -> None:
        super().__init__()
        self.norm = ChannelNorm() if normalize else nn.Identity()
        self.stem = nn.Conv2d(code_dim, hidden_sizes[-1], 3, padding=1)
        stages: list[nn.Module] = [residual_blocks(hidden_sizes[-1], num_res_blocks)]
        for fine, coarse in reversed(list(zip(hidden_sizes[:-1], hidden_sizes[1:], strict=True))):
            stages.append(nn.Conv2d(coarse, 4 * fine, 1))
            stages.append(nn.PixelShuffle(2))
            stages.append(residual_blocks(fine, num_res_blocks))
        self.stages = nn.Sequential(*stages)
        self.head = nn.Conv2d(hidden_sizes[0], head_channels * patch_size**2, 1)
        self.shuffle = nn.PixelShuffle(patch_size)
        self.to_pixels = nn.Conv2d(head_channels, num_channels, 3, padding=1)

    def forward(self, quantized: torch.Tensor) -> torch.Tensor:
        """(B, code_dim, h, w) to (B, C, h * downsampling, w * downsampling), not clipped."""
        hidden = self.shuffle(self.head(F.silu(self.norm(self.stages(self.stem(quantized))))))
        return self.to_pixels(F.silu(hidden))


class MLPEncoder(nn.Module):
    """Whole pictures (B, C, H, W) of one size to latents (B, code_dim, rows, columns), by fully connected layers."""

    outer_layers = ("layers.first", "layers.last")

    def __init__(
        self, num_channels: int, image_size: int, grid: tuple[int, int], hidden_sizes: list[int], code_dim: int
    ) -> None:
        super().__init__()
        self.shape = (code_dim, *grid)
        self.layers = perceptron([num_channels * image_size**2, *hidden_sizes, code_dim * grid[0] * grid[1]])

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, image_size, image_size) to (B, code_dim, rows, columns)."""
        return self.layers(pixel_values.flatten(1)).view(-1, *self.shape)


class MLPDecoder(nn.Module):
    """Quantized latents (B, code_dim, rows, columns) to pictures (B, C, H, W): the layers of `MLPEncoder` reversed."""

    outer_layers = ("layers.first", "layers.last")

    def __init__(
        self, num_channels: int, image_size: int, grid: tuple[int, int], hidden_sizes: list[int], code_dim: int
    ) -> None:
        super().__init__()
        self.shape = (num_channels, image_size, image_size)
        sizes = [code_dim * grid[0] * grid[1], *reversed(hidden_sizes), num_channels * image_size**2]
        self.layers = perceptron(sizes)

    def forward(self, quantized: torch.Tensor) -> torch.Tensor:
        """(B, code_dim, rows, columns) to (B, C, image_size, image_size), not clipped."""
        return self.layers(quantized.flatten(1)).view(-1, *self.shape)


def perceptron(sizes: list[int]) -> nn.Sequential:
    """Linear layers that map the first size to the last through the others, with SiLU in between."""
    layers: dict[str, nn.Module] = {}
    for index, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        name = "first" if index == 0 else "last" if index == len(sizes) - 2 else f"inner{index}"
        layers |= {name: nn.Linear(before, after), f"{name}_silu": nn.SiLU()}
    layers.popitem()
    return nn.Sequential(OrderedDict(layers))
