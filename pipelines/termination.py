"""SIGTERM, which schedulers send before they take a machine away: finish the step, write a checkpoint, go."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

# What a run that was told to end exits with: 128 + SIGTERM, as shells say it. It goes on with --resume.
EXIT_CODE = 143


@contextmanager
def termination() -> Iterator[threading.Event]:
    """Inside, SIGTERM sets the event and does nothing else. Where signals cannot be caught (in a thread), never."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def tell(number: int, frame: FrameType | None) -> None:
        told.set()

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
