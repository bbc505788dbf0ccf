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

# `accelerate launch` as it may be called: the name of a program or, after -m, of a module.
_LAUNCHERS = {"accelerate-launch", "accelerate.commands.launch"}
_WITH_LAUNCH = {"accelerate", "accelerate.commands.accelerate_cli"}
_follows_launcher = threading.Event()
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


def end_with_launcher() -> None:
    """On Linux, until `termination` ends, get SIGTERM when `accelerate launch` dies, whatever it dies of.

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
    if _is_launcher(words):
        _set_death_signal(signal.SIGTERM)
        _follows_launcher.set()
        if os.getppid() != parent:  # it died in between
            os.kill(os.getpid(), signal.SIGTERM)


def _is_launcher(words: list[str]) -> bool:
    """Whether this is a command line of `accelerate launch`, with or without an interpreter before it."""
    return any(
        Path(word).name in _LAUNCHERS or (Path(word).name in _WITH_LAUNCH and after == "launch")
        for word, after in zip(words[:3], [*words[1:], ""], strict=False)
    )


def _set_death_signal(number: int) -> None:
    ctypes.CDLL(None).prctl(_SET_DEATH_SIGNAL, number)


@contextmanager
def termination() -> Iterator[threading.Event]:
    """Inside, SIGTERM sets the event and does nothing else. Where signals cannot be caught (in a thread), never.

    At the end, `end_with_launcher` ends too: what is written last, and trackers' last words, are not cut off.
    """
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
        if _follows_launcher.is_set():  # not where somebody else has set one, as torch.multiprocessing does
            _set_death_signal(0)
        signal.signal(signal.SIGTERM, before)
