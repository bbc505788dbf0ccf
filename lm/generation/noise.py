"""Gumbel noise, by which a token is drawn: the one whose logit and noise together are largest.

That draws from the softmax of the logits exactly (Gumbel 1954; Maddison et al. 2014). The noise of a place follows from
one random number alone, so where logits change a little, as they do while `lm.generation.fixed_point` seeks a picture,
the token drawn seldom changes: less often than by the inverse of the distribution function, whose every border moves.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

BLOCK = 2**20  # numbers that are computed at once


def _signed(number: int) -> int:
    """A number of 32 bits as int32 has it."""
    return (number + 2**31) % 2**32 - 2**31


GOLDEN, FIRST, SECOND = 0x9E3779B9, _signed(0x7FEB352D), _signed(0x846CA68B)


def gumbel(uniforms: torch.Tensor, count: int) -> torch.Tensor:
    """Standard Gumbel noise (..., count) float32 of random numbers in [0, 1] (...): the same for the same number,
    whatever others are beside it, and to the last bit.

    Each number's 53 bits key a hash of the column, which mixes 32-bit integers by shifts and products (with the
    constants of Wellons' `lowbias32`); 23 bits of it are a number u in (0, 1), and the noise is -log(-log(u)).
    """
    key = (uniforms.reshape(-1) * 2.0**53).to(torch.int64).view(torch.int32).view(-1, 2)
    state = key[:, :1] + _columns(count, uniforms.device)
    state.bitwise_xor_(state >> 16).mul_(FIRST).add_(key[:, 1:])
    state.bitwise_xor_(state >> 15).mul_(SECOND)
    state.bitwise_xor_(state >> 16).mul_(FIRST)
    # A half more than a whole number of 2^-23: neither 0 nor 1, and a float32 to the last bit.
    inside = state.bitwise_right_shift_(9).to(torch.float32).add_(2.0**22 + 0.5).mul_(2.0**-23)
    return inside.log_().neg_().log_().neg_().view(*uniforms.shape, count)


@functools.lru_cache(maxsize=64)
def _columns(count: int, device: torch.device) -> torch.Tensor:
    """What the columns 0 .. count - 1 add to a key: (count,) int32."""
    steps = torch.arange(1, count + 1) * GOLDEN
    return ((steps + 2**31) % 2**32 - 2**31).to(torch.int32).to(device)


class PlaceNoise:
    """Gumbel noise at the T places of B rows; that of several places is computed at once, and kept until others are
    needed.

    Args:
        uniforms: (B, T) numbers in [0, 1].
        counts: how many tokens can be drawn at each place.
    """

    def __init__(self, uniforms: torch.Tensor, counts: Sequence[int]) -> None:
        self._uniforms, self._counts = uniforms, counts
        places: dict[int, list[int]] = {}
        self._numbers = []  # of each place among those of its count
        for place, count in enumerate(counts):
            alike = places.setdefault(count, [])
            self._numbers.append(len(alike))
            alike.append(place)
        self._places = places
        self._blocks: dict[int, tuple[int, torch.Tensor]] = {}  # of each count: its number, noise (B, P, count)

    def at(self, place: int) -> torch.Tensor:
        """(B, n) at one place."""
        block, inside = self._block_of(place)
        return block[:, inside]

    def of(self, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        """(k, n) of some rows (k,) and places (k,), at which as many tokens can be drawn."""
        wanted = [self._block_of(place) for place in places.tolist()]
        return torch.stack([block[row, inside] for row, (block, inside) in zip(rows.tolist(), wanted, strict=True)])

    def _block_of(self, place: int) -> tuple[torch.Tensor, int]:
        """The block that has a place, and where it is there."""
        count = self._counts[place]
        size = max(1, BLOCK // (len(self._uniforms) * count))
        number, inside = divmod(self._numbers[place], size)
        if self._blocks.get(count, (None,))[0] != number:
            members = self._places[count][number * size : (number + 1) * size]
            self._blocks[count] = number, gumbel(self._uniforms[:, members], count)
        return self._blocks[count][1], inside
