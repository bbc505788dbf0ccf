"""Captions to sounds, series, videos: `TextToSignalPipeline`, which draws as `TextToImagePipeline` draws pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lm.generation.images import generate_codes
from lm.generation.progress import Callback, DrawingInterrupted, DrawingStopped
from lm.generation.sampling import ByLevel, CountByLevel, Guidance
from lm.generation.task import UNDRAWN
from lm.vocabulary import MultimodalVocabulary
from pipelines.drawing.arguments import whole_number
from pipelines.drawing.prompts import Prompt
from pipelines.drawing.request import DrawingRequest
from pipelines.drawing.signal_panels import signal_panels
from pipelines.model_folder import local_folder, read_index
from pipelines.multimodal import MultimodalPipeline
from pipelines.text_to_image import TextToImagePipeline
from tokenizer_image.layout import ImageTokenizer
from tokenizer_image.preprocessing import postprocess
from tokenizer_image.signals.series_files import normalised
from tokenizer_image.signals.settings import SignalSettings, signal_settings_of

VALUES = {"audio": "audio", "series": "series", "video": "frames"}  # where an output has what was drawn


@dataclass
class TextToSignalOutput:
    """What a call returns: signals prompt by prompt, those of one prompt side by side.

    Attributes:
        values: (B, C, time) float32: sound in [-1, 1], or normalised series; of videos (B, 3, frames * side, side) in
            [-1, 1], the frames below each other.
        codes: (B, T) int64, as the language model drew them.
        settings: of the tokenizer: kind and rate.
    """

    values: torch.Tensor
    codes: torch.Tensor
    settings: SignalSettings

    @property
    def audio(self) -> np.ndarray:
        """(B, time) float32 in [-1, 1], `settings.rate` samples a second.

        Raises:
            ValueError: the model draws something else.
        """
        self._check("audio")
        return self.values[:, 0].cpu().numpy()

    @property
    def series(self) -> np.ndarray:
        """(B, channels, time) float64, in the units of the training series: their medians undo the normalisation.

        Raises:
            ValueError: the model draws something else.
        """
        self._check("series")
        location, scale = (np.asarray(one)[:, None] for one in (self.settings.location, self.settings.scale))
        return self.values.double().cpu().numpy() * scale + location

    @property
    def frames(self) -> np.ndarray:
        """(B, frames, height, width, 3) uint8.

        Raises:
            ValueError: the model draws something else.
        """
        self._check("video")
        pictures = postprocess(self.values, "np")  # (B, frames * side, side, 3)
        return np.rint(pictures * 255).astype(np.uint8).reshape(len(pictures), -1, *[self.settings.frame_size] * 2, 3)

    @property
    def signals(self) -> np.ndarray:
        """`audio`, `series` or `frames`: what the model draws."""
        found: np.ndarray = getattr(self, VALUES[self.settings.signal])
        return found

    @property
    def images(self) -> list[Image.Image]:
        """A picture of each, to look at."""
        return signal_panels(self.values.cpu(), self.settings)

    def _check(self, signal: str) -> None:
        drawn = self.settings.signal
        if drawn != signal:
            raise ValueError(f"this model draws {drawn}: read the output's .{VALUES[drawn]}")


@dataclass
class ForecastOutput:
    """What `TextToSignalPipeline.forecast` returns.

    Attributes:
        samples: (n, channels, steps) float64: continuations of the past, each as likely as the others, in its units.
    """

    samples: np.ndarray

    @property
    def median(self) -> np.ndarray:
        """(channels, steps): half of the samples are below."""
        return np.median(self.samples, axis=0)

    def interval(self, share: float = 0.8) -> tuple[np.ndarray, np.ndarray]:
        """The ends, (channels, steps) each, of the interval that the middle `share` of the samples lies in."""
        low, high = np.quantile(self.samples, [(1 - share) / 2, (1 + share) / 2], axis=0)
        return low, high


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
        whole_number(num_signals_per_prompt, "num_signals_per_prompt", 1)
        request = DrawingRequest(
            prompt, negative_prompt, num_signals_per_prompt, guidance_scale, temperature, top_k, top_p, seed=seed,
            generator=generator, callback=callback, min_p=min_p, codes_per_call=codes_per_call,
        )  # fmt: skip
        with self.progress_bar(callback) as after_code:
            try:
                codes = generate_codes(self.model, self.vocabulary, request.task(self), after_code)
            except (DrawingStopped, DrawingInterrupted) as error:
                error.output = self.output(error.codes)
                raise
        return self.output(codes)

    @torch.no_grad()
    def forecast(
        self,
        past: np.ndarray,
        prompt: str | None = None,
        *,
        num_samples: int = 100,
        temperature: ByLevel = 1.0,
        guidance_scale: Guidance = 1.0,
        seed: int | None = None,
    ) -> ForecastOutput:
        """Continue a series by `settings.horizon` steps.

        The past's last `settings.context` steps become codes, and the language model draws those that follow.

        Args:
            past: (channels, steps), or (steps,) of one channel; NaN in gaps. One that is shorter than
                `settings.context` has a gap before it.
            prompt: what the series does.
            num_samples: continuations to draw.
            temperature, guidance_scale, seed: as of a call.

        Raises:
            ValueError: the model draws sounds or has no horizon; a past of another number of channels, or without
                values.
        """
        settings = self.settings
        if settings.signal != "series" or not settings.horizon:
            raise ValueError(
                f"this model draws {settings.signal} with horizon {settings.horizon}: it does not forecast"
            )
        values = np.atleast_2d(np.asarray(past, np.float64))[:, -settings.context :]
        if len(values) != settings.num_channels or values.ndim != 2:
            raise ValueError(
                f"a past of shape {np.shape(past)}: this model's series have {settings.num_channels} channels"
            )
        missing = ((0, 0), (settings.context - values.shape[1], settings.horizon))
        padded = np.pad(values, missing, constant_values=np.nan)
        known = np.asarray(np.isfinite(padded).all(axis=0))
        if not known.any():
            raise ValueError("a past without values: none of its steps has all of them")
        normal, location, scale = normalised(np.where(known, padded, 0), known, settings.context)
        codes = self.image_tokenizer.encode(torch.from_numpy(normal)[None].to(self.device))[0]
        columns = torch.tensor(self.vocabulary.layout["column"], device=codes.device)
        steps_per_code = settings.length // (int(columns.max()) + 1)
        forced = torch.where((columns + 1) * steps_per_code <= settings.context, codes, UNDRAWN)
        whole_number(num_samples, "num_samples", 1)
        request = DrawingRequest(prompt, None, num_samples, guidance_scale, temperature, seed=seed)
        task = request.task(self)
        drawn = generate_codes(self.model, self.vocabulary, replace(task, forced=forced.expand(num_samples, -1)))
        continued = self.decode_codes(drawn)[:, :, settings.context :].double().cpu().numpy()
        return ForecastOutput(continued * scale[:, None] + location[:, None])

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
        ValueError: it is neither, or of another class.
    """
    kinds: dict[str, type[MultimodalPipeline]] = {
        kind.class_name: kind for kind in (TextToImagePipeline, TextToSignalPipeline)
    }
    return kinds[read_index(local_folder(folder), *kinds)["_class_name"]]
