"""Jobs of the page's visitors: one each, so that what they stop, or leave behind, is found."""

from __future__ import annotations

import threading

from pipelines.serving.engine.jobs import Job


class SessionJobs:
    """The job that each session has under way. A new job of a session takes the place of the one before it."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    def begin(self, session: str, job: Job) -> None:
        """Note a session's job and cancel the one before it."""
        with self._lock:
            before = self._jobs.get(session)
            self._jobs[session] = job
        if before is not None:
            before.cancel()

    def end(self, session: str, job: Job) -> None:
        """Forget a job; it is cancelled where it has not ended."""
        job.cancel()
        with self._lock:
            if self._jobs.get(session) is job:
                del self._jobs[session]

    def is_current(self, session: str, job: Job) -> bool:
        """Whether no other job has taken its place."""
        return self._jobs.get(session) is job

    @property
    def any_under_way(self) -> bool:
        """Whether any session has a job."""
        return bool(self._jobs)

    def cancel(self, session: str) -> None:
        """Cancel what a session has under way; nothing happens where there is nothing."""
        with self._lock:
            job = self._jobs.get(session)
        if job is not None:
            job.cancel()
