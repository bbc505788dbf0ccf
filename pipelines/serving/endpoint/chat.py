"""Describing in the shape of OpenAI's chat completions: a message with a picture, answered with a text."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from pipelines.serving.endpoint.context import Served
from pipelines.serving.endpoint.errors import APIError
from pipelines.serving.endpoint.schemas import ChatAnswer, ChatAnswerMessage, ChatBody, ChatChoice, ChatUsage
from pipelines.serving.endpoint.uploads import of_data_url
from pipelines.serving.endpoint.waiting import result_of
from pipelines.serving.engine.jobs import Description
from pipelines.serving.engine.requests import DescribeRequest

PICTURE = "messages.content.image_url"


def chat_router(served: Served) -> APIRouter:
    """The endpoint that describes."""
    router = APIRouter(prefix="/v1/chat", tags=["chat"])

    @router.post("/completions", response_model=ChatAnswer)
    async def complete(request: Request, body: ChatBody) -> Any:
        """Describe the last picture of the messages. Their texts are ignored: the model does not chat."""
        served.check_model(body.model)
        limit = body.max_completion_tokens if body.max_completion_tokens is not None else body.max_tokens
        most = served.engine.limits.description_tokens
        async with served.reading:
            image = (await served.picture(_last_picture(body), PICTURE)).convert("RGB")
            describing = DescribeRequest(
                image=image, max_new_tokens=None if limit is None else min(limit, most), best_of=body.best_of,
                temperature=_temperature(body), top_k=body.top_k or 0, top_p=body.top_p or 1.0, min_p=body.min_p or 0.0,
                seed=body.seed,
            )  # fmt: skip
            job = await run_in_threadpool(served.describe, describing)
        del image, describing  # a large one is not kept until the answer is there
        (description,) = await result_of(job, request)
        served.metrics.descriptions.inc()
        answer = _answer(served.settings.model_name, description)
        if body.stream:
            return StreamingResponse(_stream(answer), media_type="text/event-stream")
        return answer

    return router


def _temperature(body: ChatBody) -> float | None:
    """Clients send 1 or 0 from habit; with best_of, 0 would write the same text each time."""
    return None if body.best_of and body.best_of > 1 and body.temperature == 0 else body.temperature


def _last_picture(body: ChatBody) -> bytes:
    """The content of the last picture's file."""
    for message in reversed(body.messages):
        for part in reversed(message.content if isinstance(message.content, list) else []):
            if part.type == "image_url" and part.image_url is not None:
                try:
                    return of_data_url(part.image_url.url, PICTURE)
                except ValueError as error:
                    raise APIError(400, str(error), param=PICTURE, code="invalid_image") from error
    raise APIError(
        400, "there is no picture to describe: send a content part of type image_url", param="messages",
        code="missing_required_parameter",
    )  # fmt: skip


def _answer(model: str, description: Description) -> ChatAnswer:
    read, written = description.prompt_tokens, description.text_tokens
    return ChatAnswer(
        id=f"chatcmpl-{secrets.token_hex(12)}",
        created=int(time.time()),
        model=model,
        choices=[ChatChoice(message=ChatAnswerMessage(content=description.text), finish_reason=description.reason)],
        usage=ChatUsage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written),
    )


async def _stream(answer: ChatAnswer) -> AsyncIterator[str]:
    """The whole text as one event: a description is short, and the best of several is known at the end."""
    head = {"id": answer.id, "object": "chat.completion.chunk", "created": answer.created, "model": answer.model}
    choice = answer.choices[0]
    parts: list[tuple[dict[str, str], str | None]] = [
        ({"role": "assistant", "content": choice.message.content}, None),
        ({}, choice.finish_reason),
    ]
    for delta, reason in parts:
        chunk = {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}
        yield f"data: {json.dumps(chunk)}\n\n"
    yield "data: [DONE]\n\n"
