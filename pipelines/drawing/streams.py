"""Random streams: a generator for each sample, so that none depends on what is drawn beside it.

The numbers that a seed gives are part of the pipelines' behaviour: they stay the same from version to version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

from pipelines.drawing.arguments import whole_number

Seed = int | Sequence[int] | None
Generators = torch.Generator | Sequence[torch.Generator] | None


def keyed_stream(*keys: Any) -> torch.Generator:
    """The random stream that belongs to these keys, for example (seed, number of the sample)."""
    digest = hashlib.sha256("/".join(map(str, keys)).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def seeded_streams(seeds: Iterable[Any], each: int = 1) -> list[torch.Generator]:
    """`each` random streams for each seed, keyed (seed, number): equal seeds give equal streams.

    Raises:
        TypeError, ValueError: a seed that is no whole number, or below 0.
    """
    return [keyed_stream(whole_number(seed, "seed", 0), number) for seed in seeds for number in range(each)]


def fresh_streams(count: int, generator: torch.Generator | None = None) -> list[torch.Generator]:
    """Streams that `generator` seeds in turn; by default torch's global one, so `torch.manual_seed` repeats them."""
    device = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**62, (count,), generator=generator, device=device)
    return [torch.Generator().manual_seed(int(seed)) for seed in seeds]


def text_streams(seed: Seed, count: int, each: int = 1) -> list[torch.Generator]:
    """`each` streams for each of `count` texts or documents.

    Args:
        seed: one for all, which then draw from equal streams, or a list with one for each; None: fresh ones.

    Raises:
        TypeError, ValueError: a seed that is no whole number, or below 0.
    """
    if seed is None:
        return fresh_streams(count * each)
    seeds: Sequence[Any] = seed if isinstance(seed, Sequence) and not isinstance(seed, str) else [seed] * count
    return seeded_streams(seeds, each)


def picture_streams(num_prompts: int, each: int, seed: Seed, generator: Generators) -> list[torch.Generator]:
    """`each` streams for each prompt.

    Args:
        seed: one: picture j of a prompt has the stream (seed, j). A list has one for each picture, which has the
            stream (seed, 0).
        generator: one that seeds each picture's stream in turn, or a list with one for each picture. Without it and
            without a seed, streams are fresh.

    Raises:
        TypeError, ValueError: both, a seed or generator of another kind, or a list of another length.
    """
    total = num_prompts * each
    if seed is not None and generator is not None:
        raise ValueError(f"seed={seed!r} and generator together: give one of them")
    if isinstance(seed, (list, tuple)):
        if len(seed) != total:
            raise ValueError(f"{len(seed)} seeds for {total} pictures: give one, or one for each picture")
        return seeded_streams(seed)
    if seed is not None:
        return seeded_streams([seed] * num_prompts, each)
    if isinstance(generator, Sequence):
        if len(generator) != total:
            raise ValueError(f"{len(generator)} generators for {total} pictures: give one, or one for each picture")
        if not all(isinstance(stream, torch.Generator) for stream in generator):
            raise TypeError(f"generator must hold torch.Generator objects, got {generator!r}")
        return list(generator)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
    return fresh_streams(total, generator)


def scene_streams(keys: Iterable[tuple[int, ...]]) -> list[torch.Generator]:
    """A stream for each tuple of whole numbers, by numpy's `SeedSequence`; unlike `seeded_streams`, keys of any
    length. Evaluation draws each scene's pictures from these."""
    states = [np.random.SeedSequence(key).generate_state(1, np.uint64)[0] for key in keys]
    return [torch.Generator().manual_seed(int(state >> np.uint64(1))) for state in states]
