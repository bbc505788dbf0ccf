"""Signals that ask a run to end: it finishes the step, writes a checkpoint and exits.

Schedulers send SIGTERM before they take a machine away; Ctrl-C sends SIGINT.
"""

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

# `accelerate launch` as it may be called: the name of a program or, after -m, of a module.
_LAUNCHERS = {"accelerate-launch", "accelerate.commands.launch"}
_WITH_LAUNCH = {"accelerate", "accelerate.commands.accelerate_cli"}
_follows_launcher = threading.Event()
_SET_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of <linux/prctl.h>


class Termination:
    """A signal that asks this process to end: SIGTERM, or SIGINT (Ctrl-C).

    Attributes:
        exit_code: 0 until a signal came, then 128 and its number, as shells report it.
    """

    def __init__(self) -> None:
        self.exit_code = 0

    @staticmethod
    def name_of(exit_code: int) -> str:
        """Name of the signal with this exit code."""
        return signal.Signals(exit_code - 128).name

    def receive(self, number: int, frame: FrameType | None) -> None:
        """A handler of signals. A second Ctrl-C raises KeyboardInterrupt: it ends the process at once."""
        if number == signal.SIGINT == self.exit_code - 128:
            raise KeyboardInterrupt
        self.exit_code = 128 + number


def end_with_launcher() -> None:
    """On Linux, until `termination` ends, get SIGTERM when `accelerate launch` ends, for whatever reason.

    With one process, `accelerate launch` passes no signal on: it would end and leave the training behind. torchrun,
    which it calls for several processes, does pass them on.
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
        if os.getppid() != parent:  # it ended in between
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
def termination() -> Iterator[Termination]:
    """Inside, SIGTERM and a first Ctrl-C are only recorded. In a thread, where signals cannot be caught, nothing is.

    At the end, `end_with_launcher` ends too: what is written last, and the trackers' last uploads, are not cut off.
    """
    received = Termination()
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    before = {number: signal.signal(number, received.receive) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield received
    finally:
        if _follows_launcher.is_set():  # not where another library has set one, as torch.multiprocessing does
            _set_death_signal(0)
        for number, handler in before.items():
            signal.signal(number, handler)
