"""Best of n: of many pictures of a prompt, those that a ranker likes best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

# ranker(images, prompt) -> a score for each picture, higher is better; images are PIL, the prompt is a text or None.
Ranker = Callable[[list[Any], str | None], Sequence[float]]


def best_pictures(
    images: Sequence[Any], prompts: Sequence[str | None], best_of: int, count: int, ranker: Ranker
) -> list[int]:
    """Which pictures stay: for each prompt the `count` of its `best_of` pictures that score highest, best first.

    Args:
        images: `best_of` PIL pictures for each prompt, prompt by prompt.

    Raises:
        ValueError: scores that are not one finite number for each picture.
    """
    chosen: list[int] = []
    for index, prompt in enumerate(prompts):
        first = index * best_of
        scores = torch.as_tensor(ranker(list(images[first : first + best_of]), prompt), dtype=torch.float64)
        if scores.shape != (best_of,) or not scores.isfinite().all():
            raise ValueError(
                f"the ranker gave {scores.tolist()} for {best_of} pictures: it must return a number for each"
            )
        chosen += (first + scores.argsort(descending=True, stable=True)[:count]).tolist()
    return chosen
