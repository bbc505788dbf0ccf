"""Figures for Prometheus at /metrics: requests, their times, pictures, what waits and what is under way."""

from __future__ import annotations

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipelines.serving.engine.engine import DrawingEngine

SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ServerMetrics:
    """The figures of one server. They have a registry of their own: the default one tells versions."""

    def __init__(self, engine: DrawingEngine) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter("tessera_requests", "Answers", ["endpoint", "status"], registry=registry)
        self.seconds = Histogram(
            "tessera_request_seconds", "Time to the last byte of an answer", ["endpoint"],
            buckets=SECONDS, registry=registry,
        )  # fmt: skip
        self.pictures = Counter("tessera_pictures", "Complete pictures that were sent", registry=registry)
        self.descriptions = Counter("tessera_descriptions", "Descriptions that were sent", registry=registry)
        waiting = Gauge("tessera_waiting_requests", "Requests of which nothing is under way", registry=registry)
        waiting.set_function(lambda: engine.num_waiting)
        under_way = Gauge("tessera_rows_under_way", "Pictures and texts under way", registry=registry)
        under_way.set_function(lambda: engine.num_under_way)

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self._registry)


class MeteredApplication:
    """Counts the answers of an application, by endpoint and status."""

    def __init__(self, app: ASGIApp, metrics: ServerMetrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status, start = 0, time.perf_counter()

        async def watched(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watched)
        finally:
            # The route's pattern, not the path: a client cannot make labels.
            endpoint = getattr(scope.get("route"), "path", "other") or "other"
            self._metrics.requests.labels(endpoint, str(status or 499)).inc()
            self._metrics.seconds.labels(endpoint).observe(time.perf_counter() - start)
