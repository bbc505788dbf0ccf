"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`.

An answer says what the client can do, and nothing of the server: no path, no trace, no version.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from pipelines.serving.engine.jobs import EngineFull, EngineStopping, JobCancelled, JobTimeout

logger = logging.getLogger(__name__)
FAILED = "the server failed to answer this request; its log says why"
TOLD = {404: "there is no such address: GET /openapi.json lists them", 405: "this address has other methods"}


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class ErrorBody(BaseModel):
    """The body of every answer that is an error."""

    error: ErrorDetail


class APIError(HTTPException):
    """An answer that is an error. It is an `HTTPException` because FastAPI lets no other one out of reading a body."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(status, message, dict(headers or {}))
        self.param, self.code = param, code

    def body(self) -> dict[str, Any]:
        """JSON of the answer."""
        kind = {401: "authentication_error", 429: "rate_limit_error"}.get(self.status_code)
        kind = kind or ("server_error" if self.status_code >= 500 else "invalid_request_error")
        detail = {"message": self.detail, "type": kind, "param": self.param, "code": self.code}
        return {"error": detail}

    def response(self) -> JSONResponse:
        """The answer."""
        return JSONResponse(self.body(), self.status_code, self.headers)


def api_error(error: BaseException) -> APIError:
    """The answer to an error of the engine, or of anything else."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, EngineFull):
        return APIError(429, str(error), code="too_many_requests", headers={"Retry-After": str(error.retry_after)})
    if isinstance(error, EngineStopping):
        return APIError(503, str(error), code="server_stopping", headers={"Retry-After": "5"})
    if isinstance(error, JobTimeout):
        return APIError(408, str(error), code="request_timeout", headers={"x-should-retry": "false"})
    if isinstance(error, JobCancelled):
        return APIError(499, str(error), code="request_cancelled")
    return APIError(500, FAILED)


def refused(error: ValueError | TypeError) -> APIError:
    """The answer to a request that the engine refuses."""
    return APIError(400, str(error), code="invalid_value")


def _of_validation(error: RequestValidationError) -> APIError:
    """The first mistake in a body, in words."""
    first = error.errors()[0]
    place = [str(part) for part in first["loc"] if part not in ("body", "query", "path")]
    param = ".".join(place) or None
    if first["type"] == "json_invalid":
        return APIError(400, "the body is not JSON", code="invalid_json")
    if first["type"] == "extra_forbidden":
        return APIError(400, f"unknown parameter {param!r}", param=param, code="unknown_parameter")
    if first["type"] == "missing":
        return APIError(400, f"{param or 'a body'} is missing", param=param, code="missing_required_parameter")
    message = first["msg"].removeprefix("Value error, ")
    return APIError(400, f"{param or 'the body'}: {message}", param=param, code="invalid_value")


def add_error_handlers(application: FastAPI) -> None:
    """Answer every error of an application in this shape."""

    async def known(request: Request, error: Exception) -> JSONResponse:
        return api_error(error).response()

    async def invalid(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, RequestValidationError)
        return _of_validation(error).response()

    async def http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        message = TOLD.get(error.status_code, "the request cannot be read")
        return APIError(error.status_code, message, headers=error.headers).response()

    async def unknown(request: Request, error: Exception) -> JSONResponse:
        return APIError(500, FAILED).response()  # the server logs it with its trace

    for kind in (APIError, EngineFull, EngineStopping, JobTimeout, JobCancelled):
        application.add_exception_handler(kind, known)
    application.add_exception_handler(RequestValidationError, invalid)
    application.add_exception_handler(HTTPException, http)
    application.add_exception_handler(Exception, unknown)
