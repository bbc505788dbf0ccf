"""What the page's buttons do: requests to the engine, and their pictures on the page as they come."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr
import numpy as np
import torch
from PIL import Image

from pipelines.drawing.best_of import best_rows
from pipelines.drawing.completion import kept_places, scattered_places
from pipelines.serving.endpoint.uploads import read_picture
from pipelines.serving.endpoint.waiting import outputs_of
from pipelines.serving.engine.engine import DrawingEngine
from pipelines.serving.engine.jobs import DrawingJob, DrawnPicture, EngineFull, EngineStopping, JobCancelled, JobTimeout
from pipelines.serving.engine.requests import CompleteRequest, DescribeRequest, DrawRequest, PictureRequest, VaryRequest
from pipelines.serving.page.abilities import Abilities
from pipelines.serving.page.cards import Drawn, Frame, MadeBy, StageKind, gallery, stage
from pipelines.serving.page.form import Form, View, finished, size_of
from pipelines.serving.page.session_jobs import SessionJobs
from pipelines.serving.page.tiles import enlarged, painted_pixels
from pipelines.serving.page.upload_fields import Painting
from tokenizer_image.preprocessing import nearest_size

PREVIEWS = 16  # of each picture, while it is drawn
EDITOR_SIDE = 512  # pixels of the picture that is painted on
KEPT_PICTURES, KEPT_BYTES = 48, 6_000_000  # of a gallery
TEXTS = "/texts"  # behind the name of a session: its descriptions do not end what it draws
FAILED = "The server failed to do this; its log says why."
KNOWN = (ValueError, TypeError, EngineFull, EngineStopping, JobCancelled, JobTimeout)
logger = logging.getLogger(__name__)


@dataclass
class Shown:
    """What an action changes on the page; what is None stays as it is."""

    stage: str | None = None
    history: list[Drawn] | None = None
    is_busy: bool | None = None

    def updates(self) -> list[Any]:
        """For the stage, the gallery's pictures, the gallery, and the cancel button."""
        new = self.history is not None
        return [
            gr.skip() if self.stage is None else self.stage,
            self.history if new else gr.skip(),
            gallery(self.history) if self.history is not None else gr.skip(),
            gr.skip() if self.is_busy is None else gr.update(interactive=self.is_busy),
        ]


@dataclass(frozen=True)
class Order:
    """A request for pictures, and how the page shows them."""

    request: PictureRequest
    view: View
    form: Form
    made_by: MadeBy
    note: str = ""


class PageActions:
    """The actions of one page.

    Args:
        upload_pixels: most pixels of an uploaded picture.
    """

    def __init__(self, engine: DrawingEngine, upload_pixels: int) -> None:
        self.engine, self.upload_pixels = engine, upload_pixels
        self.vocabulary = engine.pipeline.vocabulary
        self.abilities = Abilities.of(self.vocabulary)
        self.jobs = SessionJobs()

    async def draw(self, form: Form, history: list[Drawn], session: str) -> AsyncIterator[list[Any]]:
        """Draw from the prompt."""

        def order() -> Order:
            size = size_of(self.vocabulary, form.size)
            request = DrawRequest(height=size[0], width=size[1], **self._common(form))
            return Order(request, View(self.vocabulary, size), form, "draw")

        async for updates in self._work(order, form, history, session):
            yield updates

    async def edit(
        self, painting: Painting | None, form: Form, history: list[Drawn], session: str
    ) -> AsyncIterator[list[Any]]:
        """Draw again what is painted over."""

        def order() -> Order:
            if painting is None:
                raise ValueError("There is no picture to edit: upload one, or choose one below and press Edit")
            picture, _ = self.of_model_size(read_picture(painting.background, "the picture", self.upload_pixels))
            size = (picture.height, picture.width)
            layers = [read_picture(layer, "what is painted", self.upload_pixels) for layer in painting.layers]
            redraw = painted_pixels(layers, size)
            if not redraw.any():
                raise ValueError("Nothing is painted over: paint on what is to be drawn again")
            kept = kept_places(self.vocabulary.layouts[size], torch.from_numpy(redraw)).numpy()
            mask = Image.fromarray(redraw.astype(np.uint8) * 255)
            request = CompleteRequest(image=picture, mask=mask, **self._common(form))
            view = View(self.vocabulary, size, [kept] * form.num_drawn, picture)
            return Order(request, view, form, "edit", f"{kept.mean():.0%} of the picture stays")

        async for updates in self._work(order, form, history, session):
            yield updates

    async def vary(
        self, content: bytes | None, redraw: float, form: Form, history: list[Drawn], session: str
    ) -> AsyncIterator[list[Any]]:
        """Draw variations of a picture."""

        def order() -> Order:
            if content is None:
                raise ValueError("There is no picture to vary: upload one, or choose one below and press Vary")
            picture, note = self.of_model_size(read_picture(content, "the picture", self.upload_pixels))
            size = (picture.height, picture.width)
            common = self._common(form)
            layout, first = self.vocabulary.layouts[size], common["seed"]
            kept = [scattered_places(layout, size, redraw, first + number).numpy() for number in range(form.num_drawn)]
            request = VaryRequest(image=picture, redraw=redraw, **common)
            return Order(request, View(self.vocabulary, size, kept, picture), form, "vary", note)

        async for updates in self._work(order, form, history, session):
            yield updates

    async def describe(self, content: bytes | None, candidates: int, session: str) -> AsyncIterator[tuple[str, Any]]:
        """A caption of a picture: what the page says of the work, and the text."""
        if content is None:
            yield "There is no picture to describe: upload one, or choose one below and press Describe.", gr.skip()
            return
        job = None
        try:
            picture = await asyncio.to_thread(read_picture, content, "the picture", self.upload_pixels)
            best_of = int(candidates) if candidates > 1 else None
            job = await asyncio.to_thread(self.engine.submit, DescribeRequest(image=picture, best_of=best_of))
            self.jobs.begin(session + TEXTS, job)
            yield "Describing …", gr.skip()
            async for outputs in outputs_of(job):
                chosen = f"The best of {best_of} captions." if best_of else "The likeliest caption."
                yield chosen, outputs[-1].text
        except Exception as error:
            yield sentence_of(error), gr.skip()
        finally:
            if job is not None:
                self.jobs.end(session + TEXTS, job)

    def cancel(self, session: str) -> None:
        """Stop what a session has under way."""
        self.jobs.cancel(session)
        self.jobs.cancel(session + TEXTS)

    def editable(self, content: bytes) -> tuple[Image.Image, str]:
        """An uploaded picture as it is painted on, enlarged pixel by pixel, and what was done to it.

        Raises:
            ValueError: a file that cannot be read.
        """
        picture, note = self.of_model_size(read_picture(content, "the picture", self.upload_pixels))
        return enlarged(picture, EDITOR_SIDE), note

    def of_model_size(self, picture: Image.Image) -> tuple[Image.Image, str]:
        """A picture resized and cropped to the model's size that is nearest to its shape, and a sentence that says so;
        "" where nothing was changed. A picture that `enlarged` made comes back as it was."""
        size = nearest_size(*picture.size, list(self.vocabulary.layouts))
        small = picture.convert("RGB")
        factor = picture.width // size[1]
        if factor > 1 and picture.size == (size[1] * factor, size[0] * factor):
            corner = small.resize((size[1], size[0]), Image.Resampling.NEAREST)
            if enlarged(corner, max(picture.size)).tobytes() == small.tobytes():
                return corner, ""
        pixels = self.engine.pipeline.prepare_images(picture, [size])[0]
        fitted = Image.fromarray(pixels.transpose(1, 2, 0).squeeze()).convert("RGB")
        if picture.size == fitted.size:
            return fitted, ""
        return fitted, (
            f"Your picture of {picture.width} x {picture.height} was resized and cropped to "
            f"{fitted.width} x {fitted.height}, a size that this model draws."
        )

    def _common(self, form: Form) -> dict[str, Any]:
        """Settings that all requests for pictures share."""
        seed = form.first_seed()
        if form.candidates > 1:
            self.engine.check_can_rank(form.text)
        sampling = form.sampling(self.abilities.guides is None)
        return {"prompt": form.text, "count": form.num_drawn, "seed": seed, **sampling}

    async def _work(
        self, make_order: Callable[[], Order], form: Form, history: list[Drawn], session: str
    ) -> AsyncIterator[list[Any]]:
        """Submit an order, show its pictures as they are drawn, and put them into the gallery."""
        started = time.monotonic()
        order: Order | None = None
        job: DrawingJob | None = None
        frames: list[Frame] = []
        complete: dict[int, DrawnPicture] = {}
        try:
            order = await asyncio.to_thread(make_order)
            job = await asyncio.to_thread(self.engine.submit, order.request, PREVIEWS)
            self.jobs.begin(session, job)
            frames = [order.view.empty(number) for number in range(form.num_drawn)]
            yield Shown(stage(frames, _waiting(self.engine)), is_busy=True).updates()
            async for outputs in outputs_of(job):
                for states in _in_turn(outputs):
                    for drawn in states:
                        frames[drawn.number] = order.view.frame(drawn)
                        if drawn.is_complete:
                            complete[drawn.number] = drawn
                    yield Shown(stage(frames, _progress(frames, order.note))).updates()
            chosen = await self._best(form, complete, order.view)
            words = _done(form, chosen, time.monotonic() - started, order.note)
            frames = [order.view.frame(drawn) for drawn in chosen]
            yield Shown(stage(frames, words, kind="done"), _with(history, chosen, order), is_busy=False).updates()
        except Exception as error:
            if job is not None and not self.jobs.is_current(session, job):
                return  # another one is on the stage
            kind: StageKind = "done" if isinstance(error, JobCancelled) else "error"
            words = sentence_of(error)
            kept: list[Drawn] | None = None
            if complete and order is not None:
                words += f" {len(complete)} of {form.num_drawn} pictures were finished."
                kept = _with(history, [complete[number] for number in sorted(complete)], order)
            yield Shown(stage(frames, words, kind=kind), kept, is_busy=False).updates()
        finally:
            if job is not None:
                self.jobs.end(session, job)

    async def _best(self, form: Form, complete: dict[int, DrawnPicture], view: View) -> list[DrawnPicture]:
        """The pictures that are given, in the order of their numbers or, of candidates, the best first."""
        drawn = [complete[number] for number in sorted(complete)]
        if form.candidates == 1:
            return drawn
        scores = await asyncio.to_thread(self.engine.scores, form.text or "", drawn, view.size)
        return [drawn[row] for row in best_rows(scores[None], form.number)]


def sentence_of(error: BaseException) -> str:
    """An error in one sentence for the page; what is not the visitor's to mend is logged."""
    if isinstance(error, JobCancelled):
        return "Cancelled."
    if isinstance(error, KNOWN):
        text = str(error).strip()
        return f"{text[:1].upper()}{text[1:]}" + ("" if text.endswith(".") else ".")
    logger.error("an action of the page failed", exc_info=error)
    return FAILED


def _in_turn(outputs: list[DrawnPicture]) -> list[list[DrawnPicture]]:
    """Outputs that came together, in lists with one of each picture at most: however late the page is, it shows every
    state of a picture."""
    turns: list[list[DrawnPicture]] = []
    seen: dict[int, int] = {}
    for drawn in outputs:
        turn = seen[drawn.number] = seen.get(drawn.number, -1) + 1
        if turn == len(turns):
            turns.append([])
        turns[turn].append(drawn)
    return turns


def _waiting(engine: DrawingEngine) -> str:
    before = max(0, engine.num_waiting - 1)
    return f"Waiting: {before} request{'s' * (before != 1)} before this one." if before else "Starting …"


def _progress(frames: list[Frame], note: str) -> str:
    drawn, total = (sum(frame.codes[part] for frame in frames) for part in (0, 1))
    return " ".join(part for part in (f"Drawing: {drawn} of {total} codes.", note) if part)


def _done(form: Form, chosen: list[DrawnPicture], seconds: float, note: str) -> str:
    count = f"{len(chosen)} picture{'s' * (len(chosen) != 1)}"
    best = f", the best of {form.num_drawn}" if form.candidates > 1 else ""
    return " ".join(part for part in (f"{count}{best} in {seconds:.1f} s.", note) if part)


def _with(history: list[Drawn], chosen: list[DrawnPicture], order: Order) -> list[Drawn]:
    """The gallery's pictures and the new ones, as many of the newest as are kept."""
    every = history + [finished(drawn, order.form, order.view.size, order.made_by) for drawn in chosen]
    kept: list[Drawn] = []
    size = 0
    for picture in reversed(every[-KEPT_PICTURES:]):
        size += len(picture.png)
        if kept and size > KEPT_BYTES:
            break
        kept.append(picture)
    return kept[::-1]
