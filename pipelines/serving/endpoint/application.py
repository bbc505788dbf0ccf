"""The HTTP application: an endpoint in OpenAI's shape around an engine, on which the page is mounted too.

    engine = DrawingEngine(pipeline)
    application = create_application(engine, ServingSettings(model_name="sprites"))

It can be served by uvicorn, or by anything else that serves ASGI, such as Ray Serve. Its end stops the engine: what is
under way is finished.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from starlette.concurrency import run_in_threadpool
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from pipelines.serving.endpoint.chat import chat_router
from pipelines.serving.endpoint.context import Served, ServingSettings
from pipelines.serving.endpoint.errors import APIError, ErrorBody, add_error_handlers
from pipelines.serving.endpoint.guards import BodyGuard, KeyGuard
from pipelines.serving.endpoint.images import images_router
from pipelines.serving.endpoint.metrics import MeteredApplication, ServerMetrics
from pipelines.serving.endpoint.schemas import ModelCard, ModelList
from pipelines.serving.engine.engine import DrawingEngine

INTERFACE_VERSION = "1"  # of the endpoint, in its OpenAPI schema
ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": words}
    for status, words in {
        400: "A parameter is wrong",
        401: "The API key is missing or wrong",
        404: "There is no such model",
        408: "The request took too long",
        413: "The body is too large",
        429: "Too many requests wait",
        500: "The server failed",
        503: "The server is about to end",
    }.items()
}
TEXT_FORMAT = "text/plain; version=0.0.4; charset=utf-8"  # Prometheus'


def create_application(engine: DrawingEngine, settings: ServingSettings | None = None) -> FastAPI:
    """The endpoint of an engine.

    Raises:
        ValueError: an empty API key.
    """
    settings = settings or ServingSettings()
    if settings.api_key is not None and not settings.api_key.strip():
        raise ValueError("the API key is empty: give a key, or None to let everyone in")
    metrics = ServerMetrics(engine)
    served = Served(engine, settings, metrics)

    @asynccontextmanager
    async def lifespan(application: FastAPI) -> AsyncIterator[None]:
        yield
        engine.stop()
        await run_in_threadpool(engine.join)

    application = FastAPI(
        title="Tessera", version=INTERFACE_VERSION, lifespan=lifespan, docs_url=None, redoc_url=None, responses=ERRORS
    )
    application.include_router(images_router(served))
    application.include_router(chat_router(served))
    _add_models(application, served)
    _add_health(application, served)
    add_error_handlers(application)
    _describe_own_errors(application)
    # The last one added is the first that a request meets.
    application.add_middleware(BodyGuard, most_bytes=settings.body_bytes, seconds=settings.body_seconds)
    if settings.api_key is not None:
        application.add_middleware(KeyGuard, key=settings.api_key)
    if settings.allowed_origins:
        application.add_middleware(
            CORSMiddleware, allow_origins=list(settings.allowed_origins), allow_methods=["GET", "POST"],
            allow_headers=["Authorization", "Content-Type"],
        )  # fmt: skip
    application.add_middleware(MeteredApplication, metrics=metrics)
    return application


def _add_models(application: FastAPI, served: Served) -> None:
    @application.get("/v1/models", tags=["models"])
    async def models() -> ModelList:
        """The model that is served."""
        return ModelList(data=[served.card()])

    @application.get("/v1/models/{name}", tags=["models"])
    async def model(name: str) -> ModelCard:
        """The model of this name."""
        served.check_model(name)
        return served.card()


def _add_health(application: FastAPI, served: Served) -> None:
    @application.get("/healthz", tags=["server"])
    async def health() -> dict[str, str]:
        """Whether the server works."""
        if not served.engine.is_alive and not served.engine.is_stopping:
            raise APIError(500, "the engine has ended", code="server_failed")
        return {"status": "ok"}

    @application.get("/readyz", tags=["server"])
    async def ready() -> dict[str, str]:
        """Whether it takes new requests."""
        if served.engine.is_stopping or not served.engine.is_alive:
            raise APIError(503, "the server is about to end", code="server_stopping")
        return {"status": "ready"}

    @application.get("/metrics", tags=["server"], response_class=Response)
    async def metrics() -> Response:
        """Figures for Prometheus."""
        return Response(served.metrics.text(), media_type=TEXT_FORMAT)


def _describe_own_errors(application: FastAPI) -> None:
    """Leave FastAPI's own answer to a wrong body out of the schema: such errors are 400 here."""
    own = application.openapi

    def described() -> dict[str, Any]:
        schema = own()
        for operations in schema["paths"].values():
            for operation in operations.values():
                operation.get("responses", {}).pop("422", None)
        for name in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(name, None)
        return schema

    application.openapi = described  # type: ignore[method-assign]
