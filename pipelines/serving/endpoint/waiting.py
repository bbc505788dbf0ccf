"""Jobs of the engine, awaited in the server's event loop; a client that goes away cancels its job."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TypeVar

from starlette.requests import Request

from pipelines.serving.endpoint.errors import refused
from pipelines.serving.engine.jobs import Job

Output = TypeVar("Output")


async def outputs_of(job: Job[Output]) -> AsyncIterator[list[Output]]:
    """The job's outputs as they come, together those that came since the last.

    Raises:
        ValueError, JobCancelled, JobTimeout, RuntimeError: as `Job.events`.
    """
    loop, changed, number = asyncio.get_running_loop(), asyncio.Event(), 0

    def tell() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(changed.set)

    job.call_at_change(tell)
    while True:
        outputs, ended = job.taken_from(number)
        if outputs:
            yield outputs
        number += len(outputs)
        if ended:
            job.result()  # raises the job's error
            return
        await changed.wait()
        changed.clear()


async def events_of(job: Job[Output]) -> AsyncIterator[Output]:
    """The job's outputs as they come. Whoever stops listening cancels the job.

    Raises:
        APIError: a picture that cannot be encoded.
        JobCancelled, JobTimeout, RuntimeError: as `Job.events`.
    """
    try:
        async for outputs in outputs_of(job):
            for output in outputs:
                yield output
    except (ValueError, TypeError) as error:
        raise refused(error) from error
    finally:
        job.cancel()


async def result_of(job: Job[Output], request: Request) -> list[Output]:
    """The job's final outputs. A client that goes away cancels the job.

    Raises:
        APIError, JobCancelled, JobTimeout, RuntimeError: as `events_of`.
    """
    leaving = asyncio.create_task(_cancel_when_gone(job, request))
    try:
        async for _ in events_of(job):
            pass
        return job.result()
    finally:
        leaving.cancel()


async def _cancel_when_gone(job: Job[Output], request: Request) -> None:
    """Cancel a job when the client has closed the connection; the request's body must have been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    job.cancel()
