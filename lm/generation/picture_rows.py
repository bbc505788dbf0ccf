"""Some pictures of a task as rows of the model's batch: their prompts, and how each of their codes is chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from lm.generation import memory
from lm.generation.noise import PlaceNoise
from lm.generation.sampling import SamplingSettings, choose
from lm.vocabulary import MultimodalVocabulary, PictureTokens


@dataclass(frozen=True)
class PictureRows:
    """All or some of a task's pictures, after its checks.

    Attributes:
        picture: the tokens of pictures of the size that is drawn.
        settings: one for each of T positions.
        guiding_prompts: what guidance leads away from (`DrawingTask.guiding_prompts`): no, one or two lists of B rows.
        uniforms: (B, T) numbers in [0, 1].
        forced: (B, T) codes, -1 where to draw; None draws every code.
        sources: (B, T) codes of the pictures that edits start from, to guess by; None where nothing is edited.
    """

    model: Any
    vocabulary: MultimodalVocabulary
    picture: PictureTokens
    settings: Sequence[SamplingSettings]
    prompts: Sequence[Sequence[int]]
    guiding_prompts: Sequence[Sequence[Sequence[int]]]
    uniforms: torch.Tensor
    forced: torch.Tensor | None
    sources: torch.Tensor | None = None

    def part(self, rows: slice) -> PictureRows:
        """Some of the pictures."""
        return replace(
            self,
            prompts=self.prompts[rows],
            guiding_prompts=[prompts[rows] for prompts in self.guiding_prompts],
            uniforms=self.uniforms[rows],
            forced=None if self.forced is None else self.forced[rows],
            sources=None if self.sources is None else self.sources[rows],
        )

    @property
    def rows_of_picture(self) -> int:
        """Rows of the model's batch that one picture takes: a second one with guidance, a third with guidance over an
        edit's picture, too."""
        return 1 + len(self.guiding_prompts)

    @cached_property
    def noise(self) -> PlaceNoise:
        """By which codes are drawn."""
        layout = self.picture.layout
        return PlaceNoise(self.uniforms, [high - low for low, high in zip(layout["low"], layout["high"], strict=True)])

    def that_fit(self) -> int | None:
        """Rows of the model's batch that the free memory has room for; None where that is not known."""
        return memory.rows_that_fit(self.model, *self._lengths())

    def bytes_of_row(self) -> int:
        """About what one row of the model's batch takes beside the weights."""
        return memory.bytes_of_row(self.model, *self._lengths())

    def _lengths(self) -> tuple[int, int, int]:
        """Tokens of the longest prompt, tokens of a picture, and the most codes that one is chosen among."""
        low, high = self.picture.layout["low"], self.picture.layout["high"]
        longest = max(len(prompt) for prompts in self._all_prompts for prompt in prompts)
        return longest, len(self.picture), max(last - first for first, last in zip(low, high, strict=True))

    @property
    def _all_prompts(self) -> list[Sequence[Sequence[int]]]:
        return [self.prompts, *self.guiding_prompts]

    def guided(self, logits: torch.Tensor, settings: SamplingSettings) -> torch.Tensor:
        """Logits (k, n) with guidance, of k rows of each prompt: conditional, then unconditional where there is
        guidance; of edits, with the picture alone before those with neither (Brooks et al. 2023, eq. 3)."""
        if not self.guiding_prompts:
            return logits
        conditional, *unconditional = logits.chunk(self.rows_of_picture)
        if len(unconditional) == 1:
            return unconditional[0] + settings.guidance_scale * (conditional - unconditional[0])
        picture, neither = unconditional
        by_picture = settings.image_guidance_scale * (picture - neither)
        return neither + by_picture + settings.guidance_scale * (conditional - picture)

    def choose(self, position: int, logits: torch.Tensor) -> torch.Tensor:
        """The column (b,) that each picture draws at a position, of logits (b x rows_of_picture, n)."""
        settings = self.settings[position]
        noise = None if settings.temperature == 0 else self.noise.at(position)
        return choose(self.guided(logits, settings), noise, settings)

    def prompts_with(self, codes: torch.Tensor) -> list[list[int]]:
        """Token ids of each row of the model's batch up to the first code to draw, after the given ones (b, t)."""
        picture, count = self.picture, codes.shape[1]
        head = picture.places[0]
        tokens = torch.from_numpy(picture.ids[head : picture.places[count]]).repeat(len(codes), 1)
        tokens[:, torch.from_numpy(picture.places[:count] - head)] = self.vocabulary.image_offset + codes.cpu()
        given = tokens.tolist()
        return [[*prompt, *ids] for prompts in self._all_prompts for prompt, ids in zip(prompts, given, strict=True)]
