"""Texts and pictures, continued: `InterleavedPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from lm.generation.documents import generate_document
from lm.generation.sampling import SamplingSettings
from lm.sequences import Picture, document_sequence
from pipelines.multimodal import MultimodalPipeline, equal_streams, shown, whole_number
from tokenizer_image.preprocessing import postprocess

Part = str | Image.Image


@dataclass
class InterleavedOutput:
    """What a pipeline's call returns.

    Attributes:
        parts: what the model wrote after the given parts, in order: texts (str) and pictures (PIL).
    """

    parts: list[Part]


class InterleavedPipeline(MultimodalPipeline):
    """An image tokenizer and a language model that goes on from texts and pictures.

        pipe = InterleavedPipeline.from_pretrained("runs/model")
        parts = pipe(["First mix the colours:", Image.open("palette.png")]).parts

    The model must have been trained on interleaved rows (the sequence format `document`).
    """

    does, example = "continue", 'parts = pipe(["a text", Image.open("picture.png")]).parts'

    @torch.no_grad()
    def __call__(
        self,
        parts: Sequence[Part],
        max_new_tokens: int | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        text_temperature: float | None = None,
        seed: int | None = None,
    ) -> InterleavedOutput:
        """Go on from `parts` until the model ends the document, or `max_new_tokens` are written.

        Args:
            parts: texts and PIL images (of any size; brought to the model's size of the nearest shape) in order; an
                empty list begins a document.
            max_new_tokens: most tokens, codes included (default: as many as the model has room for).
            temperature, top_k, top_p: how freely to draw; temperature 0 takes the likeliest token each time.
            text_temperature: of texts, where it is another one.
            seed: of the random stream. None gives another document at each call (`torch.manual_seed` repeats them).

        Raises:
            TypeError, ValueError: an argument that means nothing, a picture that cannot be read, parts that fill the
                model's positions, or a model that has not learned from documents.
        """
        self.vocabulary.check_trained("continuing a document", "document")
        image_settings = SamplingSettings(1.0, temperature, top_k, top_p)
        warmth = temperature if text_temperature is None else text_temperature
        text_settings = SamplingSettings(1.0, warmth, top_k, top_p)
        prompt = document_sequence(self.vocabulary, self._read(parts), whole=False).input_ids.tolist()
        if max_new_tokens is None:
            max_new_tokens = self.model.config.max_position_embeddings - len(prompt)
            if max_new_tokens < 1:
                raise ValueError(
                    f"the parts have {len(prompt)} tokens, which leaves no room in the model's "
                    f"{self.model.config.max_position_embeddings} positions: give fewer"
                )
        written = generate_document(
            self.model, self.vocabulary, prompt, max_new_tokens=whole_number(max_new_tokens, "max_new_tokens", 1),
            text=text_settings, image=image_settings, generator=equal_streams(seed, 1)[0],
        )  # fmt: skip
        return InterleavedOutput([self._shown(part) for part in written])

    def _read(self, parts: Sequence[Part]) -> list[list[int] | Picture]:
        """Texts as token ids, pictures as codes."""
        if isinstance(parts, (str, Image.Image)):
            raise TypeError(f"parts must be a list of texts and PIL images, got {shown(parts)}: put it into a list")
        found: list[list[int] | Picture] = []
        for index, part in enumerate(parts):
            if isinstance(part, str):
                found.append(self.vocabulary.encode_text(part.strip()))
            elif isinstance(part, Image.Image):
                (size,) = self.sizes_of(part)
                found.append(Picture(self.encode_images(part, size)[0].cpu().numpy(), size))
            else:
                raise TypeError(f"part {index} must be a text or a PIL image, got {shown(part)}")
        return found

    def _shown(self, part: list[int] | Picture) -> Part:
        if not isinstance(part, Picture):
            return self.vocabulary.decode_text(part)
        codes = torch.from_numpy(part.codes)[None].to(self.device)
        images = postprocess(self.decode_codes(codes, part.size), "pil")
        return images[0]
