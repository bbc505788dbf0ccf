"""One picture, or one text, while it is drawn beside others: what it reads next, and among which tokens it chooses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch

from lm.generation.sampling import SamplingSettings, uniforms_of
from lm.generation.task import UNDRAWN, DrawingTask
from lm.sequences import image_prompt
from lm.vocabulary import MultimodalVocabulary, PictureTokens


class Choice(NamedTuple):
    """How a row's next token is drawn.

    Attributes:
        first, last: it is one of `first <= id < last`.
        settings: how it is drawn among them.
        uniform: the row's number in [0, 1].
        text_only: whether ids that cannot stand in a text are left out.
    """

    first: int
    last: int
    settings: SamplingSettings
    uniform: float
    text_only: bool


@dataclass(eq=False)
class PictureUnderWay:
    """A picture: T codes after a prompt.

    Attributes:
        prompts: token ids, with guidance of the prompt and of what guidance leads away from. `begin` adds the codes
            that are kept at its start.
        settings: one for each of T positions.
        uniforms: (T,) numbers in [0, 1], float64.
        codes: (T,) int64, UNDRAWN where to draw.
        position: of the next code to draw; T when the picture is complete.
        total: T.
    """

    picture: PictureTokens
    image_offset: int
    prompts: list[list[int]]
    settings: Sequence[SamplingSettings]
    uniforms: np.ndarray
    codes: np.ndarray
    position: int = field(default=0, init=False)
    total: int = field(init=False)

    def __post_init__(self) -> None:
        self.total = len(self.codes)
        self._numbers: list[float] = self.uniforms.tolist()  # one is read a step: an array takes ten times as long

    @property
    def is_complete(self) -> bool:
        """Whether no code is left to draw."""
        return self.position == self.total

    @property
    def longest(self) -> int:
        """The most tokens that a row of it has."""
        return max(map(len, self.prompts)) + int(self.picture.places[-1] - self.picture.places[0])

    def begin(self) -> None:
        """Go to the first code that is to be drawn."""
        given = self._tokens_after(0)
        self.prompts = [[*prompt, *given] for prompt in self.prompts]

    def choice(self) -> Choice:
        """How the code at `position` is drawn."""
        layout, t = self.picture.layout, self.position
        low, high = layout["low"][t] + self.image_offset, layout["high"][t] + self.image_offset
        return Choice(low, high, self.settings[t], self._numbers[t], False)

    def take(self, token: int) -> list[int]:
        """Take the token that was drawn, and return those to read before the next is drawn; [] at the end."""
        t = self.position
        self.codes[t] = token - self.image_offset
        following = [token, *self.picture.between[t], *self._tokens_after(t + 1)]
        return [] if self.is_complete else following

    def _tokens_after(self, t: int) -> list[int]:
        """Go from t to the next position that is to be drawn; the tokens of those that are kept on the way."""
        tokens: list[int] = []
        while t < self.total and self.codes[t] != UNDRAWN:
            tokens += [self.image_offset + int(self.codes[t]), *self.picture.between[t]]
            t += 1
        self.position = t
        return tokens


@dataclass(eq=False)
class TextUnderWay:
    """A text after a prompt, until eos or `most` tokens.

    Attributes:
        ids: token ids written so far, without eos.
        has_stopped: whether eos was drawn.
    """

    vocabulary: MultimodalVocabulary
    prompts: list[list[int]]
    settings: SamplingSettings
    uniforms: np.ndarray
    most: int
    ids: list[int] = field(default_factory=list, init=False)
    has_stopped: bool = field(default=False, init=False)

    @property
    def is_complete(self) -> bool:
        """Whether no token is left to draw."""
        return self.has_stopped or len(self.ids) == self.most

    @property
    def longest(self) -> int:
        """The most tokens that its row has."""
        return len(self.prompts[0]) + self.most - 1

    def begin(self) -> None:
        """Nothing: the text begins after the prompt."""

    def choice(self) -> Choice:
        """How the next token is drawn."""
        uniform = float(self.uniforms[len(self.ids)])
        return Choice(0, self.vocabulary.image_offset, self.settings, uniform, True)

    def take(self, token: int) -> list[int]:
        """Take the token that was drawn, and return it, to be read; [] at the end."""
        if token == self.vocabulary.eos_id:
            self.has_stopped = True
        else:
            self.ids.append(token)
        return [] if self.is_complete else [token]


RowUnderWay = PictureUnderWay | TextUnderWay


def pictures_of(task: DrawingTask, vocabulary: MultimodalVocabulary) -> list[PictureUnderWay]:
    """The pictures of a task that was checked (`DrawingTask.check`), to be drawn beside others."""
    picture, count = vocabulary.picture(task.size), len(task.prompts)
    negatives = task.negative_prompts or [image_prompt(vocabulary, None, task.size)] * count
    uniforms = uniforms_of(task.generators, len(task.settings), torch.device("cpu")).numpy()
    forced = torch.full((count, len(task.settings)), UNDRAWN) if task.forced is None else task.forced.cpu()
    return [
        PictureUnderWay(
            picture=picture,
            image_offset=vocabulary.image_offset,
            prompts=[list(prompt), list(negative)] if task.is_guided else [list(prompt)],
            settings=task.settings,
            uniforms=uniforms[row],
            codes=forced[row].numpy().copy(),
        )
        for row, (prompt, negative) in enumerate(zip(task.prompts, negatives, strict=True))
    ]
