"""A request to draw: the arguments of a pipeline's call, checked once and brought into the sampler's terms."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch

from lm.generation.progress import Callback
from lm.generation.sampling import ByLevel, CountByLevel, Guidance, SamplingSchedule, SamplingSettings
from lm.generation.task import DrawingTask
from lm.sequences import DRAWING_ALONE
from lm.vocabulary import MultimodalVocabulary, Size
from pipelines.drawing.arguments import list_of_texts, shown, whole_number
from pipelines.drawing.best_of import Ranker
from pipelines.drawing.prompts import Prompt, check_trained, negative_texts, prompt_rows
from pipelines.drawing.streams import picture_streams
from pipelines.multimodal import MultimodalPipeline
from tokenizer_image.preprocessing import OUTPUT_TYPES


@dataclass(frozen=True)
class DrawingRequest:
    """What a call asks for; `TextToImagePipeline.__call__` says what each argument means.

    Attributes:
        texts: the prompts as a list.

    Raises:
        TypeError, ValueError: an argument that is wrong for any model, named with its value.
    """

    prompt: Prompt
    negative_prompt: Prompt = None
    num_images_per_prompt: int = 1
    guidance_scale: Guidance | None = None
    temperature: ByLevel | None = None
    top_k: CountByLevel = 0
    top_p: ByLevel = 1.0
    height: int | None = None
    width: int | None = None
    seed: int | Sequence[int] | None = None
    generator: torch.Generator | list[torch.Generator] | None = None
    output_type: str = "pil"
    callback: Callback | None = None
    min_p: ByLevel = 0.0
    best_of: int | None = None
    ranker: Ranker | None = None
    codes_per_call: int | None = None
    texts: list[str | None] = field(init=False)

    def __post_init__(self) -> None:
        count = whole_number(self.num_images_per_prompt, "num_images_per_prompt", 1)
        if self.best_of is not None:
            whole_number(self.best_of, "best_of", count)
        elif self.ranker is not None:
            raise ValueError("a ranker chooses among pictures: say with best_of how many to draw")
        if self.codes_per_call is not None:
            whole_number(self.codes_per_call, "codes_per_call", 1)
        if self.output_type not in OUTPUT_TYPES:
            raise ValueError(f"output_type must be one of {', '.join(OUTPUT_TYPES)}, got {self.output_type!r}")
        object.__setattr__(self, "texts", list_of_texts(self.prompt, "prompt"))

    @classmethod
    def from_settings(
        cls, method: str, prompt: Prompt, settings: Mapping[str, Any], refused: Mapping[str, str] | None = None
    ) -> DrawingRequest:
        """The request of a method that passes its settings on by name.

        Args:
            refused: settings that have no meaning for the method, and why.

        Raises:
            TypeError: a refused or unknown setting, named.
        """
        refused = refused or {}
        known = [one.name for one in fields(cls) if one.init and one.name != "prompt" and one.name not in refused]
        for name in settings:
            if name in refused:
                raise TypeError(f"{method} takes no {name}: {refused[name]}")
            if name not in known:
                raise TypeError(f"{method} has no setting {name!r}: it takes {', '.join(known)}")
        return cls(prompt, **settings)

    @property
    def num_drawn(self) -> int:
        """Pictures to draw for each prompt, of which `best_of` keeps `num_images_per_prompt`."""
        return self.num_images_per_prompt if self.best_of is None else self.best_of

    def of_size(self, size: Size) -> DrawingRequest:
        """The request for pictures of this size.

        Raises:
            ValueError: it asks for another one.
        """
        for name, given, side in (("height", self.height, size[0]), ("width", self.width, size[1])):
            if given not in (None, side):
                raise ValueError(
                    f"{name}={given}: the picture is {size[0]}x{size[1]} (height x width), and what is drawn has its "
                    "size: leave height and width out"
                )
        return replace(self, height=size[0], width=size[1])

    def settings(
        self, vocabulary: MultimodalVocabulary, size: Size, image_guidance_scale: Guidance = 1.0
    ) -> list[SamplingSettings]:
        """How each of a picture's codes is drawn; what the request leaves open is the model's own.

        Raises:
            TypeError, ValueError: a setting out of range, or a list of another length.
        """
        scale = vocabulary.default_guidance if self.guidance_scale is None else self.guidance_scale
        temperature = vocabulary.default_temperature if self.temperature is None else self.temperature
        schedule = SamplingSchedule(scale, temperature, self.top_k, self.top_p, self.min_p, image_guidance_scale)
        return schedule.by_position(vocabulary.picture(size).layout)

    def task(self, pipe: MultimodalPipeline) -> DrawingTask:
        """The pictures to draw, in the sampler's terms.

        Raises:
            TypeError, ValueError: an argument that is wrong for this model, named with its value.
        """
        vocabulary, texts, negative = pipe.vocabulary, self.texts, self.negative_prompt
        size = picture_size(vocabulary, self.height, self.width)
        check_trained(vocabulary, self.prompt)
        if self.guidance_scale not in (None, 1) and negative is None and self.prompt is not None:
            vocabulary.check_trained(
                f"guidance_scale={shown(self.guidance_scale)}", *DRAWING_ALONE,
                remedy="give guidance_scale=1, or a negative_prompt",
            )  # fmt: skip
        settings = self.settings(vocabulary, size)
        negatives = negative_texts(negative, len(texts), max(one.guidance_scale for one in settings))
        if texts == [None] and negative is None:  # guidance would lead from the empty prompt to itself
            settings = [replace(one, guidance_scale=1.0) for one in settings]
        return DrawingTask(
            prompts=prompt_rows(pipe.model, vocabulary, texts, "prompt", self.num_drawn, size),
            negative_prompts=prompt_rows(pipe.model, vocabulary, negatives, "negative_prompt", self.num_drawn, size),
            generators=picture_streams(len(texts), self.num_drawn, self.seed, self.generator),
            settings=settings,
            size=size,
            max_batch_rows=pipe.max_batch_rows,
            codes_per_call=self.codes_per_call,
            guess_table=pipe.guess_table,
        )


def picture_size(vocabulary: MultimodalVocabulary, height: int | None, width: int | None) -> Size:
    """(height, width) of the first of the model's sizes, its default first, that has the given sides.

    Raises:
        ValueError: there is none.
    """
    for size in vocabulary.layouts:
        if height in (None, size[0]) and width in (None, size[1]):
            return size
    given = ", ".join(
        f"{name}={value!r}" for name, value in (("height", height), ("width", width)) if value is not None
    )
    known = ", ".join(f"{size[0]}x{size[1]}" for size in vocabulary.layouts)
    raise ValueError(
        f"{given}: this model draws {known} pictures (height x width); give one of these, or leave height and width "
        "out and resize the picture"
    )
