"""Captions to pictures: `TextToImagePipeline`, in diffusers' words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from lm.generation.images import draw, generate_codes
from lm.generation.progress import Callback, DrawingInterrupted, DrawingStopped
from lm.generation.sampling import ByLevel, CountByLevel, Guidance
from lm.generation.task import UNDRAWN, DrawingTask
from lm.vocabulary import Size
from pipelines.drawing.arguments import whole_number
from pipelines.drawing.best_of import Ranker, best_rows, caption_scores, check_can_rank, ranker_scores
from pipelines.drawing.completion import (
    check_picture,
    kept_levels,
    kept_places,
    scattered_places,
    to_redraw,
)
from pipelines.drawing.editing import Images, edit_task
from pipelines.drawing.likelihood import ScoreOutput, score_pictures
from pipelines.drawing.prompts import Prompt
from pipelines.drawing.request import DrawingRequest
from pipelines.multimodal import MultimodalPipeline
from tokenizer_image.preprocessing import postprocess

# Settings that `previews` cannot take, and why.
NOT_IN_PREVIEWS = {
    "best_of": "pictures are shown while they are drawn, before any can be chosen",
    "ranker": "pictures are shown while they are drawn, before any can be chosen",
    "callback": "it gives the pictures as they are drawn",
}


@dataclass
class TextToImageOutput:
    """What a pipeline's call returns: pictures prompt by prompt, those of one prompt side by side.

    Attributes:
        images: "pil" list of B images, "np" float32 (B, H, W, C), "pt" float32 (B, C, H, W); both in [0, 1].
        codes: (B, T) int64, as the language model drew them.
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

    action, example = "draw", 'image = pipe("a dog").images[0]'

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt,
        negative_prompt: Prompt = None,
        num_images_per_prompt: int = 1,
        guidance_scale: Guidance | None = None,
        temperature: ByLevel | None = None,
        top_k: CountByLevel = 0,
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
        codes_per_call: int | None = None,
    ) -> TextToImageOutput:
        """Draw `num_images_per_prompt` pictures for each prompt.

        Args:
            prompt: what to draw; None draws without a prompt. Space at both ends does not matter.
            negative_prompt: what to lead away from, one for all prompts or one each; needs guidance above 1.
            guidance_scale: how strongly to follow the prompt: 1 is off, default the model's own. A list with one
                for each of a picture's codes, or a function of the position, is a schedule.
            temperature, top_k, top_p, min_p: how each code is drawn (`lm.generation.sampling.SamplingSettings`);
                temperature 0 takes the likeliest code each time; None takes the model's own, which is 1 unless training
                found another (`default_temperature` in lm/vocabulary.json). A list has one value for each level of
                codes, or where there is one level, for each code of a place.
            height, width: of the pictures: a size that the model was trained for (`vocabulary.layouts`), where one of
                them is enough where it decides the size. Default: the first.
            seed: picture j of a prompt draws from a stream of its own, keyed (seed, j), so it depends on its
                prompt, the settings and these two alone. A list has one for each picture, which draws as picture 0
                of that seed. None gives other pictures at each call (`torch.manual_seed` repeats them).
            generator: one that seeds each picture's stream in turn, or a list with one for each picture.
            output_type: "pil", "np" or "pt", see `TextToImageOutput`.
            callback: called as `callback(step, total_steps, codes)` after each call of the model, which draws one code
                or several; codes (b, t) so far.
            best_of: draw so many pictures for each prompt and return the best `num_images_per_prompt`, best first:
                those that `ranker` scores highest, or without one, those after which the same model finds the prompt
                likeliest; it must have learned to describe (`image_to_caption` or `image_and_caption`).
            ranker: called as `ranker(images, prompt)` with a prompt's PIL pictures; returns a score for each.
            codes_per_call: codes of a picture computed in one call of the model, at most; 1 draws them one by one, None
                chooses. The pictures are the same (docs/generation.md says how exactly).

        Raises:
            TypeError, ValueError: an argument that is wrong, named with its value.
            DrawingStopped, DrawingInterrupted: the callback raised, or Ctrl-C; the error's `output` has what was
                drawn.
        """
        request = DrawingRequest(
            prompt, negative_prompt, num_images_per_prompt, guidance_scale, temperature, top_k, top_p, height, width,
            seed, generator, output_type, callback, min_p, best_of, ranker, codes_per_call,
        )  # fmt: skip
        return self._draw(request, request.task(self))

    def complete(
        self,
        image: Image.Image,
        prompt: Prompt = None,
        *,
        keep_rows: int | None = None,
        mask: Image.Image | np.ndarray | None = None,
        **settings: Any,
    ) -> TextToImageOutput:
        """Keep a part of a picture and draw the rest, with or without a prompt.

        A place is kept, in every level and depth, where none of its pixels is to be drawn again. Kept codes come back
        unchanged; kept pixels are what the image tokenizer decodes from them and from the new codes around them.

        Args:
            image: a picture of a size that the model draws.
            keep_rows: how many rows of pixels to keep, from the top.
            mask: in place of `keep_rows`, a picture or an array (H, W): white (not 0) is drawn again, black (0) stays.
            settings: all others of a plain call, by name.

        Raises:
            TypeError, ValueError: a picture or a mask of another size, more rows than there are; and as a plain call.
        """
        request = DrawingRequest.from_settings("complete", prompt, settings)
        size = check_picture(image, self.vocabulary.layouts)
        kept = kept_places(self.vocabulary.layouts[size], to_redraw(size, keep_rows, mask))
        return self._complete(image, size, kept, request)

    def vary(
        self,
        image: Image.Image,
        prompt: Prompt = None,
        *,
        redraw: float = 0.5,
        keep_levels: int | None = None,
        **settings: Any,
    ) -> TextToImageOutput:
        """Draw variations of a picture: some of its codes stay.

        Args:
            image: a picture of a size that the model draws.
            redraw: share of its places, spread at random, that is drawn again.
            keep_levels: in place of that, keep so many of the coarsest levels of codes and draw the finer ones again.
            settings: all others of a plain call, by name; num_images_per_prompt is how many variations.

        Raises:
            TypeError, ValueError: a picture of another size, a share or levels out of range; and as a plain call.
        """
        request = DrawingRequest.from_settings("vary", prompt, settings)
        size = check_picture(image, self.vocabulary.layouts)
        layout = self.vocabulary.layouts[size]
        if keep_levels is None:
            kept = scattered_places(layout, size, redraw, request.seed)
        else:
            kept = kept_levels(layout, keep_levels)
        return self._complete(image, size, kept, request)

    def edit(
        self,
        image: Images,
        instruction: str | list[str],
        *,
        image_guidance_scale: Guidance | None = None,
        source_prompt: Prompt = None,
        **settings: Any,
    ) -> TextToImageOutput:
        """Change a picture as an instruction says: `pipe.edit(image, "make it blue")`.

        The codes are drawn after those of the picture and the instruction, so what stays is copied, not kept by force:
        `complete` keeps places unchanged. Guidance is over both (Brooks et al. 2023, eq. 3): with logits c of picture
        and instruction, i of the picture alone and u of neither, `u + image_guidance_scale (i - u) + guidance_scale
        (c - i)`. A result takes three rows of the model's batch then, two where image_guidance_scale is 1 or both
        scales are equal, one where both are 1.

        Args:
            image: a picture of a size that the model draws, for all instructions, or a list with one for each.
            instruction: what to change, one or several.
            image_guidance_scale: how strongly to stay with the picture: 1 is off, default the model's own. A list or a
                function is a schedule, as for `guidance_scale`, which says how strongly to follow the instruction.
            source_prompt: what the picture shows, one text or one for each instruction, for models that have learned
                from documents with such a text in front.
            settings: all others of a plain call, by name; `num_images_per_prompt` is how many results of each
                instruction, and `negative_prompt` an instruction to lead away from.

        Raises:
            TypeError, ValueError: no picture, pictures and instructions of different number, a picture of another size,
                an empty instruction, a model that has not learned edits; and as a plain call.
        """
        request = DrawingRequest.from_settings("edit", instruction, settings)
        return self._draw(request, edit_task(self, request, image, image_guidance_scale, source_prompt))

    def previews(self, prompt: Prompt, every: int = 16, **settings: Any) -> Iterator[TextToImageOutput]:
        """Draw, and give the pictures while they are drawn: after each `every` codes, and when they are complete.

        Args:
            prompt: as in a plain call.
            settings: those of a plain call, by name, but best_of, ranker and callback.

        Returns:
            Outputs with the codes (b, t) that the current batch has drawn so far and the pictures that they decode to;
            places that are not drawn are decoded from the codebook's mean. More pictures than `max_batch_rows` takes
            come batch after batch.

        Raises:
            TypeError, ValueError: at the call, as a plain call.
        """
        every = whole_number(every, "every", 1)
        request = DrawingRequest.from_settings("previews", prompt, settings, refused=NOT_IN_PREVIEWS)
        task = request.task(self)
        steps = draw(self.model, self.vocabulary, task)

        def outputs() -> Iterator[TextToImageOutput]:
            shown = 0
            for progress in steps:
                count = progress.codes.shape[1]
                if count // every != shown // every or count == len(task.settings):
                    shown = count % len(task.settings)
                    yield self._output(progress.codes.clone(), request.output_type, task.size)

        return outputs()

    def _complete(
        self, image: Image.Image, size: Size, kept: torch.Tensor, request: DrawingRequest
    ) -> TextToImageOutput:
        """Keep the codes of a picture at the positions `kept` (T,) bool, and draw the others."""
        task = request.of_size(size).task(self)
        codes = self.encode_images(image, size)[0]
        forced = torch.where(kept.to(codes.device), codes, UNDRAWN)
        return self._draw(request, replace(task, forced=forced.expand(len(task.prompts), -1)))

    def _draw(self, request: DrawingRequest, task: DrawingTask) -> TextToImageOutput:
        """Draw the task, and choose the best where the request says so."""
        if request.best_of is not None and request.ranker is None:
            check_can_rank(self, request.texts)
        with self.progress_bar(request.callback) as after_code:
            try:
                codes = generate_codes(self.model, self.vocabulary, task, after_code)
            except (DrawingStopped, DrawingInterrupted) as error:
                error.output = self._output(error.codes, request.output_type, task.size)
                raise
        if request.best_of is not None:
            codes = codes[best_rows(self._scores(request, codes, task.size), request.num_images_per_prompt)]
        return self._output(codes, request.output_type, task.size)

    def _scores(self, request: DrawingRequest, codes: torch.Tensor, size: Size | None) -> torch.Tensor:
        """(prompts, best_of) scores of drawn pictures, by the request's ranker or by the model itself."""
        if request.ranker is None:
            return caption_scores(self, [str(text) for text in request.texts], codes, size)
        images = postprocess(self.decode_codes(codes, size), "pil")
        return ranker_scores(request.ranker, images, request.texts)

    def _output(self, codes: torch.Tensor, output_type: str, size: Size | None) -> TextToImageOutput:
        return TextToImageOutput(images=postprocess(self.decode_codes(codes, size), output_type), codes=codes)

    def score(self, prompt: Prompt, image: Image.Image | list[Image.Image]) -> ScoreOutput:
        """How likely pictures are after their prompts, without guidance: -log p(codes | prompt), code by code.

        Args:
            prompt: a text, one for each picture, or one for all; None asks for p(codes) alone.
            image: PIL images of any size and mode; one for all prompts, or one each.

        Raises:
            TypeError, ValueError: an argument that is wrong, a picture that cannot be read, numbers that do not
                match, or a model that has not learned to draw.
        """
        return score_pictures(self, prompt, image)
