"""A causal language model and its KV cache, advanced by one token, or by several, in all rows at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from lm.model import partial_logits, plain_head


class Stepper:
    """Any causal LM of transformers, through its own forward.

    Prompts of different lengths are padded on the left; padding is masked, and positions count from each
    row's first token, so a row's logits are those of the row alone.

    Attributes:
        rows_apart: whether `feed` takes rows that begin at different tokens.
    """

    rows_apart = False

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], num_new_tokens: int, pad_id: int) -> None:
        from transformers import DynamicCache

        self._model, self.device = model, model.device
        self._head = plain_head(model)
        self._cache = DynamicCache(config=model.config)
        # A prompt that several rows share (the unconditional one above all) is read once.
        distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
        longest = max(map(len, distinct))
        ids = torch.tensor([[pad_id] * (longest - len(prompt)) + list(prompt) for prompt in distinct])
        lengths = torch.tensor([len(prompt) for prompt in distinct])
        columns = torch.arange(longest + num_new_tokens)
        mask = (columns >= longest - lengths[:, None]).long()
        positions = (mask[:, :longest].cumsum(-1) - 1).clamp(min=0)
        self._length = longest
        self._mask = mask.to(self.device)
        self._state = self._forward(ids.to(self.device), positions.to(self.device), last=1)[:, -1]
        places = {prompt: place for place, prompt in enumerate(distinct)}
        which = torch.tensor([places[tuple(prompt)] for prompt in prompts])
        self._positions = lengths[which, None].to(self.device)
        which = which.to(self.device)
        self._cache.batch_select_indices(which)
        self._mask, self._state = self._mask[which], self._state[which]
        self._prompt_length, self._first_positions = self._length, self._positions
        self._states = self._state[:, None]

    def advance(self, ids: torch.Tensor) -> None:
        """Feed token `ids` (B,)."""
        self._length += 1
        self._state = self._forward(ids[:, None], self._positions)[:, -1]
        self._positions = self._positions + 1

    @property
    def goes_back(self) -> bool:
        """Whether tokens that were fed can be taken back, which `feed` needs."""
        from transformers.cache_utils import DynamicLayer

        return all(type(layer) is DynamicLayer for layer in self._cache.layers)

    def feed(self, ids: torch.Tensor, starts: torch.Tensor) -> None:
        """Feed several tokens a row in one call, in place of those that were fed there before.

        Args:
            ids: (B, W) token ids, -1 after the last one of a row (only where `rows_apart`).
            starts: (B,) the number of each row's first one: 0 is the first token after the prompt. All tokens before
                it must have been fed; they are read from the cache. Equal ones, unless `rows_apart`.
        """
        start, width = int(starts[0]), ids.shape[1]
        self._cache.crop(self._prompt_length + start - self._length)
        self._length = self._prompt_length + start + width
        positions = self._first_positions + torch.arange(start, start + width, device=self.device)
        self._states = self._forward(ids.to(self.device), positions)

    def logits_at(self, rows: torch.Tensor, columns: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Logits (k, last - first) float32 of tokens `first <= id < last` after the fed tokens of these rows (k,) and
        columns (k,) of the last `feed`."""
        return self._map(self._states[rows, columns], first, last)

    def logits(self, first: int, last: int) -> torch.Tensor:
        """Logits of tokens `first <= id < last` after what was fed: (B, last - first) float32."""
        return self._map(self._state, first, last)

    def _map(self, states: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Logits (k, last - first) of the hidden states (k, d), or some of all logits (k, V)."""
        if self._head is None:
            return states[:, first:last].float()
        return partial_logits(self._head, states, first, last).float()

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor, last: int | None = None) -> torch.Tensor:
        """Hidden states of the last tokens (by default of all) of ids (B, W): (B, last, d), or their logits
        (B, last, V) where there is no plain head."""
        inputs = {
            "input_ids": ids,
            "attention_mask": self._mask[:, : self._length],
            "position_ids": positions,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        last = last or ids.shape[1]
        if self._head is not None:
            return self._model.base_model(**inputs).last_hidden_state[:, -last:]
        return self._model(**inputs, logits_to_keep=last).logits[:, -last:]


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode; afterwards each of its modules is back in its own mode."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def check_finite(finite: torch.Tensor) -> None:
    """Raise RuntimeError unless all logits were finite, scalar bool."""
    if not finite:
        raise RuntimeError(
            "the model's logits are not finite: its weights are damaged, or float16 overflows (use float32)"
        )
