"""Pictures to captions: `ImageToTextPipeline`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image

from lm.generation.sampling import SamplingSettings
from lm.generation.texts import generate_text, room_after
from lm.sequences import DESCRIBING, description_prompt
from lm.vocabulary import Size
from pipelines.drawing.arguments import whole_number
from pipelines.drawing.best_of import best_rows, check_can_rank_texts, picture_scores
from pipelines.drawing.streams import Seed, text_streams
from pipelines.multimodal import MultimodalPipeline

# Default temperature of several captions: low enough that most are right, high enough that some are long
# (docs/results.md).
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

    action, example = "describe", 'text = pipe(Image.open("dog.png")).texts[0]'

    def __call__(
        self,
        image: Image.Image | Iterable[Image.Image],
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: Seed = None,
        best_of: int | None = None,
        min_p: float = 0.0,
        tokens_per_call: int | None = None,
    ) -> ImageToTextOutput:
        """Write a caption for each picture. In float32 the likeliest one does not depend on the others beside it.

        The likeliest caption is often a short one. `best_of` draws several and returns the one after which the model
        finds the picture likeliest, log p(picture | caption), which favours captions that state much of the picture
        and state it right (Li et al. 2016 choose answers so, for their mutual information). Style is not judged.

        Args:
            image: pictures of any size and mode; prepared as in training. Of an iterator, one at a time is in memory.
            max_new_tokens: most tokens of a caption (default: as many as the model has positions for, or 1024 where it
                states no limit).
            temperature, top_k, top_p, min_p: how each token is drawn (`lm.generation.sampling.SamplingSettings`);
                temperature 0 takes the likeliest token each time. Default temperature: 0, and 0.7 with `best_of` above
                1.
            seed: every picture draws from the same stream under a seed, or from one of its own where it is a list of
                one for each. None gives other texts at each call, at a temperature above 0 (`torch.manual_seed`
                repeats them).
            best_of: write so many captions for each picture and return the one after which the same model finds the
                picture likeliest; it must have learned to draw from captions too.
            tokens_per_call: tokens computed in one call of the model, at most: most of those that follow are guessed
                by what followed in training captions. 1: one by one; None takes several where that is faster. The text
                is the same.

        Raises:
            TypeError, ValueError: an argument that is wrong, a picture that cannot be read, or a model that has
                not learned to describe.
        """
        self.sampling_settings(temperature, top_k, top_p, min_p, best_of)  # checks, before pictures are read
        pixels = self.prepare_images(image)
        if isinstance(seed, Sequence) and len(seed) != len(pixels):
            raise ValueError(f"{len(seed)} seeds for {len(pixels)} pictures: give one, or one for each")
        sizes = [(picture.shape[1], picture.shape[2]) for picture in pixels]
        texts = [""] * len(pixels)
        for size in dict.fromkeys(sizes):
            rows = [row for row, other in enumerate(sizes) if other == size]
            codes = self.encode_pixels([pixels[row] for row in rows])
            seeds = [seed[row] for row in rows] if isinstance(seed, Sequence) else seed
            written = self.describe_codes(
                codes, max_new_tokens, temperature, top_k, top_p, seeds, size, best_of, min_p, tokens_per_call
            )
            for row, text in zip(rows, written, strict=True):
                texts[row] = text
        return ImageToTextOutput(texts)

    def describe_codes(
        self,
        codes: torch.Tensor,
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: Seed = None,
        size: Size | None = None,
        best_of: int | None = None,
        min_p: float = 0.0,
        tokens_per_call: int | None = None,
    ) -> list[str]:
        """A caption for the codes (B, T) of each picture, all of a size (default: the default one); the settings are
        those of the call."""
        settings, each = self.sampling_settings(temperature, top_k, top_p, min_p, best_of), best_of or 1
        if not len(codes):
            return []
        prompts = [description_prompt(self.vocabulary, row, size) for row in codes.cpu().numpy() for _ in range(each)]
        if max_new_tokens is None:
            max_new_tokens = room_after(self.model, len(prompts[0]))
        ids = generate_text(
            self.model,
            self.vocabulary,
            prompts,
            max_new_tokens=whole_number(max_new_tokens, "max_new_tokens", 1),
            settings=settings,
            generators=text_streams(seed, len(codes), each),
            max_batch_rows=self.max_batch_rows,
            tokens_per_call=tokens_per_call
            if tokens_per_call is None
            else whole_number(tokens_per_call, "tokens_per_call", 1),
            phrases=None if self.guess_table is None else self.guess_table.phrases,
        )
        if each > 1:
            ids = [ids[row] for row in best_rows(picture_scores(self, ids, codes, size), 1)]
        return [self.vocabulary.decode_text(row) for row in ids]

    def sampling_settings(
        self,
        temperature: float | None,
        top_k: int,
        top_p: float,
        min_p: float,
        best_of: int | None,
    ) -> SamplingSettings:
        """The sampling settings, after a check that the model can do what is asked for."""
        several = best_of is not None and whole_number(best_of, "best_of", 1) > 1
        if temperature is None:
            temperature = SEVERAL_TEMPERATURE if several else 0.0
        if several and (temperature == 0 or top_k == 1):
            raise ValueError(
                f"best_of={best_of} captions are all the same at temperature={temperature}, top_k={top_k}: give a "
                "temperature above 0 and another top_k, or neither"
            )
        settings = SamplingSettings(1.0, temperature, top_k, top_p, min_p)
        self.vocabulary.check_trained("describing a picture", *DESCRIBING)
        if several:
            check_can_rank_texts(self)
        return settings
