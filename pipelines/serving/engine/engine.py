"""The engine: one thread that draws and describes for everyone, by continuous batching.

    with DrawingEngine(pipe) as engine:
        job = engine.submit(DrawRequest(prompt="a red dog", count=2), previews=4)
        for drawn in job.events():
            drawn.image.save(f"{drawn.number}.png")

Pictures and texts of all jobs share the calls of the model (`lm.generation.continuous`), whatever their settings and
however far they are. In float32 a job's pictures are the same alone and among others.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, overload

import numpy as np
import torch

from lm.generation import memory
from lm.generation.continuous import ContinuousSampler, slots_for
from lm.generation.rows_under_way import PictureUnderWay, RowUnderWay
from lm.generation.stepper import evaluation_mode
from lm.pretrained import max_positions
from lm.vocabulary import Size
from pipelines.drawing.best_of import check_can_rank, prompt_scores
from pipelines.drawing.captions import caption_room
from pipelines.image_to_text import ImageToTextPipeline
from pipelines.serving.engine.decoding import decode
from pipelines.serving.engine.jobs import (
    DescribingJob,
    DrawingJob,
    DrawnPicture,
    EngineFull,
    EngineStopping,
    JobCancelled,
    JobTimeout,
)
from pipelines.serving.engine.reducing import reduced
from pipelines.serving.engine.requests import DescribeRequest, PictureRequest
from pipelines.serving.engine.turns import fair_shares, slots_allowed
from pipelines.serving.engine.work import DescribingWork, DrawingWork, Work
from pipelines.text_to_image import TextToImagePipeline

SLOTS_OF_PICTURE = 2  # with guidance
PATIENCE = 8  # steps that a complete picture may wait for others, to be decoded with them
COMPOSED = 4  # characters become one, at most, when text is normalized: longer prompts are refused unread
KEPT_PROMPTS = 32  # that need not be read again: the last ones, and what guidance leads away from
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineLimits:
    """What the engine takes on.

    Attributes:
        pictures_at_once: most pictures (or texts) in one call of the model.
        images_per_request: most pictures, or texts to choose among, of a request.
        prompt_tokens: most tokens of a prompt, where the model has positions for as many.
        description_tokens: most tokens of a description.
        waiting_requests: most requests of which nothing is under way yet.
        seconds: most time of a request, its waiting included.
    """

    pictures_at_once: int = 32
    images_per_request: int = 64
    prompt_tokens: int = 256
    description_tokens: int = 128
    waiting_requests: int = 256
    seconds: float = 300.0


class DrawingEngine:
    """Takes requests from any thread; its own thread draws.

    Args:
        pipeline: of which nothing else may change the model meanwhile.
        limits: what it takes on.

    Attributes:
        pipeline, limits: as given.
    """

    def __init__(self, pipeline: TextToImagePipeline, limits: EngineLimits | None = None) -> None:
        self.pipeline, self.limits = pipeline, limits or EngineLimits()
        self._describing = ImageToTextPipeline(
            pipeline.image_tokenizer, pipeline.model, pipeline.vocabulary, pipeline.guess_table
        )
        self._changed = threading.Condition()
        self._arrived: list[Work] = []  # by other threads
        self._jobs: list[Work] = []  # of the engine's thread, in the order of arrival
        self._complete: list[tuple[DrawingWork, PictureUnderWay]] = []  # to be decoded
        self._waited = 0  # steps since the first of them was complete
        self._is_stopping = False
        self._longest_token = max(map(len, pipeline.vocabulary.tokenizer.get_vocab()))  # bytes
        self._reading = threading.Lock()  # of the text tokenizer, which is not safe in threads
        self._completed: deque[float] = deque(maxlen=64)  # times of the last pictures
        self._thread = threading.Thread(target=self._run, name="drawing", daemon=True)
        self._thread.start()

    def __enter__(self) -> DrawingEngine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.join()

    @overload
    def submit(self, request: DescribeRequest, previews: int = 0) -> DescribingJob: ...
    @overload
    def submit(self, request: PictureRequest, previews: int = 0) -> DrawingJob: ...
    def submit(self, request: PictureRequest | DescribeRequest, previews: int = 0) -> Any:
        """Take a request on.

        Args:
            previews: how often each picture is shown before it is complete, evenly over its codes.

        Raises:
            TypeError, ValueError: an argument that is wrong, or beyond a limit, named with its value.
            EngineFull: too many requests wait.
            EngineStopping: `stop` was called.
        """
        self._check_room()
        deadline = time.monotonic() + self.limits.seconds
        request = reduced(self.pipeline, request)
        work: Work
        with self._reading:
            if isinstance(request, DescribeRequest):
                self._check_count(request.best_of or 1, "best_of")
                work = DescribingWork(self._describing, request, self.limits.description_tokens, deadline)
            else:
                self._check_count(request.count, "n")
                self._check_prompt(request)
                work = DrawingWork(self.pipeline, request, previews, deadline)
        with self._changed:
            self._check_room()
            self._arrived.append(work)
            self._changed.notify()
        return work.job

    def check_can_rank(self, prompt: str | None) -> None:
        """Raise ValueError unless `scores` can tell pictures of this prompt apart."""
        with self._reading:
            check_can_rank(self.pipeline, [prompt])

    def scores(self, prompt: str, pictures: Sequence[DrawnPicture], size: Size | None = None) -> torch.Tensor:
        """How likely the model finds a prompt after each of some complete pictures of a size: log p in nats,
        (pictures,) float64. Computed in the caller's thread."""
        with self._reading:
            ids = self.pipeline.vocabulary.encode_texts([prompt])
        codes = torch.from_numpy(np.stack([picture.codes for picture in pictures])).to(self.pipeline.device)
        with torch.inference_mode():
            return prompt_scores(self.pipeline, ids, codes, size)[0]

    @property
    def is_stopping(self) -> bool:
        """Whether new requests are refused."""
        return self._is_stopping

    @property
    def is_alive(self) -> bool:
        """Whether the engine's thread runs."""
        return self._thread.is_alive()

    def stop(self) -> None:
        """Take no new requests; those taken are finished."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify()

    def join(self, timeout: float | None = None) -> None:
        """Wait until everything is finished after `stop`."""
        self._thread.join(timeout)

    @property
    def num_waiting(self) -> int:
        """Requests of which nothing is under way."""
        return len(self._arrived) + sum(work.is_waiting for work in list(self._jobs))

    @property
    def num_under_way(self) -> int:
        """Pictures and texts under way."""
        return sum(len(work.under_way) for work in list(self._jobs))

    @property
    def longest_prompt(self) -> int:
        """Most tokens of a prompt, of pictures of any size."""
        model, vocabulary = self.pipeline.model, self.pipeline.vocabulary
        rooms = [caption_room(model, vocabulary, size) for size in vocabulary.layouts]
        return min(self.limits.prompt_tokens, *rooms)

    def _check_room(self) -> None:
        if self._is_stopping:
            raise EngineStopping("the server is about to end and takes no new requests")
        waiting = self.num_waiting
        if waiting >= self.limits.waiting_requests:
            raise EngineFull(self.limits.waiting_requests, self._seconds_of(waiting))

    def _seconds_of(self, pictures: int) -> int:
        """Seconds that so many pictures are likely to take, at the pace of the last ones; 1 to 60."""
        times = list(self._completed)
        if len(times) < 2:
            return 1
        return max(1, min(60, math.ceil(pictures * (times[-1] - times[0]) / (len(times) - 1))))

    def _check_count(self, count: int, name: str) -> None:
        if isinstance(count, int) and count > self.limits.images_per_request:
            raise ValueError(f"{name}={count}: at most {self.limits.images_per_request} in one request")

    def _check_prompt(self, request: PictureRequest) -> None:
        for name, text in (("prompt", request.prompt), ("negative_prompt", request.negative_prompt)):
            limit = self.limits.prompt_tokens
            if not isinstance(text, str) or len(text.encode(errors="replace")) < limit:
                continue  # a token has a byte at least, and the space before the first word counts as one
            if len(text) > COMPOSED * limit * self._longest_token:
                raise ValueError(f"{name} has more than {limit} tokens, which is the limit here: shorten it")
            length = len(self.pipeline.vocabulary.encode_text(text))
            if length > limit:
                raise ValueError(f"{name} has {length} tokens: at most {limit} here; shorten it")

    def _run(self) -> None:
        """The engine's thread."""
        with evaluation_mode(self.pipeline.model), torch.inference_mode():
            sampler = self._sampler()
            while self._next_jobs():
                try:
                    self._advance(sampler)
                except Exception as error:  # of the model or memory: the engine goes on with what comes
                    logger.exception("drawing failed")
                    failed = [*self._jobs, *(work for work, _ in self._complete)]
                    self._complete.clear()
                    sampler.forget_prompts()
                    for work in failed:
                        self._end(work, sampler, RuntimeError(f"drawing failed: {error}"))

    def _sampler(self) -> ContinuousSampler:
        """Slots for twice as many pictures as are drawn at once: some stay free for small jobs beside a large one."""
        model, vocabulary, limits = self.pipeline.model, self.pipeline.vocabulary, self.limits
        longest = vocabulary.longest_picture + 2 + max(limits.prompt_tokens, limits.description_tokens + 1)
        places = min(longest, max_positions(model.config))
        wanted = 2 * SLOTS_OF_PICTURE * limits.pictures_at_once + KEPT_PROMPTS
        fitting = memory.rows_that_fit(model, places, 0, max(high - low for low, high in vocabulary.id_ranges))
        count = max(SLOTS_OF_PICTURE, min(wanted, fitting or wanted))
        if count < wanted:
            logger.warning("memory has room for %d rows of %d", count, wanted)
        rows = min(count, SLOTS_OF_PICTURE * limits.pictures_at_once)
        kept = min(KEPT_PROMPTS, count // 5)
        return ContinuousSampler(slots_for(model, count, places, rows), vocabulary, kept)

    def _next_jobs(self) -> bool:
        """Wait until there is a job; False when there will be none."""
        with self._changed:
            self._jobs = [work for work in self._jobs if work.has_rows]
            self._changed.wait_for(lambda: self._arrived or self._jobs or self._is_stopping)
            self._jobs += self._arrived
            self._arrived = []
        return bool(self._jobs)

    def _advance(self, sampler: ContinuousSampler) -> None:
        """One step: jobs that ended early leave, waiting rows take slots, and rows in turn go on by a token."""
        self._leave_early(sampler)
        begun = self._admit(sampler)
        rows = self._rows_in_turn()
        shown = [
            (work, row, row.position)
            for work, row in rows
            if isinstance(work, DrawingWork) and work.has_previews and isinstance(row, PictureUnderWay)
        ]
        if rows:
            sampler.step([row for _, row in rows])
        # A picture of which every code is kept is complete when it begins.
        complete = [(work, row) for work, row in rows + begun if row.is_complete]
        previews = [(work, row) for work, row, before in shown if not row.is_complete and work.shows(row, before)]
        self._hand_out(complete, previews, rows)

    def _leave_early(self, sampler: ContinuousSampler) -> None:
        now = time.monotonic()
        for work in self._jobs:
            if work.job.is_cancelled:
                self._end(work, sampler, JobCancelled("the request was cancelled"))
            elif now > work.deadline:
                words = f"the request took longer than {self.limits.seconds:g} s, which is the limit"
                self._end(work, sampler, JobTimeout(words))
        self._jobs = [work for work in self._jobs if not work.job.has_ended]

    def _end(self, work: Work, sampler: ContinuousSampler, error: Exception) -> None:
        """End a job early and free its slots."""
        work.job.end(error=error)
        for row in work.under_way:
            sampler.leave(row)
        work.under_way.clear()

    def _admit(self, sampler: ContinuousSampler) -> list[tuple[Work, RowUnderWay]]:
        """Give free slots to waiting rows, first to jobs that hold few; those that are complete at once."""
        chosen: list[tuple[Work, RowUnderWay]] = []
        wanting = [work for work in self._jobs if work.waiting or not work.is_prepared]
        free, held = sampler.num_free, {work: _slots_of(work.under_way) for work in wanting}
        for work in sorted(wanting, key=lambda work: held[work]):  # stable: then those that came first
            if not free:
                break
            if not work.is_prepared:
                try:
                    work.prepare()
                except Exception as error:
                    work.job.end(error=error)
                    continue
            each = len(work.waiting[0].prompts) if work.waiting else 1
            allowed = slots_allowed(held[work], free, each * len(work.waiting)) // each
            if not held[work] and not allowed and work.waiting and free >= each:
                allowed = 1
            taken = [work.waiting.popleft() for _ in range(allowed)]
            free -= each * allowed
            chosen += [(work, row) for row in taken]
        if chosen:
            sampler.begin([row for _, row in chosen])
            for work, row in chosen:
                work.under_way.append(row)
        return [(work, row) for work, row in chosen if row.is_complete]

    def _rows_in_turn(self) -> list[tuple[Work, RowUnderWay]]:
        """The rows of the next step, evenly over the jobs; of a job, those that began first."""
        shares = fair_shares([len(work.under_way) for work in self._jobs], self.limits.pictures_at_once)
        rows = [
            (work, row)
            for work, share in zip(self._jobs, shares, strict=True)
            for row in work.under_way[:share]
            if not row.is_complete
        ]
        return rows

    def _hand_out(
        self,
        complete: list[tuple[Work, RowUnderWay]],
        previews: list[tuple[DrawingWork, PictureUnderWay]],
        rows: list[tuple[Work, RowUnderWay]],
    ) -> None:
        """Give jobs what is complete or to be shown after a step of some rows."""
        for work, row in complete:
            work.under_way.remove(row)
            if isinstance(work, DrawingWork) and isinstance(row, PictureUnderWay):
                self._complete.append((work, row))
            elif isinstance(work, DescribingWork) and work.is_written:
                work.give_best(self._reading)
        if self._complete or previews:
            self._waited += 1
            if previews or not self._is_worth_waiting(rows):
                decode(self.pipeline, self._complete + previews)
                self._completed += [time.monotonic()] * len(self._complete)
                self._complete, self._waited = [], 0  # not before: an error ends their jobs

    def _is_worth_waiting(self, rows: list[tuple[Work, RowUnderWay]]) -> bool:
        """Whether more pictures are about to be complete: several are decoded in less time than one after the other."""
        patience = PATIENCE - self._waited
        left = (row.total - row.position for _, row in rows if isinstance(row, PictureUnderWay))
        return any(0 < codes <= patience for codes in left)


def _slots_of(rows: list[RowUnderWay]) -> int:
    return sum(len(row.prompts) for row in rows)
