"""Slots of stock Llama, Qwen3 and GPT-2 models through torch's operators: on a GPU, or without compiled code."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional

from lm.generation.direct_stepper import DirectModel, KeysValues
from lm.generation.slots import FedTokens, Slots

MOST_TOKENS = 128  # of one call: attention copies the keys and values of each token's row


class DirectSlots(Slots):
    """A `DirectModel`, and keys and values (count, key_heads, places, head_dim) of each layer.

    Args:
        rows: about how many tokens a call has, for the order of the weights.
    """

    def __init__(self, model: Any, count: int, places: int, rows: int) -> None:
        super().__init__(model, count, places)
        self._direct = direct = DirectModel(model, rows)
        config = model.config
        head_size = getattr(config, "head_dim", None) or config.hidden_size // direct.heads
        # Zeros: attention multiplies values that are hidden by 0, which NaN would survive.
        shape = (count, direct.key_heads, places, head_size)
        self._room: list[KeysValues] = [
            (self._zeros(shape), self._zeros(shape)) for _ in range(config.num_hidden_layers)
        ]
        if direct.rotary is not None:
            cosines, sines = direct.rotations(torch.arange(places, device=self.device)[None])
            self._cosines, self._sines = cosines[0], sines[0]  # (places, 1, head_dim)

    def _zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape, dtype=self._direct.cache_dtype, device=self.device)

    def feed(self, tokens: FedTokens) -> torch.Tensor:
        """As `Slots.feed`."""
        count = len(tokens.ids)
        parts = [tokens.part(slice(first, first + MOST_TOKENS)) for first in range(0, count, MOST_TOKENS)]
        return torch.cat([self._feed_part(part) for part in parts])

    def _feed_part(self, tokens: FedTokens) -> torch.Tensor:
        direct = self._direct
        used = int(tokens.places.max()) + 1
        ids, slots, places = (part.to(self.device) for part in tokens)
        state = functional.embedding(ids, direct.embedding)  # (N, d)
        if direct.positions is not None:
            state = state + direct.positions[places]
        rotation = None if direct.rotary is None else (self._cosines[places], self._sines[places])
        later = torch.arange(used, device=self.device) > places[:, None]  # (N, used)
        bias = torch.zeros(later.shape, dtype=direct.cache_dtype, device=self.device)
        bias = bias.masked_fill(later, -torch.inf)[:, None, None]

        def attend(
            queries: torch.Tensor, mixed: torch.Tensor, value: torch.Tensor, cache: KeysValues, scaling: float
        ) -> torch.Tensor:
            keys, values = cache
            keys[slots, :, places] = mixed
            values[slots, :, places] = value.to(values.dtype)
            # Query heads that share a key head take the place of the query length, so that keys need not be repeated.
            queries = queries.reshape(len(ids), direct.key_heads, direct.heads // direct.key_heads, -1)
            return functional.scaled_dot_product_attention(
                queries, keys[slots, :, :used], values[slots, :, :used], attn_mask=bias, scale=scaling
            )

        return direct.through_layers(state, self._room, rotation, attend)

    def copy(self, source: int, target: int, length: int) -> None:
        """As `Slots.copy`."""
        for layer in self._room:
            for part in layer:
                part[target, :, :length] = part[source, :, :length]

    def logits(self, states: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """As `Slots.logits`."""
        return self._direct.head_product(first, last)(states).float()
