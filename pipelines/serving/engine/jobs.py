"""Jobs: what a caller holds of a request that the engine works on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import numpy as np
from PIL import Image

Output = TypeVar("Output")


class EngineFull(RuntimeError):
    """Too many requests wait. `retry_after`: seconds after which there is likely to be room."""

    def __init__(self, limit: int, retry_after: int) -> None:
        super().__init__(f"{limit} requests are waiting, which is the limit: try again in {retry_after} s")
        self.retry_after = retry_after


class EngineStopping(RuntimeError):
    """The engine takes no new requests: it is about to end."""


class JobCancelled(RuntimeError):
    """The job was cancelled before its last output."""


class JobTimeout(RuntimeError):
    """The job took longer than the engine's limit."""


@dataclass(frozen=True)
class DrawnPicture:
    """One picture of a job, while it is drawn or complete.

    Attributes:
        number: of the picture in its job, 0 the first.
        image: what the codes decode to; places that are not drawn come from the codebook's mean.
        codes: (t,) int64, those before the first that is not drawn.
        seed: with which the picture can be had alone.
        total: codes of a complete picture.
        prompt_tokens: token ids that were read before its first code.
    """

    number: int
    image: Image.Image
    codes: np.ndarray
    seed: int
    total: int
    prompt_tokens: int

    @property
    def is_complete(self) -> bool:
        """Whether it is the final picture."""
        return len(self.codes) == self.total


@dataclass(frozen=True)
class Description:
    """A text for a picture.

    Attributes:
        prompt_tokens, text_tokens: how many were read and written for it.
        reason: why it ends: "stop", by itself, or "length", at the limit.
    """

    text: str
    prompt_tokens: int
    text_tokens: int
    reason: Literal["stop", "length"]


class Job(Generic[Output]):
    """A request under way. Its methods may be called from any thread.

    Args:
        count: how many outputs are final.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._outputs: list[Output] = []
        self._final: list[Output] = []
        self._error: BaseException | None = None
        self._ended = False
        self._cancelled = threading.Event()
        self._changed = threading.Condition()
        self._listeners: list[Callable[[], None]] = []

    def events(self, timeout: float | None = None) -> Iterator[Output]:
        """Every output as it comes, pictures that are not complete among them, until the job ends.

        Args:
            timeout: seconds to wait for the next output.

        Raises:
            TimeoutError: there was none in that time.
            JobCancelled, JobTimeout, ValueError, RuntimeError: why the job ended early.
        """
        number = 0
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: number < len(self._outputs) or self._ended, timeout):  # noqa: B023
                    raise TimeoutError(f"no output in {timeout} s")
                fresh = self._outputs[number:]
            if not fresh:
                break
            yield from fresh
            number += len(fresh)
        if self._error is not None:
            raise self._error

    def result(self, timeout: float | None = None) -> list[Output]:
        """The final outputs, in order. Raises as `events`, TimeoutError after so many seconds in all."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._ended, timeout):
                raise TimeoutError(f"not done in {timeout} s")
        if self._error is not None:
            raise self._error
        return list(self._final)

    def cancel(self) -> None:
        """Ask for the end of the job: its rows are free before the next step. Nothing happens where it has ended."""
        self._cancelled.set()

    @property
    def is_cancelled(self) -> bool:
        """Whether `cancel` was called."""
        return self._cancelled.is_set()

    @property
    def has_ended(self) -> bool:
        """Whether there is no more to come."""
        return self._ended

    def taken_from(self, number: int) -> tuple[list[Output], bool]:
        """The outputs from a number on, and whether the job has ended; does not wait."""
        with self._changed:
            return self._outputs[number:], self._ended

    def call_at_change(self, listener: Callable[[], None]) -> None:
        """Call a listener, in the engine's thread, after each output and at the end; at once where there are any."""
        with self._changed:
            self._listeners.append(listener)
            changed = bool(self._outputs) or self._ended
        if changed:
            listener()

    def give(self, output: Output, final: list[Output] | None = None) -> None:
        """Hand an output out (the engine's part); the last one with all final outputs in order, which ends the job."""
        with self._changed:
            self._outputs.append(output)
            if final is not None and not self._ended:
                self._final, self._ended = final, True
            listeners = self._notified()
        for listener in listeners:
            listener()

    def end(self, error: BaseException) -> None:
        """End the job early, with an error (the engine's part). Nothing happens where it has ended."""
        with self._changed:
            if self._ended:
                return
            self._error, self._ended = error, True
            listeners = self._notified()
        for listener in listeners:
            listener()

    def _notified(self) -> list[Callable[[], None]]:
        """Wake those that wait, and return whom to call once the lock is free."""
        self._changed.notify_all()
        return list(self._listeners)


DrawingJob = Job[DrawnPicture]
DescribingJob = Job[Description]
