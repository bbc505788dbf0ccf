"""Slots of stock Llama and Qwen3 models on a CPU: tokens of all rows in one call of compiled code.

A token's sums are in the same order whatever other tokens are in the call, the prompt's included: a row's logits are
the same to the last bit alone and among others.
"""

from __future__ import annotations

import ctypes
from typing import Any

import torch

from lm.generation.native import Layer, Linear, Model, functions_for, layer_of, linear_of, model_of
from lm.generation.slots import FedTokens, Slots


class NativeSlots(Slots):
    """Slots whose keys and values lie in one tensor, (layers, 2, count, key_heads, places, head_size)."""

    def __init__(self, model: Any, count: int, places: int) -> None:
        super().__init__(model, count, places)
        self._step, self._product = functions_for(model.dtype)
        # The compiled code reads these by address: they must stay alive even if the model is moved or cast meanwhile.
        self._weights = [parameter.data for parameter in model.parameters()]
        attention = model.model.layers[0].self_attn
        layers = model.model.layers
        shape = (len(layers), 2, count, model.config.num_key_value_heads, places, attention.head_dim)
        # Memory that is not written to is not taken: free slots cost nothing.
        self._rooms = torch.empty(shape, dtype=model.dtype)
        self._layers = (Layer * len(layers))(*map(layer_of, layers, self._rooms))
        self._starts = torch.zeros(count, dtype=torch.int64)  # rows have no padding
        self._native: Model = model_of(model, places, self._starts, ctypes.addressof(self._layers))
        cosines, sines = model.model.rotary_emb(torch.zeros(1), torch.arange(places)[None])
        self._heads: dict[tuple[int, int], Linear] = {}  # rows of the output layer
        self._cosines, self._sines = cosines[0].contiguous(), sines[0].contiguous()  # (places, head_size)

    def feed(self, tokens: FedTokens) -> torch.Tensor:
        """As `Slots.feed`."""
        inputs = [*map(torch.Tensor.contiguous, tokens), self._cosines[tokens.places], self._sines[tokens.places]]
        result = torch.empty(len(tokens.ids), self.model.config.hidden_size, dtype=self.model.dtype)
        addresses = [part.data_ptr() for part in (*inputs, result)]
        self._step(self._native, len(tokens.ids), *addresses)
        return result

    def copy(self, source: int, target: int, length: int) -> None:
        """As `Slots.copy`."""
        self._rooms[:, :, target, :, :length] = self._rooms[:, :, source, :, :length]

    def logits(self, states: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """As `Slots.logits`."""
        if (first, last) not in self._heads:
            self._heads[first, last] = linear_of(self.model.get_output_embeddings(), slice(first, last))
        result, head = torch.empty(len(states), last - first), self._heads[first, last]
        self._product(head, states.contiguous().data_ptr(), len(states), self._native.threads, result.data_ptr())
        return result
