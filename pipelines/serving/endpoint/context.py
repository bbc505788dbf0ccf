"""What the endpoints of one server share."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from lm.sequences import DESCRIBING, DRAWING_ALONE, DRAWING_CAPTIONS
from lm.vocabulary import Size
from pipelines.serving.endpoint.errors import APIError, refused
from pipelines.serving.endpoint.metrics import ServerMetrics
from pipelines.serving.endpoint.schemas import ModelCard
from pipelines.serving.endpoint.uploads import read_picture
from pipelines.serving.engine.engine import DrawingEngine
from pipelines.serving.engine.jobs import DescribingJob, DrawingJob
from pipelines.serving.engine.requests import DescribeRequest, PictureRequest

USES = {"draw": DRAWING_CAPTIONS, "draw_without_prompt": DRAWING_ALONE, "describe": DESCRIBING}
READ_AT_ONCE = 2  # requests with pictures: one of as many pixels as are allowed takes hundreds of megabytes


@dataclass(frozen=True)
class ServingSettings:
    """How a server answers.

    Attributes:
        model_name: what clients call the model.
        api_key: that clients must give; None lets everyone in.
        allowed_origins: of web pages that may call the endpoint; none by default.
        body_bytes: most bytes of a request.
        upload_pixels: most pixels of an uploaded picture.
        body_seconds: most time that a body may take to arrive.
    """

    model_name: str = "model"
    api_key: str | None = None
    allowed_origins: tuple[str, ...] = ()
    body_bytes: int = 20_000_000
    upload_pixels: int = 16_777_216
    body_seconds: float = 60.0


@dataclass(frozen=True)
class Served:
    """The engine and what surrounds it.

    Attributes:
        reading: held from reading a request's pictures until the engine has it, which keeps them at the model's size.
    """

    engine: DrawingEngine
    settings: ServingSettings
    metrics: ServerMetrics
    created: int = field(default_factory=lambda: int(time.time()))
    reading: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(READ_AT_ONCE))

    def card(self) -> ModelCard:
        """What clients can know of the model."""
        vocabulary = self.engine.pipeline.vocabulary
        learned = [use for use, formats in USES.items() if set(formats) & set(vocabulary.formats)]
        sizes = [size_name(size) for size in vocabulary.layouts]
        return ModelCard(id=self.settings.model_name, created=self.created, sizes=sizes, capabilities=learned)

    def check_model(self, name: str | None) -> None:
        """Raise APIError unless a client means the model that is served."""
        if name not in (None, "", self.settings.model_name):
            raise APIError(
                404, f"there is no model {name!r} here: this server has {self.settings.model_name!r}", param="model",
                code="model_not_found",
            )  # fmt: skip

    def size_of(self, name: str | None) -> Size | None:
        """(height, width) of WIDTHxHEIGHT; None for auto. Raises APIError for a size that the model does not draw."""
        sizes = {size_name(size): size for size in self.engine.pipeline.vocabulary.layouts}
        if name in (None, "auto"):
            return None
        if name not in sizes:
            known = ", ".join(sizes)
            message = f"size={name!r}: this model draws {known} (width x height), or give auto"
            raise APIError(400, message, param="size", code="invalid_value")
        return sizes[name]

    def submit(self, request: PictureRequest, previews: int = 0) -> DrawingJob:
        """Have the engine draw.

        Raises:
            APIError: a setting that is wrong, or beyond a limit.
            EngineFull, EngineStopping: the engine takes no more.
        """
        try:
            return self.engine.submit(request, previews)
        except (ValueError, TypeError) as error:
            raise refused(error) from error

    def describe(self, request: DescribeRequest) -> DescribingJob:
        """Have the engine describe. Raises as `submit`."""
        try:
            return self.engine.submit(request)
        except (ValueError, TypeError) as error:
            raise refused(error) from error

    async def uploaded(self, file: UploadFile, name: str) -> Image.Image:
        """An uploaded picture. Raises APIError for one that cannot be read."""
        return await self.picture(await file.read(), name)

    async def picture(self, content: bytes, name: str) -> Image.Image:
        """A picture from its file's content. Raises APIError for one that cannot be read."""
        try:
            return await run_in_threadpool(read_picture, content, name, self.settings.upload_pixels)
        except ValueError as error:
            raise APIError(400, str(error), param=name, code="invalid_image") from error


def size_name(size: Size) -> str:
    """WIDTHxHEIGHT, as OpenAI's clients write a size."""
    return f"{size[1]}x{size[0]}"
