"""Captions to pictures: `TextToImagePipeline`, in diffusers' words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lm.generation.images import Callback, DrawingInterrupted, DrawingStopped, draw, generate_codes
from lm.generation.sampling import ByLevel, Guidance
from lm.vocabulary import Size
from pipelines.drawing.best_of import Ranker, best_rows, caption_scores, check_can_rank, ranker_scores
from pipelines.drawing.completion import (
    check_picture,
    forced_codes,
    kept_levels,
    kept_places,
    scattered_places,
    to_redraw,
)
from pipelines.drawing.likelihood import ScoreOutput, score_pictures
from pipelines.drawing.request import drawing_request, texts_of
from pipelines.multimodal import MultimodalPipeline, whole_number
from tokenizer_image.preprocessing import OUTPUT_TYPES, postprocess


@dataclass
class TextToImageOutput:
    """What a pipeline's call returns: pictures prompt by prompt, those of one prompt side by side.

    Attributes:
        images: "pil" list of B images, "np" float32 (B, H, W, C), "pt" float32 (B, C, H, W); both in [0, 1].
        codes: (B, T) int64, what the language model wrote.
    """

    images: list[Image.Image] | np.ndarray | torch.Tensor
    codes: torch.Tensor


class TextToImagePipeline(MultimodalPipeline):
    """An image tokenizer and a language model that writes its codes.

        pipe = TextToImagePipeline.from_pretrained("runs/model")
        image = pipe("a dog").images[0]

    `max_batch_rows` (128) bounds the rows that the language model reads at once; a picture takes two with
    guidance.
    """

    does, example = "draw", 'image = pipe("a dog").images[0]'

    @torch.no_grad()
    def __call__(
        self,
        prompt: str | list[str] | None,
        negative_prompt: str | list[str] | None = None,
        num_images_per_prompt: int = 1,
        guidance_scale: Guidance | None = None,
        temperature: ByLevel = 1.0,
        top_k: int | Sequence[int] = 0,
        top_p: ByLevel = 1.0,
        height: int | None = None,
        width: int | None = None,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        callback: Callback | None = None,
        min_p: ByLevel = 0.0,
        best_of: int | None = None,
        ranker: Ranker | None = None,
    ) -> TextToImageOutput:
        """Draw `num_images_per_prompt` pictures for each prompt.

        Args:
            prompt: what to draw; None draws without a prompt. Space at both ends does not matter.
            negative_prompt: what to lead away from, one for all prompts or one each; needs guidance above 1.
            guidance_scale: how strongly to follow the prompt: 1 is off, default the model's own. A list with one
                for each of a picture's codes, or a function of the position, is a schedule.
            temperature, top_k, top_p, min_p: how freely to draw (`lm.generation.sampling.SamplingSettings`);
                temperature 0 takes the likeliest code each time. A list has one value for each level of codes, or
                where there is one level, for each code of a place.
            height, width: of the pictures: a size that the model was trained for (`vocabulary.layouts`), where one of
                them may say which. Default: the first.
            seed: picture j of a prompt draws from a stream of its own, keyed (seed, j), so it depends on its
                prompt, the settings and these two alone. A list has one for each picture, which draws as picture 0
                of that seed. None gives other pictures at each call (`torch.manual_seed` repeats them).
            generator: one that seeds each picture's stream in turn, or a list with one for each picture.
            output_type: "pil", "np" or "pt", see `TextToImageOutput`.
            callback: called as `callback(step, total_steps, codes)` after each code; codes (b, t) so far.
            best_of: draw so many pictures for each prompt and return the best `num_images_per_prompt`, best first:
                those after which the same model finds the prompt likeliest (one that has learned
                to describe: `image_to_caption` or `image_and_caption`), or that `ranker` scores highest.
            ranker: called as `ranker(images, prompt)` with a prompt's PIL pictures; returns a score for each.

        Raises:
            TypeError, ValueError: an argument that means nothing, named with its value.
            DrawingStopped, DrawingInterrupted: the callback raised, or Ctrl-C; the error's `output` has what was
                drawn.
        """
        count = whole_number(num_images_per_prompt, "num_images_per_prompt", 1)
        if best_of is None and ranker is not None:
            raise ValueError("a ranker chooses among pictures: say with best_of how many to draw")
        drawn = count if best_of is None else whole_number(best_of, "best_of", count)
        asked = self._request(
            prompt, negative_prompt=negative_prompt, num_images_per_prompt=drawn, guidance_scale=guidance_scale,
            temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p, height=height, width=width, seed=seed,
            generator=generator,
        )  # fmt: skip
        if best_of is None:
            return self._drawn(asked, output_type, callback)
        _check_output_type(output_type)
        texts = texts_of(prompt, "prompt")
        if ranker is None:
            check_can_rank(self, texts)
        output = self._drawn(asked, "pil", callback)
        if ranker is None:
            scores = caption_scores(self, [str(text) for text in texts], output.codes, asked["size"])
        else:
            scores = ranker_scores(ranker, list(output.images), texts)
        return self._output(output.codes[best_rows(scores, count)], output_type, asked["size"])

    def complete(
        self,
        image: Image.Image,
        prompt: str | list[str] | None = None,
        *,
        keep_rows: int | None = None,
        mask: Image.Image | np.ndarray | None = None,
        output_type: str = "pil",
        callback: Callback | None = None,
        **settings: Any,
    ) -> TextToImageOutput:
        """Keep a part of a picture and draw the rest, with or without a prompt.

        Whole places are kept, in every level and depth: those of which no pixel is to be drawn again. Their codes come
        back as they were; their pixels are what the image tokenizer makes of them, beside what is new.

        Args:
            image: a picture of a size that the model draws.
            keep_rows: how many rows of pixels to keep, from the top.
            mask: in place of `keep_rows`, a picture or an array (H, W): white (not 0) is drawn again, black (0) stays.
            settings: and all else is as in a plain call.

        Raises:
            TypeError, ValueError: a picture or a mask of another size, more rows than there are; and as a plain call.
        """
        size = check_picture(image, self.vocabulary.layouts)
        kept = kept_places(self.vocabulary.layouts[size], to_redraw(size, keep_rows, mask))
        return self._completed(image, size, kept, prompt, output_type, callback, settings)

    def vary(
        self,
        image: Image.Image,
        prompt: str | list[str] | None = None,
        *,
        redraw: float = 0.5,
        keep_levels: int | None = None,
        output_type: str = "pil",
        callback: Callback | None = None,
        **settings: Any,
    ) -> TextToImageOutput:
        """Draw variations of a picture: some of its codes stay.

        Args:
            image: a picture of a size that the model draws.
            redraw: share of its places, spread at random, that is drawn again.
            keep_levels: in place of that, keep so many of the coarsest levels of codes and draw the finer ones again.
            settings: and all else is as in a plain call; num_images_per_prompt is how many variations.

        Raises:
            TypeError, ValueError: a picture of another size, a share or levels that there are not; and as a plain call.
        """
        size = check_picture(image, self.vocabulary.layouts)
        layout = self.vocabulary.layouts[size]
        if keep_levels is None:
            kept = scattered_places(layout, size, redraw, settings.get("seed"))
        else:
            kept = kept_levels(layout, keep_levels)
        return self._completed(image, size, kept, prompt, output_type, callback, settings)

    def previews(
        self, prompt: str | list[str] | None, every: int = 16, *, output_type: str = "pil", **settings: Any
    ) -> Iterator[TextToImageOutput]:
        """Draw, and give the pictures as they appear: after each `every` codes, and when they are whole.

        Args:
            prompt, settings: as in a plain call.

        Returns:
            Outputs with codes (b, t) of what the batch at work has so far and the pictures that these decode to; what
            is not drawn is plain. More pictures than `max_batch_rows` takes come batch after batch.
        """
        every = whole_number(every, "every", 1)
        _check_output_type(output_type)
        asked = self._request(prompt, **settings)
        total = len(self.vocabulary.picture(asked["size"]).places)
        steps = draw(self.model, self.vocabulary, max_batch_rows=self.max_batch_rows, **asked)

        def shown_steps() -> Iterator[TextToImageOutput]:
            for progress in steps:
                count = progress.codes.shape[1]
                if count % every == 0 or count == total:
                    yield self._output(progress.codes.clone(), output_type, asked["size"])

        return shown_steps()

    def _request(self, prompt: str | list[str] | None, **settings: Any) -> dict[str, Any]:
        return drawing_request(self.model, self.vocabulary, prompt, **settings)

    def _completed(
        self,
        image: Image.Image,
        size: Size,
        kept: torch.Tensor,
        prompt: str | list[str] | None,
        output_type: str,
        callback: Callback | None,
        settings: dict[str, Any],
    ) -> TextToImageOutput:
        """Draw what is not `kept` (T,) bool of a picture."""
        asked = self._request(prompt, **{"height": size[0], "width": size[1], **settings})
        asked["forced"] = forced_codes(self.encode_images(image, size)[0], kept, len(asked["prompts"]))
        return self._drawn(asked, output_type, callback)

    def _drawn(self, asked: dict[str, Any], output_type: str, callback: Callback | None) -> TextToImageOutput:
        _check_output_type(output_type)
        with self._bar(callback) as after_code:
            try:
                codes = generate_codes(
                    self.model, self.vocabulary, callback=after_code, max_batch_rows=self.max_batch_rows, **asked
                )
            except (DrawingStopped, DrawingInterrupted) as error:
                error.output = self._output(error.codes, output_type, asked["size"])
                raise
        return self._output(codes, output_type, asked["size"])

    def _output(self, codes: torch.Tensor, output_type: str, size: Size) -> TextToImageOutput:
        return TextToImageOutput(images=postprocess(self.decode_codes(codes, size), output_type), codes=codes)

    def score(self, prompt: str | list[str] | None, image: Image.Image | list[Image.Image]) -> ScoreOutput:
        """How likely pictures are after their prompts, without guidance: -log p(codes | prompt), code by code.

        Args:
            prompt: a text, one for each picture, or one for all; None asks for p(codes) alone.
            image: PIL images of any size and mode; one for all prompts, or one each.

        Raises:
            TypeError, ValueError: an argument that means nothing, a picture that cannot be read, numbers that do not
                match, or a model that has not learned to draw.
        """
        return score_pictures(self, prompt, image)

    @contextmanager
    def _bar(self, callback: Callback | None) -> Iterator[Callback]:
        """What to call after each code: it moves the progress bar, then calls the user's callback."""
        from tqdm import tqdm

        with tqdm(unit="code", leave=False, **self._progress_bar) as bar:

            def after_code(step: int, total_steps: int, codes: torch.Tensor) -> None:
                bar.total = total_steps
                bar.update(step - bar.n)
                if callback is not None:
                    callback(step, total_steps, codes)

            yield after_code


def _check_output_type(output_type: str) -> None:
    if output_type not in OUTPUT_TYPES:
        raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
