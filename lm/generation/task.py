"""What the sampler is given: the pictures of one call, and the checks that they fit the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lm.generation.guess_table import GuessTable
from lm.generation.sampling import SamplingSettings
from lm.generation.steppers import check_per_call
from lm.pretrained import max_positions
from lm.sequences import image_prompt
from lm.vocabulary import MultimodalVocabulary, PictureTokens, Size

UNDRAWN = -1  # in a row of codes: a position that is to be drawn, or not drawn yet


@dataclass(frozen=True)
class DrawingTask:
    """Pictures to draw, one for each prompt.

    Attributes:
        prompts: B rows of token ids that end where a picture of this size begins (`lm.sequences.image_prompt`).
        generators: B random streams; row b draws from stream b alone, whatever its neighbours.
        settings: one for each of a picture's T codes (`lm.generation.sampling.SamplingSchedule.by_position`).
        negative_prompts: B rows that guidance leads away from (default: the prompt without a caption). Not read where
            every guidance scale is 1.
        source_prompts: of edits, B rows that have the source picture and no instruction; `negative_prompts` then have
            neither (Brooks et al. 2023). None where nothing is edited.
        sources: (B, T) codes of the pictures that edits start from, by which codes are guessed where several are
            computed in a call.
        size: of the pictures, (height, width), one of the vocabulary's; default: its default.
        forced: (B, T) int64 codes that are kept, -1 where to draw; None draws every code.
        max_batch_rows: most rows of the model's batch, unconditional ones included.
        codes_per_call: codes of a picture computed in one call of the model, at most (`lm.generation.fixed_point`);
            None: as many as are expected to pay. The pictures are the same.
        guess_table: guesses codes where several are computed in a call.
    """

    prompts: Sequence[Sequence[int]]
    generators: Sequence[torch.Generator]
    settings: Sequence[SamplingSettings]
    negative_prompts: Sequence[Sequence[int]] | None = None
    size: Size | None = None
    forced: torch.Tensor | None = None
    max_batch_rows: int = 128
    codes_per_call: int | None = None
    guess_table: GuessTable | None = None
    source_prompts: Sequence[Sequence[int]] | None = None
    sources: torch.Tensor | None = None

    def __post_init__(self) -> None:
        check_per_call("codes_per_call", self.codes_per_call)

    @property
    def is_guided(self) -> bool:
        """Whether any code is drawn with guidance."""
        edited = self.source_prompts is not None
        return any(one.guidance_scale != 1 or (edited and one.image_guidance_scale != 1) for one in self.settings)

    def guiding_prompts(self, vocabulary: MultimodalVocabulary) -> list[Sequence[Sequence[int]]]:
        """The prompts that guidance leads away from, B rows each: none without guidance, else one list, or two for
        edits where it is over both instruction and picture: with the picture alone, and with neither.

        One list is enough for an edit where the scale of the picture is 1 at every position (the logits of neither
        cancel out), and where both scales are equal (those of the picture alone do).
        """
        if not self.is_guided:
            return []
        negatives = self.negative_prompts or [image_prompt(vocabulary, None, self.size)] * len(self.prompts)
        if self.source_prompts is None:
            return [negatives]
        if all(one.image_guidance_scale == 1 for one in self.settings):
            return [self.source_prompts]
        if all(one.image_guidance_scale == one.guidance_scale for one in self.settings):
            return [negatives]
        return [self.source_prompts, negatives]

    def check(self, model: Any, vocabulary: MultimodalVocabulary) -> None:
        """Raise ValueError unless the lists match in number and the pictures fit the model."""
        count, picture = len(self.prompts), vocabulary.picture(self.size)
        if len(self.generators) != count:
            raise ValueError(f"{count} prompts need as many generators, got {len(self.generators)}")
        if len(self.settings) != len(picture.places):
            raise ValueError(
                f"{len(self.settings)} sampling settings for the {len(picture.places)} codes of a picture: give one "
                "for each code (SamplingSchedule.by_position)"
            )
        prompts = list(self.prompts)
        for name, rows in (("negative", self.negative_prompts), ("source", self.source_prompts)):
            if self.is_guided and rows is not None:
                if len(rows) != count:
                    raise ValueError(f"{count} prompts need as many {name} prompts, got {len(rows)}")
                prompts += rows
        needed = 1 + len(self.guiding_prompts(vocabulary))
        if self.source_prompts is not None and needed > self.max_batch_rows:
            raise ValueError(
                f"max_batch_rows={self.max_batch_rows}: an edit takes {needed} rows of the model's batch at these "
                "scales (one for the instruction with the picture, one for each guidance): allow as many, or give "
                "image_guidance_scale=1 (two rows), and guidance_scale=1, too (one)"
            )
        _check_room(model, vocabulary, prompts, self.size)
        if self.forced is not None:
            _check_forced(self.forced, picture, count)


def longest_prompt(model: Any, vocabulary: MultimodalVocabulary, size: Size | None = None) -> int:
    """How many tokens of prompt leave room for a picture of this size."""
    picture = vocabulary.picture(size)
    return max_positions(model.config) - int(picture.places[-1] - picture.places[0] + 1)


def _check_room(
    model: Any, vocabulary: MultimodalVocabulary, prompts: Sequence[Sequence[int]], size: Size | None
) -> None:
    limit = longest_prompt(model, vocabulary, size)
    for index, prompt in enumerate(prompts):
        if len(prompt) == 0:
            raise ValueError(f"prompt {index} is empty: it must end with the beginning-of-image token")
        if len(prompt) > limit:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens, but at most {limit} leave room for a picture in "
                f"the model's {max_positions(model.config)} positions: shorten the prompt"
            )
    rows = model.get_input_embeddings().weight.shape[0]
    if rows < vocabulary.size:
        raise ValueError(
            f"the model has {rows} tokens but the vocabulary {vocabulary.size}: they belong to different models"
        )


def _check_forced(forced: torch.Tensor, picture: PictureTokens, count: int) -> None:
    low, high = (torch.tensor(picture.layout[name], device=forced.device) for name in ("low", "high"))
    if forced.shape != (count, len(low)):
        raise ValueError(
            f"forced codes of shape {tuple(forced.shape)}: expected ({count}, {len(low)}), a row for each prompt"
        )
    wrong = ((forced != UNDRAWN) & ((forced < low) | (forced >= high))).nonzero()
    if len(wrong):
        row, position = wrong[0].tolist()
        raise ValueError(
            f"forced code {int(forced[row, position])} at position {position} of row {row}: the codes there are "
            f"{int(low[position])} to {int(high[position]) - 1}, or {UNDRAWN} where to draw"
        )
