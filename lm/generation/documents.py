"""Writing an interleaved document with a causal language model: texts and pictures, in an order that it chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lm.generation.sampling import SamplingSettings, choose, uniforms_of
from lm.generation.stepper import Stepper, check_finite, evaluation_mode
from lm.generation.texts import check_room
from lm.sequences import Picture
from lm.vocabulary import MultimodalVocabulary, Size

Part = list[int] | Picture  # token ids of a text, or a picture


@dataclass(frozen=True)
class DocumentTask:
    """A document to continue.

    Attributes:
        prompt: token ids of the given parts, as `lm.sequences.document_sequence` makes them, without eos.
        max_new_tokens: most tokens to write, codes and special tokens included.
        text, image: how tokens of texts and codes of pictures are drawn; guidance does not apply and must be 1.
        generator: the random stream that everything is drawn from, one number for each token.
    """

    prompt: Sequence[int]
    max_new_tokens: int
    text: SamplingSettings
    image: SamplingSettings
    generator: torch.Generator

    def __post_init__(self) -> None:
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
        self.stepper = Stepper(model, [task.prompt], task.max_new_tokens, vocabulary.pad_id)
        self.uniforms = uniforms_of([task.generator], task.max_new_tokens, self.stepper.device)  # (1, max_new_tokens)
        self.left, self.drawn = task.max_new_tokens, 0
        self.finite = torch.ones((), dtype=torch.bool, device=self.stepper.device)
        self.in_text = torch.from_numpy(vocabulary.text_mask()).to(self.stepper.device)

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
        codes: list[int] = []
        for fixed in picture.ids.tolist():
            if fixed < 0:
                low, high = picture.layout["low"][len(codes)], picture.layout["high"][len(codes)]
                codes.append(low + self._draw(offset + low, offset + high, self.task.image))
                fixed = offset + codes[-1]
            self._feed(fixed)
        self._feed(vocabulary.eoi_id)
        return Picture(np.asarray(codes, np.int64), chosen)

    def _draw(self, low: int, high: int, settings: SamplingSettings, allowed: torch.Tensor | None = None) -> int:
        """Draw one of the ids low .. high - 1; returns its distance from `low`."""
        logits = self.stepper.logits(low, high)
        self.finite &= logits.isfinite().all()
        if allowed is not None:
            logits = logits.masked_fill(~allowed, -math.inf)
        uniforms = None if settings.temperature == 0 else self.uniforms[:, self.drawn]
        self.drawn += 1
        return int(choose(logits, uniforms, settings))

    def _feed(self, token: int) -> None:
        self.left -= 1
        if self.left > 0:
            self.stepper.advance(torch.tensor([token], device=self.stepper.device))
