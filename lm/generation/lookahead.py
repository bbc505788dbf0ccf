"""Several tokens a call of the model for texts and documents, and the very tokens that drawing one by one gives.

Tokens that follow are guessed and computed together with the one that was drawn; as long as what is drawn next is what
was guessed, its logits are there already (speculative decoding with a deterministic draft: Stern et al. 2018, Leviathan
et al. 2023). `lm.generation.fixed_point` is for pictures, whose lengths and ranges are known.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from lm.generation.stepper import Stepper
from lm.generation.steppers import can_compute_several

# The ids that are guessed to follow in each of B rows, given the ids that were written since the prompt, and how many
# to guess at most.
Guess = Callable[[Sequence[Sequence[int]], int], Sequence[Sequence[int]]]


def looking_ahead(
    stepper: Stepper, model: Any, guess: Guess, tokens_per_call: int, num_new_tokens: int
) -> Stepper | Lookahead:
    """A stepper that computes several tokens a call, where these are asked for and the model can take tokens back."""
    if tokens_per_call == 1 or not can_compute_several(stepper, model):
        return stepper
    return Lookahead(stepper, guess, tokens_per_call, num_new_tokens)


class Lookahead:
    """A stepper's `advance` and `logits`, computed several tokens at a time.

    All rows go forward together: a call is saved where all of them draw what was guessed.

    Args:
        stepper: after its prompts; one that `goes_back`.
        guess: may guess fewer than it is asked for.
        most: tokens computed in a call, at most, 2 or more.
        num_new_tokens: how many tokens the stepper has room for.
    """

    def __init__(self, stepper: Stepper, guess: Guess, most: int, num_new_tokens: int) -> None:
        self.device = stepper.device
        self._stepper, self._guess, self._most, self._room = stepper, guess, most, num_new_tokens
        self._written: list[list[int]] = []
        self._fed = np.zeros((0, 0), np.int64)  # (B, W) tokens of the last call
        self._column = -1  # of the last token that was drawn, among them

    def advance(self, ids: torch.Tensor) -> None:
        """Feed token `ids` (B,)."""
        drawn = ids.cpu().numpy()
        if not self._written:
            self._written = [[] for _ in drawn]
        number = len(self._written[0])
        for row, token in zip(self._written, drawn.tolist(), strict=True):
            row.append(token)
        self._column += 1
        if self._column < self._fed.shape[1] and (self._fed[:, self._column] == drawn).all():
            return
        guesses = self._guess(self._written, min(self._most, self._room - number) - 1)
        width = min(map(len, guesses))
        self._fed = np.array([[token, *row[:width]] for token, row in zip(drawn.tolist(), guesses, strict=True)])
        self._stepper.feed(torch.from_numpy(self._fed), torch.full((len(drawn),), number))
        self._column = 0

    def logits(self, first: int, last: int) -> torch.Tensor:
        """Logits of tokens `first <= id < last` after what was fed: (B, last - first) float32."""
        if not self._written:
            return self._stepper.logits(first, last)
        rows = torch.arange(len(self._written))
        return self._stepper.logits_at(rows, torch.full_like(rows, self._column), first, last)
