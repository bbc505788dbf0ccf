"""Continuing documents of texts and pictures: `InterleavedPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from lm.generation.documents import DocumentTask, generate_document
from lm.generation.sampling import SamplingSettings
from lm.generation.texts import room_after
from lm.pretrained import max_positions
from lm.sequences import Picture, document_sequence
from pipelines.drawing.arguments import shown, whole_number
from pipelines.drawing.streams import text_streams
from pipelines.multimodal import MultimodalPipeline
from tokenizer_image.pictures.text_intake import clean_text
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
    """An image tokenizer and a language model that continues documents of texts and pictures.

        pipe = InterleavedPipeline.from_pretrained("runs/model")
        parts = pipe(["First mix the colours:", Image.open("palette.png")]).parts

    The model must have been trained on interleaved rows (the sequence format `document`).
    """

    action, example = "continue", 'parts = pipe(["a text", Image.open("picture.png")]).parts'

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
        min_p: float = 0.0,
        tokens_per_call: int | None = None,
    ) -> InterleavedOutput:
        """Continue `parts` until the model ends the document, or `max_new_tokens` are written.

        Args:
            parts: texts and PIL images (of any size; brought to the model's size of the nearest shape) in order; an
                empty list begins a document.
            max_new_tokens: most tokens, codes included (default: as many as the model has positions for, or 1024 where
                it states no limit).
            temperature, top_k, top_p, min_p: how each token is drawn (`lm.generation.sampling.SamplingSettings`);
                temperature 0 takes the likeliest token each time.
            text_temperature: temperature of texts alone (default: `temperature`).
            seed: of the random stream. None gives another document at each call (`torch.manual_seed` repeats them).
            tokens_per_call: tokens, codes included, computed in one call of the model, at most: those that follow are
                guessed. 1: one by one; None takes several where that is faster. The document is the same.

        Raises:
            TypeError, ValueError: an argument that is wrong, a picture that cannot be read, parts that fill the
                model's positions, or a model that has not learned from documents.
        """
        self.vocabulary.check_trained("continuing a document", "document")
        image_settings = SamplingSettings(1.0, temperature, top_k, top_p, min_p)
        if text_temperature is None:
            text_temperature = temperature
        text_settings = SamplingSettings(1.0, text_temperature, top_k, top_p, min_p)
        prompt = document_sequence(self.vocabulary, self._read(parts), whole=False).input_ids.tolist()
        if max_new_tokens is None:
            max_new_tokens = room_after(self.model, len(prompt))
            if max_new_tokens < 1:
                raise ValueError(
                    f"the parts have {len(prompt)} tokens, which leaves no room in the model's "
                    f"{max_positions(self.model.config)} positions: give fewer"
                )
        max_new_tokens = whole_number(max_new_tokens, "max_new_tokens", 1)
        if tokens_per_call is not None:
            whole_number(tokens_per_call, "tokens_per_call", 1)
        task = DocumentTask(
            prompt, max_new_tokens, text_settings, image_settings, text_streams(seed, 1)[0], tokens_per_call,
            self.guess_table,
        )  # fmt: skip
        written = generate_document(self.model, self.vocabulary, task)
        return InterleavedOutput([self._decode(part) for part in written])

    def _read(self, parts: Sequence[Part]) -> list[list[int] | Picture]:
        """Texts as token ids, pictures as codes."""
        if isinstance(parts, (str, Image.Image)):
            raise TypeError(f"parts must be a list of texts and PIL images, got {shown(parts)}: put it into a list")
        read: list[list[int] | Picture] = []
        for index, part in enumerate(parts):
            if isinstance(part, str):
                read.append(self.vocabulary.encode_text(clean_text(part).strip()))
            elif isinstance(part, Image.Image):
                (pixels,) = self.prepare_images(part)
                size = (pixels.shape[1], pixels.shape[2])
                read.append(Picture(self.encode_pixels([pixels])[0].cpu().numpy(), size))
            else:
                raise TypeError(f"part {index} must be a text or a PIL image, got {shown(part)}")
        return read

    def _decode(self, part: list[int] | Picture) -> Part:
        """The text, or the PIL image, of a part."""
        if not isinstance(part, Picture):
            return self.vocabulary.decode_text(part)
        codes = torch.from_numpy(part.codes)[None].to(self.device)
        images = postprocess(self.decode_codes(codes, part.size), "pil")
        return images[0]
