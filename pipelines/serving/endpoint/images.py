"""Drawing, completing and varying in the shape of OpenAI's images endpoints."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from PIL import Image
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse

from pipelines.serving.endpoint.context import Served, size_name
from pipelines.serving.endpoint.errors import APIError, api_error
from pipelines.serving.endpoint.schemas import (
    EditForm,
    GenerationBody,
    InputDetails,
    PictureData,
    PictureFields,
    PicturesAnswer,
    StreamFields,
    Usage,
    VariationForm,
)
from pipelines.serving.endpoint.uploads import OutputFormat, encoded, redraw_mask
from pipelines.serving.endpoint.waiting import events_of, result_of
from pipelines.serving.engine.jobs import DrawingJob, DrawnPicture
from pipelines.serving.engine.requests import CompleteRequest, DrawRequest, VaryRequest

LARGE_PICTURE = 256 * 256  # pixels, from which encoding a file is worth a thread
PING_SECONDS = 15.0  # so that proxies do not close a stream that waits
MULTIPART = "multipart/form-data"


def images_router(served: Served) -> APIRouter:
    """The three endpoints of pictures."""
    router = APIRouter(prefix="/v1/images", tags=["images"])
    answer: dict[str, Any] = {"response_model": PicturesAnswer}

    @router.post("/generations", **answer)
    async def generate(request: Request, body: GenerationBody) -> Any:
        """Draw pictures from a prompt; an empty one draws without a prompt."""
        served.check_model(body.model)
        height, width = served.size_of(body.size) or (None, None)
        drawing = DrawRequest(height=height, width=width, **_settings(body, body.prompt))
        job = served.submit(drawing, _previews(body))
        return await _answer(served, request, body, job, "image_generation")

    @router.post("/edits", **answer)
    async def edit(request: Request, body: Annotated[EditForm, Form(media_type=MULTIPART)]) -> Any:
        """Draw again what a mask's transparency shows, after the prompt, and keep the rest."""
        served.check_model(body.model)
        served.size_of(body.size)
        async with served.reading:
            image = await served.uploaded(body.image, "image")
            if body.mask is None:
                mask = _mask(image, "image (there is no mask, and it)")
            else:
                mask = _mask(await served.uploaded(body.mask, "mask"), "mask")
            drawing = CompleteRequest(image=image.convert("RGB"), mask=mask, **_settings(body, body.prompt))
            job = await run_in_threadpool(served.submit, drawing, _previews(body))
        del image, mask, drawing  # large ones are not kept until the answer is there
        return await _answer(served, request, body, job, "image_edit")

    @router.post("/variations", **answer)
    async def vary(request: Request, body: Annotated[VariationForm, Form(media_type=MULTIPART)]) -> Any:
        """Draw variations of a picture: a share of it is drawn again, or its finer levels of codes."""
        served.check_model(body.model)
        served.size_of(body.size)
        async with served.reading:
            image = (await served.uploaded(body.image, "image")).convert("RGB")
            drawing = VaryRequest(
                image=image, keep_levels=body.keep_levels, **_given(redraw=body.redraw),
                **_settings(body, body.prompt),
            )  # fmt: skip
            job = await run_in_threadpool(served.submit, drawing)
        del image, drawing
        return await _answer(served, request, body, job, "")

    return router


def _mask(picture: Image.Image, name: str) -> Image.Image:
    """`redraw_mask`, of which the error is an answer."""
    try:
        return redraw_mask(picture, name)
    except ValueError as error:
        raise APIError(400, str(error), param="mask", code="invalid_image") from error


def _settings(body: PictureFields, prompt: str | None) -> dict[str, Any]:
    """Arguments of a request to the engine."""
    given = _given(
        top_k=body.top_k, top_p=body.top_p, min_p=body.min_p, count=body.n, seed=body.seed,
        temperature=body.temperature, guidance_scale=body.guidance_scale,
        negative_prompt=body.negative_prompt or None,
    )  # fmt: skip
    return {"prompt": prompt if prompt and prompt.strip() else None, **given}


def _given(**values: Any) -> dict[str, Any]:
    """Those that are not None: the others keep the engine's defaults."""
    return {name: value for name, value in values.items() if value is not None}


def _previews(body: StreamFields) -> int:
    return (body.partial_images or 0) if body.stream else 0


async def _answer(served: Served, request: Request, body: PictureFields, job: DrawingJob, events: str) -> Any:
    """The pictures in one answer, or as events while they are drawn."""
    if isinstance(body, StreamFields) and body.stream:
        stream = _stream(served, job, body, events)
        return StreamingResponse(stream, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
    drawn = await result_of(job, request)
    output_format = body.output_format or "png"
    files = [await _file(one, output_format, body.output_compression) for one in drawn]
    served.metrics.pictures.inc(len(files))
    usage = _usage(drawn)
    if body.response_format == "url":
        data = [
            PictureData(url=f"data:image/{output_format};base64,{file}", seed=one.seed)
            for one, file in zip(drawn, files, strict=True)
        ]
    else:
        data = [PictureData(b64_json=file, seed=one.seed) for one, file in zip(drawn, files, strict=True)]
    answer = PicturesAnswer(
        created=int(time.time()), data=data, output_format=output_format, size=_size(drawn[0]), usage=usage
    )
    return Response(answer.model_dump_json(exclude_none=True), media_type="application/json")


async def _stream(served: Served, job: DrawingJob, body: StreamFields, events: str) -> AsyncIterator[str]:
    """Server-sent events: partial pictures, and each when it is complete."""
    output_format, shown = body.output_format or "png", [0] * job.count
    outputs = events_of(job)
    try:
        coming = asyncio.ensure_future(anext(outputs, None))
        while True:
            done, _ = await asyncio.wait((coming,), timeout=PING_SECONDS)
            if not done:
                yield ": waiting\n\n"
                continue
            drawn = coming.result()
            if drawn is None:
                return
            coming = asyncio.ensure_future(anext(outputs, None))
            values: dict[str, Any] = {
                "b64_json": await _file(drawn, output_format, body.output_compression),
                "background": "opaque",
                "created_at": int(time.time()),
                "output_format": output_format,
                "quality": "auto",
                "size": _size(drawn),
                "image_index": drawn.number,
                "seed": drawn.seed,
            }
            if drawn.is_complete:
                served.metrics.pictures.inc()
                yield _event(f"{events}.completed", {**values, "usage": _usage([drawn]).model_dump()})
            else:
                yield _event(f"{events}.partial_image", {**values, "partial_image_index": shown[drawn.number]})
                shown[drawn.number] += 1
    except Exception as error:
        yield _event("error", api_error(error).body())
    finally:
        coming.cancel()
        job.cancel()


def _event(kind: str, values: dict[str, Any]) -> str:
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **values})}\n\n"


async def _file(drawn: DrawnPicture, output_format: OutputFormat, compression: int | None) -> str:
    """The picture's file in base64."""
    if drawn.image.width * drawn.image.height < LARGE_PICTURE:
        return encoded(drawn.image, output_format, compression)
    return await run_in_threadpool(encoded, drawn.image, output_format, compression)


def _size(drawn: DrawnPicture) -> str:
    return size_name((drawn.image.height, drawn.image.width))


def _usage(drawn: list[DrawnPicture]) -> Usage:
    """Tokens of all pictures. What guidance reads beside a prompt is not counted."""
    read, written = sum(one.prompt_tokens for one in drawn), sum(one.total for one in drawn)
    details = InputDetails(text_tokens=read)
    return Usage(input_tokens=read, input_tokens_details=details, output_tokens=written, total_tokens=read + written)
