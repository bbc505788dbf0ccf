"""What the options of a server are to its engine and to its endpoint."""

from __future__ import annotations

from pipelines.options.serving import ServingOptions
from pipelines.serving.endpoint.context import ServingSettings
from pipelines.serving.engine.engine import EngineLimits


def engine_limits(options: ServingOptions) -> EngineLimits:
    """What requests may ask of the engine."""
    return EngineLimits(
        pictures_at_once=options.pictures_at_once,
        images_per_request=options.images_per_request,
        prompt_tokens=options.prompt_tokens,
        description_tokens=options.description_tokens,
        waiting_requests=options.waiting_requests,
        seconds=options.request_seconds,
    )


def serving_settings(options: ServingOptions) -> ServingSettings:
    """How the endpoint answers."""
    return ServingSettings(
        model_name=options.served_name,
        api_key=options.api_key,
        allowed_origins=tuple(options.allowed_origins),
        body_bytes=options.body_bytes,
        upload_pixels=options.upload_pixels,
        body_seconds=options.request_seconds,
    )
