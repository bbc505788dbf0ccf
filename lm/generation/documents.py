"""Writing an interleaved document with a causal language model: texts and pictures, in the order that it chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lm.generation.images import check_finite, evaluation_mode
from lm.generation.sampling import SamplingSettings, choose, uniforms_of
from lm.generation.stepper import Stepper
from lm.sequences import Picture

if TYPE_CHECKING:
    from lm.vocabulary import MultimodalVocabulary, Size

Part = list[int] | Picture  # token ids of a text, or a picture


def generate_document(
    model: Any,
    vocabulary: MultimodalVocabulary,
    prompt: Sequence[int],
    *,
    max_new_tokens: int,
    text: SamplingSettings,
    image: SamplingSettings,
    generator: torch.Generator,
) -> list[Part]:
    """Go on from `prompt` until the model ends the document, or until `max_new_tokens`.

    In a text, any text token, the beginning of a picture and the end of the document compete; in a picture, its size
    (where the model knows several) and then the codes of each place. A picture is begun only where it fits whole.

    Args:
        prompt: token ids of what there is, as `lm.sequences.document_sequence` makes them, without eos.
        text, image: how freely texts and pictures are drawn; guidance has no meaning here and must be 1.
        generator: the stream that everything is drawn from, one number a token.

    Returns:
        what was written after the prompt, in order.

    Raises:
        ValueError: guidance, or more tokens than the model has positions.
        RuntimeError: logits that are not finite.
    """
    if text.guidance_scale != 1 or image.guidance_scale != 1:
        raise ValueError(f"guidance_scale {image.guidance_scale}: a document is drawn without guidance, at 1")
    positions = getattr(model.config, "max_position_embeddings", None)
    if positions is not None and len(prompt) + max_new_tokens > positions:
        raise ValueError(
            f"max_new_tokens={max_new_tokens} beside a prompt of {len(prompt)} tokens is more than the model's "
            f"{positions} positions: give at most {max(0, positions - len(prompt))}, or a shorter prompt"
        )
    with evaluation_mode(model), torch.inference_mode():
        return _Writer(model, vocabulary, prompt, max_new_tokens, text, image, generator).parts()


class _Writer:
    """One document in the making."""

    def __init__(
        self,
        model: Any,
        vocabulary: MultimodalVocabulary,
        prompt: Sequence[int],
        max_new_tokens: int,
        text: SamplingSettings,
        image: SamplingSettings,
        generator: torch.Generator,
    ) -> None:
        self.vocabulary, self.text, self.image = vocabulary, text, image
        self.stepper = Stepper(model, [prompt], max_new_tokens, vocabulary.pad_id)
        self.uniforms = uniforms_of([generator], max_new_tokens, self.stepper.device)  # (1, max_new_tokens)
        self.left, self.drawn = max_new_tokens, 0
        self.finite = torch.ones((), dtype=torch.bool, device=self.stepper.device)
        mask = vocabulary.text_mask()
        mask[vocabulary.boi_id] = True
        self.in_text = torch.from_numpy(mask).to(self.stepper.device)

    def parts(self) -> list[Part]:
        """Texts and pictures until the document ends."""
        found: list[Part] = []
        while self.left > 0:
            allowed = self.in_text.clone()
            allowed[self.vocabulary.boi_id] = bool(self._sizes(frame=2))
            token = self._draw(0, self.vocabulary.image_offset, self.text, allowed)
            if token == self.vocabulary.eos_id:
                break
            self._feed(token)
            if token == self.vocabulary.boi_id:
                found.append(self._picture())
            elif found and not isinstance(found[-1], Picture):
                found[-1].append(token)
            else:
                found.append([token])
        check_finite(self.finite)
        return found

    def _sizes(self, frame: int) -> list[Size]:
        """Sizes of which a picture, with `frame` more tokens around it, still fits."""
        return [size for size in self.vocabulary.layouts if len(self.vocabulary.picture(size)) + frame <= self.left]

    def _picture(self) -> Picture:
        """A picture whose beginning has been fed, with its end."""
        vocabulary, size = self.vocabulary, None
        if vocabulary.size_ids:
            numbers = {vocabulary.size_ids[one]: one for one in self._sizes(frame=1)}
            allowed = torch.zeros_like(self.in_text)
            allowed[list(numbers)] = True
            size = numbers[self._draw(0, vocabulary.image_offset, self.text, allowed)]
        picture, offset = vocabulary.picture(size), vocabulary.image_offset
        codes: list[int] = []
        for fixed in picture.ids.tolist():
            if fixed < 0:
                low, high = picture.layout["low"][len(codes)], picture.layout["high"][len(codes)]
                codes.append(low + self._draw(offset + low, offset + high, self.image))
                fixed = offset + codes[-1]
            self._feed(fixed)
        self._feed(vocabulary.eoi_id)
        return Picture(np.asarray(codes, np.int64), size)

    def _draw(self, low: int, high: int, settings: SamplingSettings, allowed: torch.Tensor | None = None) -> int:
        """One of the ids low .. high - 1, as its distance from `low`."""
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
