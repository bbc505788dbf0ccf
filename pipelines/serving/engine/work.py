"""The engine's side of a job: a request as rows for the sampler, and the outputs that are made of them.

Pictures of requests have the model's size here (`pipelines.serving.engine.reducing`).
"""

from __future__ import annotations

import secrets
from abc import ABC, abstractmethod
from collections import deque
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image

from lm.generation.rows_under_way import PictureUnderWay, RowUnderWay, TextUnderWay, pictures_of
from lm.generation.sampling import uniforms_of
from lm.generation.task import UNDRAWN
from lm.generation.texts import check_room, room_after
from lm.sequences import description_prompt
from lm.vocabulary import Size
from pipelines.drawing.arguments import whole_number
from pipelines.drawing.best_of import best_rows, picture_scores
from pipelines.drawing.completion import kept_levels, kept_places, scattered_places, to_redraw
from pipelines.drawing.request import DrawingRequest
from pipelines.drawing.streams import text_streams
from pipelines.image_to_text import ImageToTextPipeline
from pipelines.multimodal import MultimodalPipeline
from pipelines.serving.engine.jobs import DescribingJob, Description, DrawingJob, DrawnPicture
from pipelines.serving.engine.requests import CompleteRequest, DescribeRequest, DrawRequest, PictureRequest, VaryRequest
from tokenizer_image.preprocessing import nearest_size

SEEDS = 1 << 32  # random ones are below it
LEAST_REDRAWN = 64  # of a mask in 0 .. 255: a quarter of a pixel is to be drawn again


class Work(ABC):
    """A job and its rows: those that wait for slots, and those under way.

    Attributes:
        deadline: when the job has taken too long, by the engine's clock.
        waiting, under_way: rows; `prepare` fills `waiting`.
    """

    job: Any

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self.waiting: deque[RowUnderWay] = deque()
        self.under_way: list[RowUnderWay] = []
        self.is_prepared = False

    @property
    def is_waiting(self) -> bool:
        """Whether nothing of it is under way, and there is something to do."""
        return not self.job.has_ended and (not self.is_prepared or bool(self.waiting and not self.under_way))

    @property
    def has_rows(self) -> bool:
        """Whether there is something to draw or write still."""
        return not self.is_prepared or bool(self.waiting or self.under_way)

    @abstractmethod
    def prepare(self) -> None:
        """Make the rows (in the engine's thread). Raises ValueError for a picture that cannot be encoded."""


class DrawingWork(Work):
    """Pictures of one request.

    Args:
        previews: how often each picture is shown before it is complete, evenly over the codes that are drawn.

    Raises:
        TypeError, ValueError: an argument that is wrong, named with its value.
    """

    def __init__(self, pipe: MultimodalPipeline, request: PictureRequest, previews: int, deadline: float) -> None:
        super().__init__(deadline)
        self._pipe, self._request = pipe, request
        count = whole_number(request.count, "count", 1)
        first = secrets.randbelow(SEEDS) if request.seed is None else whole_number(request.seed, "seed", 0)
        self.seeds = [first + number for number in range(count)]
        size = self._size()
        drawing = DrawingRequest(
            request.prompt, num_images_per_prompt=count, seed=self.seeds, height=size[0], width=size[1],
            **request.settings(),
        )  # fmt: skip
        self._task = drawing.task(pipe)
        self.size: Size | None = self._task.size
        self._kept = self._kept_places()
        self._previews = whole_number(previews, "previews", 0)
        self._shown_at: dict[RowUnderWay, set[int]] = {}  # positions
        self._numbers: dict[RowUnderWay, int] = {}
        self._prompt_tokens = [len(prompt) for prompt in self._task.prompts]
        self._final: dict[int, DrawnPicture] = {}
        self.job: DrawingJob = DrawingJob(count)

    def _size(self) -> tuple[int | None, int | None]:
        """Height and width of the pictures, as far as the request states them."""
        if isinstance(self._request, CompleteRequest | VaryRequest):
            return nearest_size(*self._request.image.size, list(self._pipe.vocabulary.layouts))
        assert isinstance(self._request, DrawRequest)
        return self._request.height, self._request.width

    def _kept_places(self) -> list[torch.Tensor] | None:
        """Which codes of its picture each drawn picture keeps, (T,) bool."""
        request, size = self._request, self.size
        if isinstance(request, DrawRequest) or size is None:
            return None
        layout = self._pipe.vocabulary.layouts[size]
        if isinstance(request, CompleteRequest):
            redrawn = np.asarray(request.mask) >= LEAST_REDRAWN
            return [kept_places(layout, to_redraw(size, mask=redrawn))] * request.count
        assert isinstance(request, VaryRequest)
        if request.keep_levels is not None:
            return [kept_levels(layout, request.keep_levels)] * request.count
        return [scattered_places(layout, size, request.redraw, seed) for seed in self.seeds]

    def prepare(self) -> None:
        """As `Work.prepare`."""
        task, request = self._task, self._request
        if self._kept is not None and isinstance(request, CompleteRequest | VaryRequest):
            codes = self._pipe.encode_images(request.image, self.size)[0].cpu()
            task = replace(task, forced=torch.stack([torch.where(kept, codes, UNDRAWN) for kept in self._kept]))
        rows = pictures_of(task, self._pipe.vocabulary)
        self._numbers = {row: number for number, row in enumerate(rows)}
        self._shown_at = {row: self._positions_shown(row) for row in rows if self._previews}
        self.waiting.extend(rows)
        self.is_prepared = True

    def _positions_shown(self, row: PictureUnderWay) -> set[int]:
        """The positions at which a picture is shown before it is complete."""
        drawn, parts = (row.codes == UNDRAWN).nonzero()[0].tolist(), self._previews + 1
        numbers = {round(len(drawn) * part / parts) for part in range(1, parts)}
        return {drawn[number] for number in numbers if 0 < number < len(drawn)}

    @property
    def has_previews(self) -> bool:
        """Whether pictures are shown before they are complete."""
        return self._previews > 0

    def shows(self, row: PictureUnderWay, before: int) -> bool:
        """Whether a picture is to be shown, now that it has gone on from the position `before`."""
        return any(before < shown <= row.position for shown in self._shown_at.get(row, ()))

    def give(self, row: PictureUnderWay, codes: np.ndarray, image: Image.Image) -> None:
        """Hand out a picture that codes of a row, (t,) up to T, decode to."""
        number = self._numbers[row]
        drawn = DrawnPicture(
            number=number,
            image=image,
            codes=codes,
            seed=self.seeds[number],
            total=row.total,
            prompt_tokens=self._prompt_tokens[number],
        )
        if drawn.is_complete:
            self._final[number] = drawn
        is_last = len(self._final) == self.job.count
        self.job.give(drawn, [self._final[one] for one in range(self.job.count)] if is_last else None)


class DescribingWork(Work):
    """Texts for one picture, of which one is given.

    Args:
        most_tokens: of the text.

    Raises:
        TypeError, ValueError: an argument that is wrong, named with its value.
    """

    def __init__(self, pipe: ImageToTextPipeline, request: DescribeRequest, most_tokens: int, deadline: float) -> None:
        super().__init__(deadline)
        self._pipe, self._request = pipe, request
        self._settings = pipe.sampling_settings(
            request.temperature, request.top_k, request.top_p, request.min_p, request.best_of
        )
        self.size = nearest_size(*request.image.size, list(pipe.vocabulary.layouts))
        self._most = self._num_tokens(most_tokens)
        seed = secrets.randbelow(SEEDS) if request.seed is None else whole_number(request.seed, "seed", 0)
        self._streams = text_streams(seed, 1, request.best_of or 1)
        self._codes: torch.Tensor | None = None
        self._prompt: list[int] = []
        self._texts: list[TextUnderWay] = []
        self.job: DescribingJob = DescribingJob(1)

    def _num_tokens(self, limit: int) -> int:
        length = len(self._pipe.vocabulary.picture(self.size)) + 3  # bos, begin and end of the picture
        wanted = self._request.max_new_tokens
        if wanted is None:
            most = min(limit, room_after(self._pipe.model, length))
        else:
            most = whole_number(wanted, "max_new_tokens", 1)
            if most > limit:
                raise ValueError(f"max_new_tokens={most}: a description has at most {limit} tokens here")
        check_room(self._pipe.model, length, max(most, 1))
        return most

    def prepare(self) -> None:
        """As `Work.prepare`."""
        vocabulary = self._pipe.vocabulary
        self._codes = self._pipe.encode_images(self._request.image, self.size)
        self._prompt = description_prompt(vocabulary, self._codes[0].cpu().numpy(), self.size)
        uniforms = uniforms_of(self._streams, self._most, torch.device("cpu")).numpy()
        self._texts = [
            TextUnderWay(vocabulary, [list(self._prompt)], self._settings, row, self._most) for row in uniforms
        ]
        self.waiting.extend(self._texts)
        self.is_prepared = True

    @property
    def is_written(self) -> bool:
        """Whether all texts are complete."""
        return self.is_prepared and all(text.is_complete for text in self._texts)

    def give_best(self, reading: AbstractContextManager[Any]) -> None:
        """Hand out the best of the texts and end the job; the text tokenizer is used inside `reading`."""
        assert self._codes is not None
        best = self._texts[0]
        if len(self._texts) > 1:
            scores = picture_scores(self._pipe, [text.ids for text in self._texts], self._codes, self.size)
            best = self._texts[best_rows(scores, 1)[0]]
        with reading:
            words = self._pipe.vocabulary.decode_text(best.ids)
        reason: Literal["stop", "length"] = "stop" if best.has_stopped else "length"
        description = Description(words, len(self._prompt), len(best.ids), reason)
        self.job.give(description, [description])
