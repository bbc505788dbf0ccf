"""SIGTERM, which schedulers send before they take a machine away: finish the step, write a checkpoint, go."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

# What a run that was told to end exits with: 128 + SIGTERM, as shells say it. It goes on with --resume.
EXIT_CODE = 143

LAUNCHERS = {"accelerate", "accelerate-launch", "accelerate.commands.launch"}  # as they may be called
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def end_with_launcher() -> None:
    """On Linux, get SIGTERM when `accelerate launch` dies, whatever it dies of.

    With one process it passes no signal on: told to end, it would go and leave the training behind. torchrun, which it
    calls for several, does pass them on.
    """
    if not sys.platform.startswith("linux"):
        return
    parent = os.getppid()
    try:
        words = Path(f"/proc/{parent}/cmdline").read_text(errors="replace").split("\0")
    except OSError:
        return
    if LAUNCHERS & {Path(word).name for word in words}:
        ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os.kill(os.getpid(), signal.SIGTERM)


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
