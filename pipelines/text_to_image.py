"""Captions to pictures: `TextToImagePipeline`, in diffusers' words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from lm.generation import Callback, SamplingSettings, evaluation_mode, generate_codes, longest_prompt
from lm.losses import NextTokenLoss
from lm.sequences import IGNORED, collate, image_prompt, token_sequence
from pipelines.multimodal import MultimodalPipeline, random_stream, shown, whole_number
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


@dataclass
class ScoreOutput:
    """How likely a model finds the codes of pictures, among the codes that are possible at each position.

    Attributes:
        nats: (B, T) float32, negative log-likelihood of each code after all before it.
        level: (T,) int64, the level of each position; 0 is the coarsest.
        codes: (B, T) int64, of the pictures.
    """

    nats: torch.Tensor
    level: torch.Tensor
    codes: torch.Tensor

    @property
    def total(self) -> torch.Tensor:
        """(B,) nats of each picture."""
        return self.nats.sum(1)

    @property
    def mean(self) -> torch.Tensor:
        """(B,) nats a code of each picture."""
        return self.nats.mean(1)


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
        guidance_scale: float | None = None,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        height: int | None = None,
        width: int | None = None,
        seed: int | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        output_type: str = "pil",
        callback: Callback | None = None,
    ) -> TextToImageOutput:
        """Draw `num_images_per_prompt` pictures for each prompt.

        Args:
            prompt: what to draw; None draws without a prompt. Space at both ends does not matter.
            negative_prompt: what to lead away from, one for all prompts or one each; needs guidance above 1.
            guidance_scale: how strongly to follow the prompt: 1 is off, default the model's own.
            temperature, top_k, top_p: how freely to draw; temperature 0 takes the likeliest code each time.
            height, width: of the pictures; only the size that the model was trained for.
            seed: picture j of a prompt draws from a stream of its own, keyed (seed, j), so it depends on its
                prompt, the settings and these two alone. None gives other pictures at each call
                (`torch.manual_seed` repeats them).
            generator: one that seeds each picture's stream in turn, or a list with one for each picture.
            output_type: "pil", "np" or "pt", see `TextToImageOutput`.
            callback: called as `callback(step, total_steps, codes)` after each code; codes (b, t) so far.

        Raises:
            TypeError, ValueError: an argument that means nothing, named with its value.
        """
        if output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {output_type!r}")
        self._check_size(height, width)
        prompts = _texts(prompt, "prompt")
        self._check_trained(prompt)
        if guidance_scale not in (None, 1) and negative_prompt is None and prompt is not None:
            self.vocabulary.check_trained(
                f"guidance_scale={guidance_scale!r}", "image", remedy="give guidance_scale=1, or a negative_prompt"
            )
        if guidance_scale is None:
            guidance_scale = self.vocabulary.default_guidance
        settings = SamplingSettings(guidance_scale, temperature, top_k, top_p)
        negatives = self._negative_prompts(negative_prompt, len(prompts), settings)
        count = whole_number(num_images_per_prompt, "num_images_per_prompt", 1)
        generators = _streams(len(prompts), count, seed, generator)
        rows = self._rows(prompts, "prompt", count)
        # Without a prompt there is nothing to guide to: the two rows of a picture would be the same.
        unguided = prompts == [None] and negative_prompt is None
        with self._bar(callback) as after_code:
            codes = generate_codes(
                self.model,
                self.vocabulary,
                rows,
                self._rows(negatives, "negative_prompt", count),
                guidance_scale=1.0 if unguided else settings.guidance_scale,
                temperature=settings.temperature,
                top_k=settings.top_k,
                top_p=settings.top_p,
                generators=generators,
                callback=after_code,
                max_batch_rows=self.max_batch_rows,
            )
        return TextToImageOutput(images=postprocess(self.decode_codes(codes), output_type), codes=codes)

    @torch.no_grad()
    def score(self, prompt: str | list[str] | None, image: Image.Image | list[Image.Image]) -> ScoreOutput:
        """How likely pictures are after their prompts, without guidance: -log p(codes | prompt), code by code.

        Args:
            prompt: a text, one for each picture, or one for all; None asks for p(codes) alone.
            image: PIL images of any size and mode; one for all prompts, or one each.

        Raises:
            TypeError, ValueError: an argument that means nothing, a picture that cannot be read, numbers that do not
                match, or a model that has not learned to draw.
        """
        prompts = _texts(prompt, "prompt")
        self._check_trained(prompt)
        codes = self.encode_images(image)
        if len(prompts) != len(codes) and 1 not in (len(prompts), len(codes)):
            raise ValueError(
                f"{len(prompts)} prompts and {len(codes)} pictures: give one for each, or one of either for all"
            )
        count = max(len(prompts), len(codes))
        rows = [ids[1:-1] for ids in self._rows(prompts, "prompt", count // len(prompts))]
        codes = codes.expand(count, -1)
        name = "image" if prompt is None else "caption_to_image"  # alike up to the last code in all that draw
        loss = NextTokenLoss(self.model, self.vocabulary.id_ranges)
        nats = []
        with evaluation_mode(self.model):
            for start in range(0, count, self.max_batch_rows):
                part = range(start, min(start + self.max_batch_rows, count))
                sequences = [token_sequence(self.vocabulary, name, rows[row], codes[row].cpu().numpy()) for row in part]
                batch = {
                    key: value.to(self.device) for key, value in collate(sequences, self.vocabulary.pad_id).items()
                }
                found = loss.position_nats(batch["input_ids"], batch["labels"], batch["position_ids"])
                nats += [one[labels != IGNORED] for one, labels in zip(found, batch["labels"], strict=True)]
        level = torch.tensor(self.vocabulary.layout["level"], device=self.device)
        return ScoreOutput(torch.stack(nats), level, codes.clone())

    def _check_trained(self, prompt: Any) -> None:
        """Raise ValueError unless the model has learned to draw with, or without, a prompt."""
        if prompt is None:
            self.vocabulary.check_trained("drawing without a prompt", "image", remedy="give a prompt")
            return
        remedy = "give None (generate.py: --unconditional)" if "image" in self.vocabulary.formats else ""
        self.vocabulary.check_trained(f"prompt {shown(prompt)}", "caption_to_image", "caption_and_image", remedy=remedy)

    def _check_size(self, height: int | None, width: int | None) -> None:
        trained = self.vocabulary.image_size
        for name, value, own in (("height", height, trained[0]), ("width", width, trained[1])):
            if value is not None and value != own:
                raise ValueError(
                    f"{name}={value!r}: this model draws {trained[0]}x{trained[1]} pictures (height x width)"
                    "; leave height and width out, and resize the picture"
                )

    def _negative_prompts(
        self, negative_prompt: str | list[str] | None, count: int, settings: SamplingSettings
    ) -> list[str | None]:
        if negative_prompt is None:
            return [None] * count
        if settings.guidance_scale <= 1:
            raise ValueError(
                f"negative_prompt={negative_prompt!r} has an effect only with a guidance_scale above 1, "
                f"got {settings.guidance_scale}"
            )
        negatives = _texts(negative_prompt, "negative_prompt")
        if isinstance(negative_prompt, str):
            return negatives * count
        if len(negatives) != count:
            raise ValueError(f"{len(negatives)} negative prompts for {count} prompts: give one, or one for each")
        return negatives

    def _rows(self, texts: list[str | None], name: str, count: int) -> list[list[int]]:
        """Token ids of each text, `count` times in a row."""
        rows: list[list[int]] = []
        limit = longest_prompt(self.model, self.vocabulary)
        for text in texts:
            ids = image_prompt(self.vocabulary, text)
            if text is not None and limit is not None and len(ids) > limit:
                frame = len(image_prompt(self.vocabulary, None))
                raise ValueError(
                    f"{name} {shown(text)} has {len(ids) - frame} tokens, but this model takes at most "
                    f"{max(0, limit - frame)} beside the picture: shorten it"
                )
            rows += [ids] * count
        return rows

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


def _streams(
    num_prompts: int, count: int, seed: int | None, generator: torch.Generator | list[torch.Generator] | None
) -> list[torch.Generator]:
    """One generator a picture, `count` pictures a prompt."""
    total = num_prompts * count
    if seed is not None and generator is not None:
        raise ValueError(f"seed={seed!r} and generator together: give one of them")
    if seed is not None:
        seed = whole_number(seed, "seed", 0)
        return [random_stream(seed, picture) for _ in range(num_prompts) for picture in range(count)]
    if isinstance(generator, Sequence):
        if len(generator) != total:
            raise ValueError(f"{len(generator)} generators for {total} pictures: give one, or one for each picture")
        if not all(isinstance(one, torch.Generator) for one in generator):
            raise TypeError(f"generator must hold torch.Generator objects, got {generator!r}")
        return list(generator)
    if generator is not None and not isinstance(generator, torch.Generator):
        raise TypeError(f"generator must be a torch.Generator or a list of them, got {generator!r}")
    device = "cpu" if generator is None else generator.device
    seeds = torch.randint(2**62, (total,), generator=generator, device=device)
    return [torch.Generator().manual_seed(int(one)) for one in seeds]


def _texts(prompt: Any, name: str) -> list[str | None]:
    """A prompt argument as a list. None stays None: no prompt."""
    if prompt is None:
        return [None]
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, (list, tuple)):
        raise TypeError(f"{name} must be a text, a list of texts or None, got {shown(prompt)}")
    if not prompts:
        raise ValueError(f"{name} is an empty list: give at least one text")
    for index, text in enumerate(prompts):
        if not isinstance(text, str):
            raise TypeError(f"{name} {index} must be a text, got {shown(text)}")
    return [text.strip() for text in prompts]
