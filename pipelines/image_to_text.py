"""Pictures to captions: `ImageToTextPipeline`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from lm.generation.sampling import SamplingSettings
from lm.generation.texts import generate_text
from lm.sequences import DESCRIBING, description_prompt
from lm.vocabulary import Size
from pipelines.drawing.best_of import best_rows, check_can_rank_texts, picture_scores
from pipelines.multimodal import MultimodalPipeline, equal_streams, listed_images, whole_number

# Of captions to choose from: low enough that most are right, high enough that some are long (docs/results.md).
SEVERAL_TEMPERATURE = 0.7


@dataclass
class ImageToTextOutput:
    """What a pipeline's call returns.

    Attributes:
        texts: one for each picture.
    """

    texts: list[str]


class ImageToTextPipeline(MultimodalPipeline):
    """An image tokenizer and a language model that describes its codes.

        pipe = ImageToTextPipeline.from_pretrained("runs/model")
        text = pipe(Image.open("dog.png")).texts[0]

    It reads the same model folders as `TextToImagePipeline`; the model must have been trained in a sequence format
    that describes (`image_to_caption`, `image_and_caption`).
    """

    does, example = "describe", 'text = pipe(Image.open("dog.png")).texts[0]'

    def __call__(
        self,
        image: Image.Image | list[Image.Image],
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | Sequence[int] | None = None,
        best_of: int | None = None,
    ) -> ImageToTextOutput:
        """Write a caption for each picture. In float32 the likeliest one does not depend on the others beside it.

        The likeliest caption is often a short one. `best_of` draws several and returns the one that tells most of the
        picture: to find the picture likely after it, the model has to be told what is in it, and told right (Li et al.
        2016 choose among answers so, for their mutual information). How well it is put is not judged.

        Args:
            image: of any size and mode; prepared as in training.
            max_new_tokens: most tokens of a caption (default: as many as the model has room for).
            temperature, top_k, top_p: how freely to write; temperature 0 takes the likeliest token each time. Default
                temperature: 0, and 0.7 with `best_of` above 1.
            seed: every picture draws from the same stream under a seed, or from one of its own where it is a list of
                one for each. None gives other texts at each call, at a temperature above 0 (`torch.manual_seed`
                repeats them).
            best_of: write so many captions for each picture and return the one after which the same model finds the
                picture likeliest; it must have learned to draw from captions too.

        Raises:
            TypeError, ValueError: an argument that means nothing, a picture that cannot be read, or a model that has
                not learned to describe.
        """
        self._check(temperature, top_k, top_p, best_of)  # before pictures are encoded
        images, sizes = listed_images(image), self.sizes_of(image)
        if isinstance(seed, Sequence) and len(seed) != len(images):
            raise ValueError(f"{len(seed)} seeds for {len(images)} pictures: give one, or one for each")
        texts = [""] * len(images)
        for size in dict.fromkeys(sizes):
            own = [index for index, other in enumerate(sizes) if other == size]
            codes = self.encode_images([images[index] for index in own], size)
            seeds = [seed[index] for index in own] if isinstance(seed, Sequence) else seed
            found = self.describe_codes(codes, max_new_tokens, temperature, top_k, top_p, seeds, size, best_of)
            for index, text in zip(own, found, strict=True):
                texts[index] = text
        return ImageToTextOutput(texts)

    def describe_codes(
        self,
        codes: torch.Tensor,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | Sequence[int] | None = None,
        size: Size | None = None,
        best_of: int | None = None,
    ) -> list[str]:
        """A caption for the codes (B, T) of each picture, all of a size (default: the default one); the settings are
        those of the call."""
        settings = self._check(temperature, top_k, top_p, best_of)
        if not len(codes):
            return []
        each = best_of or 1
        prompts = [description_prompt(self.vocabulary, row, size) for row in codes.cpu().numpy() for _ in range(each)]
        if max_new_tokens is None:
            max_new_tokens = self.model.config.max_position_embeddings - len(prompts[0])
        ids = generate_text(
            self.model,
            self.vocabulary,
            prompts,
            max_new_tokens=whole_number(max_new_tokens, "max_new_tokens", 1),
            temperature=settings.temperature,
            top_k=top_k,
            top_p=top_p,
            generators=equal_streams(seed, len(codes), each),
            max_batch_rows=self.max_batch_rows,
        )
        if each > 1:
            ids = [ids[row] for row in best_rows(picture_scores(self, ids, codes, size), 1)]
        return [self.vocabulary.decode_text(row) for row in ids]

    def _check(self, temperature: float | None, top_k: int, top_p: float, best_of: int | None) -> SamplingSettings:
        """The settings, with the temperature that is used."""
        several = best_of is not None and whole_number(best_of, "best_of", 1) > 1
        if temperature is None:
            temperature = SEVERAL_TEMPERATURE if several else 0.0
        if several and (temperature == 0 or top_k == 1):
            raise ValueError(
                f"best_of={best_of} captions are all the same at temperature={temperature}, top_k={top_k}: give a "
                "temperature above 0 and another top_k, or neither"
            )
        settings = SamplingSettings(1.0, temperature, top_k, top_p)
        self.vocabulary.check_trained("describing a picture", *DESCRIBING)
        if several:
            check_can_rank_texts(self)
        return settings
