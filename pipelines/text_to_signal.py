"""Captions to sounds: `TextToSignalPipeline`, which draws them as `TextToImagePipeline` draws pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lm.generation.images import generate_codes
from lm.generation.progress import Callback, DrawingInterrupted, DrawingStopped
from lm.generation.sampling import ByLevel, CountByLevel, Guidance
from lm.vocabulary import MultimodalVocabulary
from pipelines.drawing.prompts import Prompt
from pipelines.drawing.request import DrawingRequest
from pipelines.drawing.signal_panels import signal_panels
from pipelines.model_folder import INDEX_FILE, local_folder
from pipelines.multimodal import MultimodalPipeline
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.signals.settings import SignalSettings, signal_settings_of


@dataclass
class TextToSignalOutput:
    """What a call returns: signals prompt by prompt, those of one prompt side by side.

    Attributes:
        values: (B, C, time) float32: sound in [-1, 1].
        codes: (B, T) int64, as the language model drew them.
        settings: of the tokenizer: kind and rate.
    """

    values: torch.Tensor
    codes: torch.Tensor
    settings: SignalSettings

    @property
    def audio(self) -> np.ndarray:
        """(B, time) float32 in [-1, 1], `settings.rate` samples a second."""
        return self.values[:, 0].cpu().numpy()

    @property
    def images(self) -> list[Image.Image]:
        """A picture of each, to look at."""
        return signal_panels(self.values.cpu(), self.settings)


class TextToSignalPipeline(MultimodalPipeline):
    """A tokenizer of signals and a language model that writes its codes.

        pipe = TextToSignalPipeline.from_pretrained("runs/sounds")
        samples = pipe("a rising tone").audio[0]

    `max_batch_rows` (128) bounds the rows that the language model reads at once; a signal takes two with guidance.
    """

    action, example = "draw", 'samples = pipe("a rising tone").audio[0]'
    class_name = "TextToSignalPipeline"
    draws_signals = True

    @property
    def settings(self) -> SignalSettings:
        """Kind, length and rate of what is drawn."""
        found = signal_settings_of(self.image_tokenizer)
        assert found is not None  # checked when the pipeline was made
        return found

    @torch.no_grad()
    def __call__(
        self,
        prompt: Prompt,
        negative_prompt: Prompt = None,
        num_signals_per_prompt: int = 1,
        guidance_scale: Guidance | None = None,
        temperature: ByLevel | None = None,
        top_k: CountByLevel = 0,
        top_p: ByLevel = 1.0,
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | list[torch.Generator] | None = None,
        callback: Callback | None = None,
        min_p: ByLevel = 0.0,
        codes_per_call: int | None = None,
    ) -> TextToSignalOutput:
        """Draw `num_signals_per_prompt` signals for each prompt.

        Args:
            prompt: what to draw; None draws without a prompt.
            negative_prompt, guidance_scale, temperature, top_k, top_p, min_p, seed, generator, callback,
                codes_per_call: as of `TextToImagePipeline`; several values of temperature are for the depths of codes.

        Raises:
            TypeError, ValueError: an argument that is wrong, named with its value.
            DrawingStopped, DrawingInterrupted: the callback raised, or Ctrl-C; the error's `output` has what was
                drawn.
        """
        request = DrawingRequest(
            prompt, negative_prompt, num_signals_per_prompt, guidance_scale, temperature, top_k, top_p, seed=seed,
            generator=generator, callback=callback, min_p=min_p, codes_per_call=codes_per_call,
        )  # fmt: skip
        with self.progress_bar(callback) as after_code:
            try:
                codes = generate_codes(self.model, self.vocabulary, request.task(self), after_code)
            except (DrawingStopped, DrawingInterrupted) as error:
                error.output = self.output(error.codes)  # type: ignore[assignment]
                raise
        return self.output(codes)

    def output(self, codes: torch.Tensor) -> TextToSignalOutput:
        """Codes (B, T) and the signals that they decode to."""
        return TextToSignalOutput(self.decode_codes(codes), codes, self.settings)


def drawing_pipeline(
    image_tokenizer: ImageTokenizer, model: Any, vocabulary: MultimodalVocabulary, guess_table: Any = None
) -> Any:
    """The pipeline that draws what a tokenizer's codes are: a `TextToSignalPipeline` or a `TextToImagePipeline`."""
    kind = TextToImagePipeline if signal_settings_of(image_tokenizer) is None else TextToSignalPipeline
    return kind(image_tokenizer, model, vocabulary, guess_table)


def drawing_class(folder: str | Path) -> type[MultimodalPipeline]:
    """The class of pipeline that draws with a model folder, or a model on the Hub, by its index.

    Raises:
        ValueError: it is neither.
    """
    kinds: tuple[type[MultimodalPipeline], ...] = (TextToImagePipeline, TextToSignalPipeline)
    path = local_folder(folder)
    try:
        name = json.loads((path / INDEX_FILE).read_text(encoding="utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError):
        name = None  # loading says what is wrong
    return next((kind for kind in kinds if kind.class_name == name), TextToImagePipeline)
