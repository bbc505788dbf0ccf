"""What stands before the endpoints: the key, the size of a body, and the time it may take to arrive."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.endpoint.errors import APIError

OPEN_PATHS = ("/healthz", "/readyz")  # answered without a key


class KeyGuard:
    """Lets requests with the key pass: `Authorization: Bearer KEY`, or, so that browsers can ask for it, the password
    of HTTP Basic.

    Args:
        key: not empty.
    """

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app, self._key = app, key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or self._fits(Headers(scope=scope)):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            challenge = "Bearer" if scope["path"].startswith("/v1/") else 'Basic realm="key as the password"'
            error = APIError(
                401, "a valid API key is needed: send the header Authorization: Bearer KEY", code="invalid_api_key",
                headers={"WWW-Authenticate": challenge},
            )  # fmt: skip
            await error.response()(scope, receive, send)

    def _fits(self, headers: Headers) -> bool:
        scheme, _, value = headers.get("authorization", "").partition(" ")
        given = value.strip().encode("latin-1", "replace")
        if scheme.lower() == "basic":
            try:
                given = base64.b64decode(given, validate=True).partition(b":")[2]
            except binascii.Error:
                return False
        elif scheme.lower() != "bearer":
            return False
        return hmac.compare_digest(given, self._key)  # takes as long whatever is wrong


class BodyGuard:
    """Refuses a body that is larger than `most_bytes`, or takes more than `seconds` to arrive."""

    def __init__(self, app: ASGIApp, most_bytes: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most_bytes, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        length = Headers(scope=scope).get("content-length", "")
        if length.isdigit() and int(length) > self._most:
            await self._too_large().response()(scope, receive, send)
            return
        read, deadline, complete = 0, asyncio.get_running_loop().time() + self._seconds, False

        async def guarded() -> Message:
            nonlocal read, complete
            if complete:  # what comes now is the end of the connection
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):  # `wait_for` would make a task of each message
                    message = await receive()
            except TimeoutError:
                words = f"the body took more than {self._seconds:g} s to arrive"
                raise APIError(408, words, code="request_timeout") from None
            read += len(message.get("body", b""))
            complete = not message.get("more_body", False)
            if read > self._most:
                raise self._too_large()
            return message

        started = False

        async def watched(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, guarded, watched)
        except APIError as error:
            if started:
                raise
            await error.response()(scope, receive, send)

    def _too_large(self) -> APIError:
        return APIError(413, f"the body is larger than {self._most:,} bytes, which is the limit", code="body_too_large")
