"""Networks of videos: those of pictures, block by block, with the frames of a block as channels of one picture."""

from __future__ import annotations

import torch
from torch import nn

from tokenizer_image.networks import HEAD_CHANNELS, Decoder, Encoder, NetworkShape


def frames_to_channels(frames: torch.Tensor, count: int) -> torch.Tensor:
    """Columns of square frames (B, C, t * count * side, side) to blocks of `count` frames each, frame by frame,
    (B * t, count * C, side, side)."""
    side = frames.shape[3]
    blocks = frames.unflatten(2, (-1, count, side)).permute(0, 2, 3, 1, 4, 5)
    return blocks.flatten(0, 1).flatten(1, 2)


def channels_to_frames(blocks: torch.Tensor, count: int, steps: int) -> torch.Tensor:
    """The inverse of `frames_to_channels`, for `steps` blocks of each video."""
    frames = blocks.unflatten(0, (-1, steps)).unflatten(2, (count, -1)).permute(0, 3, 1, 2, 4, 5)
    return frames.flatten(2, 4)


class FrameEncoder(nn.Module):
    """Columns of frames (B, C, T * side, side) to a column of grids of latents (B, code_dim, t * h, h), a grid for each
    block of `frame_patch` frames.

    Args:
        shape: of the networks of one block.
        frame_patch: frames of a block.
        code_dim, kernel_size: as of `Encoder`.
    """

    def __init__(self, shape: NetworkShape, frame_patch: int, code_dim: int, kernel_size: int) -> None:
        super().__init__()
        self.frame_patch = frame_patch
        self.blocks = Encoder(shape, code_dim, kernel_size)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """As the class says."""
        steps = frames.shape[2] // (frames.shape[3] * self.frame_patch)
        latents = self.blocks(frames_to_channels(frames, self.frame_patch))
        return channels_to_frames(latents, 1, steps)


class FrameDecoder(nn.Module):
    """The way back: a block of frames is decoded from its own grid of codes and from the grid before it.

    Args:
        shape: of the networks of one block.
        frame_patch: frames of a block.
        code_dim: as of `Decoder`.
    """

    def __init__(self, shape: NetworkShape, frame_patch: int, code_dim: int) -> None:
        super().__init__()
        self.frame_patch = frame_patch
        self.blocks = Decoder(shape, 2 * code_dim, max(HEAD_CHANNELS, 2 * shape.num_channels))

    def forward(self, quantized: torch.Tensor) -> torch.Tensor:
        """(B, code_dim, t * h, h) to (B, C, T * side, side), not clipped."""
        steps = quantized.shape[2] // quantized.shape[3]
        grids = frames_to_channels(quantized, 1).unflatten(0, (-1, steps))
        before = torch.cat([torch.zeros_like(grids[:, :1]), grids[:, :-1]], dim=1)
        blocks = self.blocks(torch.cat([grids, before], dim=2).flatten(0, 1))
        return channels_to_frames(blocks, self.frame_patch, steps)
