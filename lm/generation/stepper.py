"""A causal language model and its KV cache, advanced by one token in all rows at once."""

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
    """

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
        self._state = self._forward(ids.to(self.device), positions.to(self.device))
        places = {prompt: place for place, prompt in enumerate(distinct)}
        which = torch.tensor([places[tuple(prompt)] for prompt in prompts])
        self._positions = lengths[which, None].to(self.device)
        which = which.to(self.device)
        self._cache.batch_select_indices(which)
        self._mask, self._state = self._mask[which], self._state[which]

    def advance(self, ids: torch.Tensor) -> None:
        """Feed token `ids` (B,)."""
        self._length += 1
        self._state = self._forward(ids[:, None], self._positions)
        self._positions = self._positions + 1

    def logits(self, first: int, last: int) -> torch.Tensor:
        """Logits of tokens `first <= id < last` after what was fed: (B, last - first) float32."""
        if self._head is None:
            return self._state[:, first:last].float()
        return partial_logits(self._head, self._state, first, last).float()

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """The last position's hidden state (B, d), or its logits (B, V) where there is no plain head."""
        inputs = {
            "input_ids": ids,
            "attention_mask": self._mask[:, : self._length],
            "position_ids": positions,
            "past_key_values": self._cache,
            "use_cache": True,
        }
        if self._head is not None:
            return self._model.base_model(**inputs).last_hidden_state[:, -1]
        return self._model(**inputs, logits_to_keep=1).logits[:, -1]


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
