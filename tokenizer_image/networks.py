"""Encoders and decoders: a convolutional pair, an MLP pair, and a decoder of principal components.

A module names its layers at the network's ends (from or to pixels, latents or codes) in `outer_layers`, from which
`pipelines.training.optimizers` knows that Muon is not for them.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

HEAD_CHANNELS = 16
RESAMPLINGS = ("patches", "overlapping")


class CausalConv1d(nn.Conv1d):
    """A convolution along time whose output at step t depends on no input after the last one of that step."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, C, t * stride) to (B, channels, t)."""
        return super().forward(F.pad(hidden, (self.kernel_size[0] - self.stride[0], 0)))


class TimeShuffle(nn.Module):
    """Channels to time steps, as a pixel shuffle in one dimension."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, C * factor, t) to (B, C, t * factor)."""
        return hidden.unflatten(1, (-1, self.factor)).mT.flatten(2)


@dataclass(frozen=True)
class Axes:
    """Which axes the networks convolve along.

    Args:
        dimensions: 2: height and width of a picture; 1: time of a signal.
        causal: of a signal: nothing depends on what is later than its own step of the hidden channels.
    """

    dimensions: int = 2
    causal: bool = False

    def conv(self, before: int, after: int, kernel_size: int, stride: int = 1) -> nn.Conv1d | nn.Conv2d:
        """(B, before, ...) to (B, after, ...), each axis shorter by the factor `stride`, which is 1 or at most half of
        an even kernel, or the kernel itself."""
        if self.causal:
            return CausalConv1d(before, after, kernel_size, stride=stride)
        kind = nn.Conv2d if self.dimensions == 2 else nn.Conv1d
        return kind(before, after, kernel_size, stride=stride, padding=(kernel_size - stride + 1) // 2)

    def shuffle(self, factor: int) -> nn.Module:
        """(B, C * factor ** dimensions, ...) to (B, C, ...), each axis longer by the factor."""
        return nn.PixelShuffle(factor) if self.dimensions == 2 else TimeShuffle(factor)


IMAGE_AXES = Axes()


@dataclass(frozen=True)
class NetworkShape:
    """What encoder and decoder have in common.

    Args:
        num_channels: of a picture or a signal, C.
        patch_size: factor between a picture's resolution and the finest one of the hidden channels.
        hidden_sizes: channels at each resolution, fine to coarse; each further one halves height and width.
        num_res_blocks: per resolution.
        resampling: "patches": patches that do not overlap, by convolutions whose kernel is their stride and, upward, by
            a pixel shuffle (Shi et al. 2016). "overlapping": convolutions with a kernel of twice their stride and,
            upward, nearest neighbours and a 3x3 convolution (Odena et al. 2016), which leaves no grid in flat areas.
        axes: of pictures, or of signals, for which 3x3 is 3 and pixels are samples in time.
    """

    num_channels: int
    patch_size: int
    hidden_sizes: list[int]
    num_res_blocks: int
    resampling: str = "patches"
    axes: Axes = IMAGE_AXES

    @property
    def overlaps(self) -> bool:
        """Whether patches overlap."""
        return self.resampling == "overlapping"


class ResidualBlock(nn.Module):
    """x + conv(silu(conv(silu(x)))). The second convolution is initialised to zero, so that every block starts as the
    identity and needs no normalisation (Zhang et al. 2019, Fixup)."""

    def __init__(self, axes: Axes, channels: int, kernel_sizes: tuple[int, int] = (3, 3)) -> None:
        super().__init__()
        first, second = kernel_sizes
        self.conv1 = axes.conv(channels, channels, first)
        self.conv2 = axes.conv(channels, channels, second)
        self.conv2.starts_at_zero = True  # type: ignore[assignment]  # read by VQVAE._init_weights

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, channels, ...) to the same shape."""
        return hidden + self.conv2(F.silu(self.conv1(F.silu(hidden))))


def residual_blocks(axes: Axes, channels: int, count: int, kernel_sizes: tuple[int, int] = (3, 3)) -> nn.Sequential:
    """`count` residual blocks in a row."""
    return nn.Sequential(*(ResidualBlock(axes, channels, kernel_sizes) for _ in range(count)))


class ChannelNorm(nn.Module):
    """Zero mean and unit variance over the channels of each position; no learned scale (Ba et al. 2016)."""

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, C, ...) to the same shape."""
        return F.layer_norm(hidden.movedim(1, -1), hidden.shape[1:2]).movedim(-1, 1)


def downsampling(axes: Axes, before: int, after: int, factor: int, overlaps: bool) -> nn.Module:
    """(B, before, h, w) to (B, after, h / factor, w / factor)."""
    if not overlaps:
        return axes.conv(before, after, factor, factor)
    if factor == 1:
        return axes.conv(before, after, 3)
    # A kernel of twice the stride sees each pixel four times; half a stride of padding keeps the grids aligned.
    return axes.conv(before, after, 2 * factor, factor)


def upsampling(axes: Axes, before: int, after: int, factor: int, overlaps: bool) -> list[nn.Module]:
    """(B, before, h, w) to (B, after, h * factor, w * factor)."""
    if not overlaps:
        return [axes.conv(before, after * factor**axes.dimensions, 1), axes.shuffle(factor)]
    return [nn.Upsample(scale_factor=factor), axes.conv(before, after, 3)]


class Encoder(nn.Module):
    """Pictures (B, C, H, W) to latents (B, code_dim, H / downsampling, W / downsampling), or with the axes of signals,
    (B, C, T) to (B, code_dim, T / downsampling).

    A patch embedding, then residual blocks at each resolution, with a strided convolution between resolutions.

    With patches that do not overlap, only blocks of the finest resolution have spatial convolutions, one of
    `kernel_size` each; with `kernel_size` 1 the receptive field of a latent is its own `downsampling` x `downsampling`
    pixels. A language model learns to predict such local codes much sooner than codes from an encoder with a wide
    receptive field (figures in docs/results.md); the decoder, whose convolutions are 3x3, combines positions.

    With overlapping patches, the first convolution of every block has `kernel_size`.

    Args:
        shape: channels, resolutions and blocks.
        code_dim: channels of the output.
        kernel_size: odd.
        normalize: apply `ChannelNorm` before the output convolution.
    """

    outer_layers = ("stem", "head")

    def __init__(self, shape: NetworkShape, code_dim: int, kernel_size: int = 1, normalize: bool = False) -> None:
        super().__init__()
        sizes, overlaps, axes = shape.hidden_sizes, shape.overlaps, shape.axes
        self.norm = ChannelNorm() if normalize else nn.Identity()
        self.stem = downsampling(axes, shape.num_channels, sizes[0], shape.patch_size, overlaps)
        kernels = (kernel_size, 1)
        stages: list[nn.Module] = [residual_blocks(axes, sizes[0], shape.num_res_blocks, kernels)]
        for fine, coarse in zip(sizes[:-1], sizes[1:], strict=True):
            stages.append(downsampling(axes, fine, coarse, 2, overlaps))
            kernels = (kernel_size if overlaps else 1, 1)
            stages.append(residual_blocks(axes, coarse, shape.num_res_blocks, kernels))
        self.stages = nn.Sequential(*stages)
        self.head = axes.conv(sizes[-1], code_dim, 1)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, code_dim, H / downsampling, W / downsampling)."""
        return self.head(F.silu(self.norm(self.stages(self.stem(pixel_values)))))


class Decoder(nn.Module):
    """Quantized latents (B, code_dim, h, w) to pictures (B, C, h * downsampling, w * downsampling), or with the axes of
    signals, (B, code_dim, t) to (B, C, t * downsampling).

    The stages of the encoder in reverse order, with 3x3 convolutions; a last 3x3 convolution at full resolution
    smooths the edges between patches.

    Args: as `Encoder`; `code_dim` is the channels of the input, `head_channels` those at full resolution before the
    last convolution.
    """

    outer_layers = ("stem", "head", "to_pixels")

    def __init__(
        self, shape: NetworkShape, code_dim: int, head_channels: int = HEAD_CHANNELS, normalize: bool = False
    ) -> None:
        super().__init__()
        sizes, overlaps, blocks, axes = shape.hidden_sizes, shape.overlaps, shape.num_res_blocks, shape.axes
        self.norm = ChannelNorm() if normalize else nn.Identity()
        self.stem = axes.conv(code_dim, sizes[-1], 3)
        stages: list[nn.Module] = [residual_blocks(axes, sizes[-1], blocks)]
        for fine, coarse in reversed(list(zip(sizes[:-1], sizes[1:], strict=True))):
            stages += upsampling(axes, coarse, fine, 2, overlaps)
            stages.append(residual_blocks(axes, fine, blocks))
        self.stages = nn.Sequential(*stages)
        head = upsampling(axes, sizes[0], head_channels, shape.patch_size, overlaps)
        self.head, self.shuffle = (head[1], head[0]) if overlaps else (head[0], head[1])
        self.overlaps = overlaps
        self.to_pixels = axes.conv(head_channels, shape.num_channels, 3)

    def forward(self, quantized: torch.Tensor) -> torch.Tensor:
        """(B, code_dim, h, w) to (B, C, h * downsampling, w * downsampling), not clipped."""
        hidden = F.silu(self.norm(self.stages(self.stem(quantized))))
        hidden = self.head(self.shuffle(hidden)) if self.overlaps else self.shuffle(self.head(hidden))
        return self.to_pixels(F.silu(hidden))


class MLPEncoder(nn.Module):
    """Whole pictures (B, C, H, W) of one size to latents (B, code_dim, rows, columns), by fully connected layers."""

    def __init__(
        self, num_channels: int, image_size: int, grid: tuple[int, int], hidden_sizes: list[int], code_dim: int
    ) -> None:
        super().__init__()
        self.shape = (code_dim, *grid)
        self.layers = perceptron([num_channels * image_size**2, *hidden_sizes, code_dim * grid[0] * grid[1]])
        self.outer_layers = ends_of(self.layers)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, image_size, image_size) to (B, code_dim, rows, columns)."""
        return self.layers(pixel_values.flatten(1)).view(-1, *self.shape)


class TiedLinear(nn.Module):
    """y W + b, with W the weight of a linear layer x -> W x, which it shares, and a bias of its own.

    The layer is no part of this module's state: its weight is saved, averaged and updated once, where it belongs.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self._linear = (linear,)
        self.bias = nn.Parameter(torch.zeros(linear.in_features))

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(B, linear.out_features) to (B, linear.in_features)."""
        return F.linear(hidden, self._linear[0].weight.mT, self.bias)


class MLPDecoder(nn.Module):
    """Quantized latents (B, code_dim, rows, columns) to pictures (B, C, H, W): the layers of `MLPEncoder` reversed.

    Args: as `MLPEncoder`; with `tied_to`, each layer has the transposed weight of that encoder's layer in its place.
    """

    def __init__(
        self,
        num_channels: int,
        image_size: int,
        grid: tuple[int, int],
        hidden_sizes: list[int],
        code_dim: int,
        tied_to: MLPEncoder | None = None,
    ) -> None:
        super().__init__()
        self.shape = (num_channels, image_size, image_size)
        sizes = [code_dim * grid[0] * grid[1], *reversed(hidden_sizes), num_channels * image_size**2]
        self.layers = perceptron(sizes, None if tied_to is None else tied_to.layers)
        self.outer_layers = ends_of(self.layers)

    def forward(self, quantized: torch.Tensor) -> torch.Tensor:
        """(B, code_dim, rows, columns) to (B, C, image_size, image_size), not clipped."""
        return self.layers(quantized.flatten(1)).view(-1, *self.shape)


class ComponentsDecoder(nn.Module):
    """Quantized coefficients of principal components (B, code_dim, 1, 1) to pictures (B, C, H, W).

    A linear layer, whose weights are the components, then residual blocks at half the resolution that learn to correct
    the quantization error: x = L q + R(L q). R starts at zero.

    Args:
        linear: the layer L, which does not learn by gradients.
        width: channels of R.
        num_res_blocks: its residual blocks.
    """

    outer_layers = ("stem", "head")

    def __init__(self, linear: MLPDecoder, width: int, num_res_blocks: int) -> None:
        super().__init__()
        channels, side, _ = linear.shape
        self.linear = linear
        self.patch = 2 if side % 2 == 0 else 1
        self.stem = IMAGE_AXES.conv(channels * self.patch**2, width, 3)
        self.blocks = residual_blocks(IMAGE_AXES, width, num_res_blocks)
        self.head = IMAGE_AXES.conv(width, channels * self.patch**2, 3)
        self.head.starts_at_zero = True  # type: ignore[assignment]  # read by VQVAE._init_weights

    def forward(self, quantized: torch.Tensor) -> torch.Tensor:
        """(B, code_dim, 1, 1) to (B, C, H, W), not clipped."""
        pictures = self.linear(quantized)
        hidden = self.blocks(self.stem(F.pixel_unshuffle(pictures, self.patch)))
        return pictures + F.pixel_shuffle(self.head(F.silu(hidden)), self.patch)


def perceptron(sizes: list[int], tied_to: nn.Sequential | None = None) -> nn.Sequential:
    """Linear layers that map the first size to the last through the others, with SiLU in between.

    Args:
        tied_to: a perceptron of the sizes in reverse order, whose weights the layers share, transposed.
    """
    shared = [] if tied_to is None else [layer for layer in tied_to if isinstance(layer, nn.Linear)][::-1]
    layers: dict[str, nn.Module] = {}
    for index, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        name = "first" if index == 0 else "last" if index == len(sizes) - 2 else f"inner{index}"
        linear = TiedLinear(shared[index]) if shared else nn.Linear(before, after)
        layers |= {name: linear, f"{name}_silu": nn.SiLU()}
    layers.popitem()
    return nn.Sequential(OrderedDict(layers))


def ends_of(layers: nn.Sequential) -> tuple[str, ...]:
    """The names of a perceptron's first and last layer, as its parent knows them."""
    return tuple(f"layers.{name}" for name, _ in layers.named_children() if name in ("first", "last"))


class WholePictureEncoder(nn.Module):
    """Pictures to one latent each, (B, code_dim, 1, 1): one linear layer over all positions of a convolutional
    encoder's output."""

    outer_layers = ("to_latents",)

    def __init__(self, encoder: Encoder, channels: int, grid: tuple[int, int], code_dim: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.to_latents = nn.Linear(channels * grid[0] * grid[1], code_dim)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, C, H, W) to (B, code_dim, 1, 1)."""
        return self.to_latents(F.silu(self.encoder(pixel_values)).flatten(1))[:, :, None, None]


class WholePictureDecoder(nn.Module):
    """The inverse of `WholePictureEncoder`: a latent becomes every position of a convolutional decoder's input."""

    outer_layers = ("from_latents",)

    def __init__(self, decoder: Decoder, channels: int, grid: tuple[int, int], code_dim: int) -> None:
        super().__init__()
        self.shape = (channels, *grid)
        self.from_latents = nn.Linear(code_dim, channels * grid[0] * grid[1])
        self.decoder = decoder

    def forward(self, latents: torch.Tensor) -> torch.Tensor:
        """(B, code_dim, 1, 1) to (B, C, H, W), not clipped."""
        return self.decoder(F.silu(self.from_latents(latents.flatten(1)).view(-1, *self.shape)))
