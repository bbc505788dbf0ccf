"""Sounds of any length: encoded and decoded chunk by chunk, with the same result as in one piece."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F

from tokenizer_image.network_configuration import NetworkConfig
from tokenizer_image.vqvae import VQVAE

CHUNK_POSITIONS = 500  # of codes that are worked on at once; ten seconds of 50 a second


def margin_positions(config: NetworkConfig) -> int:
    """Positions on each side of a chunk that its own codes, or samples, can depend on: a bound of the networks'
    receptive fields.

    At each resolution a residual block sees two kernels further, and each change of resolution two steps. A causal
    network looks back as far as another one does to both sides together.
    """
    reach = 0
    step = config.patch_size  # samples of a step of the hidden channels
    kernel = max(3, config.encoder_kernel_size)
    for _ in config.hidden_sizes:
        reach += step * (2 * (kernel // 2) * config.num_res_blocks + 2)
        step *= 2
    return (1 + config.causal) * (math.ceil(reach / config.downsampling) + 2)


@torch.no_grad()
def encode_sound(tokenizer: VQVAE, sound: torch.Tensor, chunk_positions: int = CHUNK_POSITIONS) -> torch.Tensor:
    """Sound (B, 1, time) of any length to codes (B, T); it is followed by silence up to a whole position.

    Raises:
        ValueError: a tokenizer of several levels, whose codes do not lie in the order of time.
    """
    step = _samples_per_position(tokenizer)
    padded = F.pad(sound, (0, -sound.shape[2] % step))

    def encode(first: int, last: int) -> torch.Tensor:
        codes = tokenizer.encode(padded[:, :, first * step : last * step])
        return codes.unflatten(1, (last - first, -1))

    return _in_chunks(encode, padded.shape[2] // step, margin_positions(tokenizer.config), chunk_positions).flatten(1)


@torch.no_grad()
def decode_sound(tokenizer: VQVAE, codes: torch.Tensor, chunk_positions: int = CHUNK_POSITIONS) -> torch.Tensor:
    """Codes (B, T) of any number of whole positions to sound (B, 1, time) in [-1, 1], without seams: a chunk is decoded
    with its neighbours' codes on both sides, of which what they change is cut off.

    Raises:
        ValueError: as `encode_sound`, or codes that end within a position.
    """
    step, depths = _samples_per_position(tokenizer), tokenizer.quantizer.codes_per_position
    if codes.shape[1] % depths:
        raise ValueError(f"{codes.shape[1]} codes are no whole number of positions of {depths} codes each")
    places = codes.unflatten(1, (-1, depths))

    def decode(first: int, last: int) -> torch.Tensor:
        sound = tokenizer.decode(places[:, first:last].flatten(1), (1, (last - first) * step))
        return sound.unflatten(2, (last - first, step)).movedim(1, -1)  # (B, positions, step, 1)

    chunks = _in_chunks(decode, places.shape[1], margin_positions(tokenizer.config), chunk_positions)
    return chunks.movedim(-1, 1).flatten(2)


def _samples_per_position(tokenizer: VQVAE) -> int:
    if tokenizer.config.num_levels > 1:
        raise ValueError(
            f"num_levels={tokenizer.config.num_levels}: codes of several levels do not lie in the order of time"
        )
    return tokenizer.config.downsampling


def _in_chunks(work: Callable[[int, int], torch.Tensor], count: int, margin: int, chunk: int) -> torch.Tensor:
    """What `work(first, last)` gives for the positions first .. last - 1, (B, positions, ...), over all of them: each
    chunk with a margin on both sides, which is cut off."""
    parts = []
    for first in range(0, count, chunk):
        last = min(first + chunk, count)
        start, end = max(0, first - margin), min(count, last + margin)
        parts.append(work(start, end)[:, first - start : last - start])
    return torch.cat(parts, dim=1)
