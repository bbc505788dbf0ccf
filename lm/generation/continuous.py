"""Continuous batching: pictures and texts that begin and end at any time share the calls of the model.

A row joins when a slot is free (Orca, Yu et al. 2022), so pictures at different places, of different sizes and with
different settings are in one call. Each draws from its own numbers, and what it draws depends on nothing beside it.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from lm.generation import native
from lm.generation.direct_slots import DirectSlots
from lm.generation.direct_stepper import DirectModel
from lm.generation.native_slots import NativeSlots
from lm.generation.noise import gumbel
from lm.generation.prompt_cache import PromptCache
from lm.generation.rows_under_way import Choice, RowUnderWay
from lm.generation.sampling import choose_by_row
from lm.generation.slots import FedTokens, Slots
from lm.generation.stepper import check_finite
from lm.vocabulary import MultimodalVocabulary


def slots_for(model: Any, count: int, places: int, rows: int) -> Slots:
    """The fastest slots that compute this model.

    Args:
        places: of each slot: the most tokens of a row.
        rows: about how many tokens a call has.
    """
    if not DirectModel.fits(model):
        return Slots(model, count, places)
    if native.fits(model):
        return NativeSlots(model, count, places)
    return DirectSlots(model, count, places, rows)


class ContinuousSampler:
    """Rows under way, each in one slot, or in two with guidance.

    Args:
        slots: of a model in evaluation mode.
        kept_prompts: how many of the slots keep prompts that were read (`PromptCache`).
    """

    def __init__(self, slots: Slots, vocabulary: MultimodalVocabulary, kept_prompts: int = 0) -> None:
        self._slots, self._vocabulary = slots, vocabulary
        self._count = slots.count - kept_prompts  # slots for rows
        self._free = list(range(self._count))
        self._prompts = PromptCache(range(self._count, slots.count))
        self._slots_of: dict[RowUnderWay, list[int]] = {}
        self._lengths = [0] * slots.count  # tokens that were fed
        self._states: torch.Tensor | None = None  # (slots, d), after the last token of each
        self._forbidden = ~torch.from_numpy(vocabulary.text_mask()).to(slots.device)

    @property
    def slots(self) -> Slots:
        """What it computes with."""
        return self._slots

    @property
    def num_free(self) -> int:
        """Slots that no row has."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Slots that rows have."""
        return self._count - len(self._free)

    @torch.inference_mode()
    def begin(self, rows: Sequence[RowUnderWay]) -> None:
        """Give rows their slots and read their prompts; those that several share, or that are kept, not again.

        Raises:
            ValueError: more rows than there are free slots for, or one that is longer than a slot.
        """
        if sum(len(row.prompts) for row in rows) > len(self._free):
            raise ValueError(f"{len(rows)} rows need more than the {len(self._free)} slots that are free")
        for row in rows:
            if row.longest > self._slots.places:
                raise ValueError(f"a row of {row.longest} tokens is longer than a slot of {self._slots.places}")
        shared: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for row in rows:
            row.begin()
            if row.is_complete:
                continue
            self._slots_of[row] = [self._free.pop() for _ in row.prompts]
            for slot, prompt in zip(self._slots_of[row], row.prompts, strict=True):
                shared[tuple(prompt)].append(slot)
        kept = {ids: self._prompts.find(ids) for ids in shared}
        unread = {ids: slots[0] for ids, slots in shared.items() if kept[ids] is None}
        if unread:
            for slot in unread.values():
                self._lengths[slot] = 0
            self._feed(list(unread), list(unread.values()))
        for ids, slots in shared.items():
            source = kept[ids]
            if source is not None:
                self._copy(source, slots, len(ids))
                continue
            self._copy(slots[0], slots[1:], len(ids))
        for ids, slot in unread.items():  # last: until here, what is kept may have been a source
            target = self._prompts.keep(ids)
            if target is not None:
                self._copy(slot, [target], len(ids))

    def _copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Give slots the prompt of `length` tokens that another has, and the state after it."""
        assert self._states is not None
        for target in targets:
            self._slots.copy(source, target, length)
            self._states[target] = self._states[source]
            self._lengths[target] = length

    @torch.inference_mode()
    def step(self, rows: Sequence[RowUnderWay]) -> None:
        """Draw the next token of some of the rows that have begun. Rows that are complete leave their slots.

        Raises:
            RuntimeError: logits that are not finite.
        """
        tokens: list[list[int]] = []
        slots: list[int] = []
        for row, drawn in self._draw(rows).items():
            following = row.take(drawn)
            if row.is_complete:
                self.leave(row)
                continue
            for slot in self._slots_of[row]:
                tokens.append(following)
                slots.append(slot)
        if tokens:
            self._feed(tokens, slots)

    def leave(self, row: RowUnderWay) -> None:
        """Free the slots of a row, complete or not."""
        self._free += self._slots_of.pop(row, [])

    def forget_prompts(self) -> None:
        """Read prompts anew: after an error, those that are kept may be what caused it."""
        self._prompts.clear()

    def _feed(self, tokens: Sequence[Sequence[int]], slots: list[int]) -> None:
        """Feed tokens of several slots, each after what was fed there before."""
        fed = self._slots.feed(FedTokens.of_rows(tokens, slots, [self._lengths[slot] for slot in slots]))
        lengths = [len(row) for row in tokens]
        if self._states is None:
            self._states = fed.new_zeros(self._slots.count, fed.shape[-1])
        if len(fed) > len(slots):  # some read more than one
            fed = fed[torch.tensor(lengths, device=fed.device).cumsum(0) - 1]
        self._states.index_copy_(0, torch.tensor(slots, device=fed.device), fed)
        for slot, length in zip(slots, lengths, strict=True):
            self._lengths[slot] += length

    def _draw(self, rows: Sequence[RowUnderWay]) -> dict[RowUnderWay, int]:
        """The next token of each row. Rows that choose among as many tokens are computed together."""
        ranges: dict[tuple[int, int, bool], list[tuple[RowUnderWay, Choice]]] = defaultdict(list)
        for row in rows:
            choice = row.choice()
            ranges[choice.first, choice.last, choice.text_only].append((row, choice))
        groups: dict[tuple[int, bool], list[list[tuple[RowUnderWay, Choice]]]] = defaultdict(list)
        for (first, last, text_only), members in ranges.items():
            groups[last - first, text_only].append(members)
        drawn: dict[RowUnderWay, int] = {}
        for (_, text_only), parts in groups.items():
            logits = torch.cat([self._guided_logits(members) for members in parts])
            check_finite(logits.sum().isfinite())  # a sum is finite only where all its parts are
            if text_only:
                logits = logits.masked_fill(self._forbidden, -math.inf)
            members = [member for part in parts for member in part]
            precise = torch.float32 if logits.device.type == "mps" else torch.float64  # as `uniforms_of`
            uniforms = torch.tensor([choice.uniform for _, choice in members], dtype=precise, device=logits.device)
            settings = [choice.settings for _, choice in members]
            noise = gumbel(uniforms, logits.shape[-1]) if any(one.temperature for one in settings) else None
            columns = choose_by_row(logits, noise, settings)
            for (row, choice), column in zip(members, columns.tolist(), strict=True):
                drawn[row] = choice.first + column
        return drawn

    def _guided_logits(self, members: Sequence[tuple[RowUnderWay, Choice]]) -> torch.Tensor:
        """Logits (k, n) of k rows that choose among the same n tokens, with the guidance of those that have it."""
        assert self._states is not None
        slots = [self._slots_of[row] for row, _ in members]
        guided = [number for number, pair in enumerate(slots) if len(pair) == 2]
        chosen = [pair[0] for pair in slots] + [slots[number][1] for number in guided]
        _, choice = members[0]
        states = self._states.index_select(0, torch.tensor(chosen, device=self._states.device))
        logits = self._slots.logits(states, choice.first, choice.last)
        conditional, unconditional = logits[: len(slots)], logits[len(slots) :]
        if not guided:
            return conditional
        scales = logits.new_tensor([members[number][1].settings.guidance_scale for number in guided])[:, None]
        if len(guided) == len(slots):
            return unconditional + scales * (conditional - unconditional)
        conditional[guided] = unconditional + scales * (conditional[guided] - unconditional)
        return conditional
