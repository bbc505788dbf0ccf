"""The `Stepper` of stock Llama and Qwen3 models on a CPU: each row has a slot of `NativeSlots`, and prompts are read by
the compiled code, too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import torch

from lm.generation.native_slots import NativeSlots
from lm.generation.slots import FedTokens
from lm.generation.stepper import Stepper

MOST_FED = 64  # tokens of prompts in a call: their states fit a core's cache


class NativeStepper(Stepper):
    """One token of all rows, or several, in a call of compiled code."""

    rows_apart = True
    goes_back = True

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], num_new_tokens: int, pad_id: int) -> None:
        self.device = model.device
        self._lengths = torch.tensor([len(prompt) for prompt in prompts])
        self._slots = NativeSlots(model, len(prompts), int(self._lengths.max()) + num_new_tokens)
        self._rows, self._fed = torch.arange(len(prompts)), 0  # tokens of each row after its prompt
        self._state = self._read(prompts)
        self._states = self._state[:, None]

    def _read(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """The states (B, d) after prompts. One that several rows share (the unconditional one above all) is read once,
        in the first of their slots.

        Raises:
            ValueError: a prompt without tokens, or with one that the model does not have.
        """
        tokens = {token for prompt in prompts for token in prompt}
        known = len(self._slots.model.get_input_embeddings().weight)
        if not all(map(len, prompts)) or not 0 <= min(tokens) <= max(tokens) < known:
            raise ValueError(f"prompts need at least one token each, of 0 .. {known - 1}")
        shared: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for slot, prompt in enumerate(map(tuple, prompts)):
            shared[prompt].append(slot)
        fed = FedTokens.of_rows(list(shared), [slots[0] for slots in shared.values()], [0] * len(shared))
        last = torch.tensor([len(prompt) for prompt in shared]).cumsum(0) - 1
        states = []
        for start in range(0, len(fed.ids), MOST_FED):
            part = self._slots.feed(fed.part(slice(start, start + MOST_FED)))
            states.append(part[last[(start <= last) & (last < start + len(part))] - start])
        result = torch.empty(len(prompts), states[0].shape[1], dtype=states[0].dtype)
        for state, (prompt, slots) in zip(torch.cat(states), shared.items(), strict=True):
            result[slots] = state
            for slot in slots[1:]:
                self._slots.copy(slots[0], slot, len(prompt))
        return result

    def advance(self, ids: torch.Tensor) -> None:
        """Feed token `ids` (B,)."""
        self._state = self._slots.feed(FedTokens(ids, self._rows, self._lengths + self._fed))
        self._fed += 1

    def feed(self, ids: torch.Tensor, starts: torch.Tensor) -> None:
        """Feed several tokens a row, as `Stepper.feed`; rows may begin at different tokens."""
        rows, columns = (ids >= 0).nonzero(as_tuple=True)
        places = self._lengths[rows] + starts[rows] + columns
        fed = self._slots.feed(FedTokens(ids[rows, columns], rows, places))
        self._states = fed.new_empty(*ids.shape, fed.shape[-1])
        self._states[rows, columns] = fed

    def _map(self, states: torch.Tensor, first: int, last: int) -> torch.Tensor:
        return self._slots.logits(states, first, last)
