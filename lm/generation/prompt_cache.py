"""Prompts that were read, kept in slots of their own: a row that begins with one copies its keys and values.

Users ask again for what they have asked for, and guidance reads the same prompt for every picture (prefix caching, as
in vLLM, Kwon et al. 2023; here of whole prompts).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable


class PromptCache:
    """Which slot keeps which prompt. Of more prompts than slots, the one that was used longest ago is forgotten.

    Args:
        slots: that no row has.
    """

    def __init__(self, slots: Iterable[int]) -> None:
        self._free = list(slots)
        self._slots: OrderedDict[tuple[int, ...], int] = OrderedDict()  # the one used last is last

    def find(self, prompt: tuple[int, ...]) -> int | None:
        """The slot that keeps a prompt, None where none does."""
        if prompt not in self._slots:
            return None
        self._slots.move_to_end(prompt)
        return self._slots[prompt]

    def keep(self, prompt: tuple[int, ...]) -> int | None:
        """The slot that a prompt, which is not kept, is to be copied to; None where there are no slots."""
        if not self._free and not self._slots:
            return None
        slot = self._free.pop() if self._free else self._slots.popitem(last=False)[1]
        self._slots[prompt] = slot
        return slot

    def clear(self) -> None:
        """Forget all prompts."""
        self._free += self._slots.values()
        self._slots.clear()
