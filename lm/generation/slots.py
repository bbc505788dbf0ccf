"""Rows of a language model that come and go, each at a place of its own: what continuous batching needs.

A `Stepper` advances rows that began together. Here a row has a slot, a part of the cache that is its own: a new row
takes a free slot while others are under way, and each call feeds any tokens of any rows.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from lm.model import partial_logits, plain_head

logger = logging.getLogger(__name__)


class FedTokens(NamedTuple):
    """N tokens of one call, int64 (N,) each, on the CPU.

    Attributes:
        ids: token ids.
        slots: of each token's row.
        places: of each token in its row, 0 the first. Those of a row are in order, and all before them were fed by
            earlier calls or are fed by this one.
    """

    ids: torch.Tensor
    slots: torch.Tensor
    places: torch.Tensor

    @classmethod
    def of_rows(cls, rows: Sequence[Sequence[int]], slots: Sequence[int], starts: Sequence[int]) -> FedTokens:
        """Tokens of several rows, those of each at places that follow its start."""
        ids: list[int] = []
        owners: list[int] = []
        places: list[int] = []
        for row, slot, start in zip(rows, slots, starts, strict=True):
            ids += row
            owners += [slot] * len(row)
            places += range(start, start + len(row))
        return cls(torch.tensor(ids), torch.tensor(owners), torch.tensor(places))

    def part(self, tokens: slice) -> FedTokens:
        """Some of the tokens."""
        return FedTokens(self.ids[tokens], self.slots[tokens], self.places[tokens])


class Slots:
    """Any causal LM of transformers: each slot has a cache of transformers, and rows are fed one after the other.

    So a row's logits do not depend on the others, whatever the model's cache is made of, but rows share no call.
    `lm.generation.native_slots` and `direct_slots` feed the rows of stock models together.

    Args:
        model: in evaluation mode.
        count: how many slots.
        places: of each slot: the most tokens of a row.
    """

    def __init__(self, model: Any, count: int, places: int) -> None:
        self.model, self.count, self.places = model, count, places
        self.device: torch.device = model.device
        self._head = plain_head(model)
        self._caches: dict[int, Any] = {}

    def feed(self, tokens: FedTokens) -> torch.Tensor:
        """Feed tokens: the last norm's output after each, (N, d), or all logits (N, V) where there is no plain head."""
        parts = [self._feed_row(tokens.part(row)) for row in _runs(tokens.slots)]
        return torch.cat(parts)

    def _feed_row(self, tokens: FedTokens) -> torch.Tensor:
        from transformers import DynamicCache

        slot, start = int(tokens.slots[0]), int(tokens.places[0])
        if start == 0:
            self._caches[slot] = DynamicCache(config=self.model.config)
        inputs = {
            "input_ids": tokens.ids[None].to(self.device),
            "position_ids": tokens.places[None].to(self.device),
            "past_key_values": self._caches[slot],
            "use_cache": True,
        }
        if self._head is not None:
            return self.model.base_model(**inputs).last_hidden_state[0]
        return self.model(**inputs).logits[0]

    def copy(self, source: int, target: int, length: int) -> None:
        """Give a slot the first `length` tokens of another, which has no more."""
        self._caches[target] = copy.deepcopy(self._caches[source])

    def logits(self, states: torch.Tensor, first: int, last: int) -> torch.Tensor:
        """Logits (k, last - first) float32 of tokens `first <= id < last`, of what `feed` gave for k tokens."""
        if self._head is None:
            return states[:, first:last].float()
        return partial_logits(self._head, states, first, last).float()


def _runs(slots: torch.Tensor) -> Iterator[slice]:
    """Stretches of tokens of one slot."""
    start = 0
    for length in slots.unique_consecutive(return_counts=True)[1].tolist():
        yield slice(start, start + length)
        start += length
