"""Writing an interleaved document with a causal language model: texts and pictures, in an order that it chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lm.generation.guess_table import GuessTable
from lm.generation.guesses import Guesser
from lm.generation.lookahead import Lookahead, looking_ahead
from lm.generation.noise import gumbel
from lm.generation.sampling import SamplingSettings, choose, uniforms_of
from lm.generation.stepper import Stepper, check_finite, evaluation_mode
from lm.generation.steppers import check_per_call, default_tokens_per_call, stepper_factory
from lm.generation.texts import check_room
from lm.sequences import Picture
from lm.vocabulary import MultimodalVocabulary, PictureTokens, Size

Part = list[int] | Picture  # token ids of a text, or a picture


@dataclass(frozen=True)
class DocumentTask:
    """A document to continue.

    Attributes:
        prompt: token ids of the given parts, as `lm.sequences.document_sequence` makes them, without eos.
        max_new_tokens: most tokens to write, codes and special tokens included.
        text, image: how tokens of texts and codes of pictures are drawn; guidance does not apply and must be 1.
        generator: the random stream that everything is drawn from, one number for each token.
        tokens_per_call: tokens computed in one call of the model, at most (`lm.generation.lookahead`); None takes
            several where that is faster. What is drawn does not depend on it.
        guess_table: of the image tokenizer's codes, and of phrases, to guess by.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    text: SamplingSettings
    image: SamplingSettings
    generator: torch.Generator
    tokens_per_call: int | None = None
    guess_table: GuessTable | None = None

    def __post_init__(self) -> None:
        check_per_call("tokens_per_call", self.tokens_per_call)
        for settings in (self.text, self.image):
            if settings.guidance_scale != 1:
                raise ValueError(
                    f"guidance_scale {settings.guidance_scale}: a document is drawn without guidance, at 1"
                )


def generate_document(model: Any, vocabulary: MultimodalVocabulary, task: DocumentTask) -> list[Part]:
    """Continue a document until the model ends it, or until `task.max_new_tokens` are written.

    In a text, the model chooses among all text tokens, the beginning of a picture and the end of the document; in a
    picture, it chooses the size (where it knows several) and then the code of each position. A picture is begun only
    where it fits whole.

    Returns:
        what was written after the prompt, in order.

    Raises:
        ValueError: more tokens than the model has positions.
        RuntimeError: logits that are not finite.
    """
    check_room(model, len(task.prompt), task.max_new_tokens)
    with evaluation_mode(model), torch.inference_mode():
        return _Writer(model, vocabulary, task).parts()


class _Writer:
    """Writes one document, token by token."""

    def __init__(self, model: Any, vocabulary: MultimodalVocabulary, task: DocumentTask) -> None:
        self.vocabulary, self.task = vocabulary, task
        self.picture: PictureTokens | None = None  # that is being drawn
        self.guesser: Guesser | None = None  # of that picture's codes
        self.codes: list[int] = []  # of that picture, so far
        self.place = 0  # of the next one of that picture's tokens
        self.stepper = self._stepper_of(model)
        self.uniforms = uniforms_of([task.generator], task.max_new_tokens, self.stepper.device)  # (1, max_new_tokens)
        self.left, self.drawn = task.max_new_tokens, 0
        self.finite = torch.ones((), dtype=torch.bool, device=self.stepper.device)
        self.in_text = torch.from_numpy(vocabulary.text_mask()).to(self.stepper.device)

    def _stepper_of(self, model: Any) -> Stepper | Lookahead:
        task, make_stepper = self.task, stepper_factory(model, 1)
        most = task.tokens_per_call or default_tokens_per_call(model, make_stepper, 1)
        stepper = make_stepper([task.prompt], task.max_new_tokens, self.vocabulary.pad_id)
        return looking_ahead(stepper, model, self._guess, most, task.max_new_tokens)

    def _guess(self, written: Sequence[Sequence[int]], count: int) -> list[list[int]]:
        """What follows the tokens (1, t) that were written: the rest of the picture that is being drawn, or text."""
        table = self.task.guess_table
        if self.picture is None or self.guesser is None:
            return [table.phrases.guess([*self.task.prompt[-1:], *written[0]], count) if table else []]
        codes = np.zeros((1, len(self.picture.places)), np.int64)
        position = len(self.codes)
        codes[0, :position] = self.codes
        found: list[int] = []
        for fixed in [*self.picture.ids.tolist(), self.vocabulary.eoi_id][self.place : self.place + count]:
            if fixed < 0:
                codes[:, position] = self.guesser.guess(codes, position)
                fixed = self.vocabulary.image_offset + int(codes[0, position])
                position += 1
            found.append(fixed)
        return [found]

    def parts(self) -> list[Part]:
        """Texts and pictures until the document ends."""
        parts: list[Part] = []
        while self.left > 0:
            allowed = self.in_text.clone()
            allowed[self.vocabulary.boi_id] = bool(self._sizes(frame=2))
            token = self._draw(0, self.vocabulary.image_offset, self.task.text, allowed)
            if token == self.vocabulary.eos_id:
                break
            self._feed(token)
            if token == self.vocabulary.boi_id:
                parts.append(self._picture())
            elif parts and not isinstance(parts[-1], Picture):
                parts[-1].append(token)
            else:
                parts.append([token])
        check_finite(self.finite)
        return parts

    def _sizes(self, frame: int) -> list[Size]:
        """Sizes whose pictures, with `frame` special tokens around them, fit into the tokens that are left."""
        return [size for size in self.vocabulary.layouts if len(self.vocabulary.picture(size)) + frame <= self.left]

    def _picture(self) -> Picture:
        """A picture, after its begin_image token has been fed; feeds its end_image token too."""
        vocabulary, chosen = self.vocabulary, None
        if vocabulary.size_ids:
            sizes = {vocabulary.size_ids[size]: size for size in self._sizes(frame=1)}
            allowed = torch.zeros_like(self.in_text)
            allowed[list(sizes)] = True
            chosen = sizes[self._draw(0, vocabulary.image_offset, self.task.text, allowed)]
        picture, offset = vocabulary.picture(chosen), vocabulary.image_offset
        self.picture, self.codes, self.guesser = picture, [], Guesser(picture.layout, self.task.guess_table)
        for place, fixed in enumerate(picture.ids.tolist()):
            if fixed < 0:
                low, high = picture.layout["low"][len(self.codes)], picture.layout["high"][len(self.codes)]
                self.codes.append(low + self._draw(offset + low, offset + high, self.task.image))
                fixed = offset + self.codes[-1]
            self.place = place + 1
            self._feed(fixed)
        self.picture = None
        self._feed(vocabulary.eoi_id)
        return Picture(np.asarray(self.codes, np.int64), chosen)

    def _draw(self, low: int, high: int, settings: SamplingSettings, allowed: torch.Tensor | None = None) -> int:
        """Draw one of the ids low .. high - 1; returns its distance from `low`."""
        logits = self.stepper.logits(low, high)
        self.finite &= logits.isfinite().all()
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
        noise = None if settings.temperature == 0 else gumbel(self.uniforms[:, self.drawn], logits.shape[-1])
        self.drawn += 1
        return int(choose(logits, noise, settings))

    def _feed(self, token: int) -> None:
        self.left -= 1
        if self.left > 0:
            self.stepper.advance(torch.tensor([token], device=self.stepper.device))
