"""What stops a training run in its middle, each with the exit code that docs/scaling.md promises for it."""

from __future__ import annotations

import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from scripts.benchmarks.resume import TIMEOUT, Training, wait_for

# Changes of a run's code: weights that a step has broken, and pictures that are too many for the pixel cache.
BROKEN_WEIGHTS = """
import torch
from pipelines.training.loop import Loop
finish_step = Loop.finish_step
def finish_and_break(loop, *figures, **named):
    finish_step(loop, *figures, **named)
    if loop.progress.step == {at}:
        with torch.no_grad():
            next(loop.state.model.parameters()).fill_(torch.nan)
Loop.finish_step = finish_and_break
"""
NO_PIXEL_CACHE = "from pipelines.caching import pixel_cache\npixel_cache._fits = lambda *_: False"


@dataclass(frozen=True)
class Trial:
    """A run that is at work, and where its pictures lie."""

    training: Training
    process: subprocess.Popen[bytes]
    pictures: Path

    def last_checkpoint(self) -> int:
        """Step of the newest whole checkpoint."""
        names = [path.name for path in self.training.folder.glob("checkpoints/checkpoint-*")]
        return max((int(name.split("-")[1]) for name in names if name.count("-") == 1), default=0)

    @contextmanager
    def without(self, folder: Path) -> Iterator[None]:
        """Inside, a folder is elsewhere."""
        elsewhere = folder.with_name(f"{folder.name}-elsewhere")
        folder.rename(elsewhere)
        yield
        elsewhere.rename(folder)

    @contextmanager
    def disk_with(self, checkpoints: float) -> Iterator[None]:
        """Inside, the disk of the run has room for no more than so many checkpoints."""
        file = self.training.folder.with_name("other_files")
        one = max(path.stat().st_size for path in self.training.folder.glob("checkpoints/checkpoint-*/*"))
        with file.open("wb", buffering=0) as handle:
            try:
                left = shutil.disk_usage(file.parent).free - int(checkpoints * one)
                while left > 0:
                    left -= handle.write(bytes(min(left, 4096)))
            except OSError:  # now it is full
                pass
        yield
        file.unlink()

    @contextmanager
    def disk_too_small_once(self) -> Iterator[None]:
        """The disk has had no room for a checkpoint until the next one came."""
        before = self.last_checkpoint()
        with self.disk_with(0.9):
            wait_for(lambda: self.last_checkpoint() > before, self.process, 0.005)
        yield

    @contextmanager
    def without_pictures_after(self, number: int) -> Iterator[None]:
        """Inside, the run has ended by a signal, and the pictures are gone."""
        self.process.send_signal(number)
        self.process.wait(TIMEOUT)
        with self.without(self.pictures):
            yield

    @contextmanager
    def without_output(self) -> Iterator[None]:
        """The run's folder is deleted while it writes there."""
        subprocess.run(["rm", "-rf", str(self.training.folder)], check=False)
        yield

    @contextmanager
    def signalled(self, number: int) -> Iterator[None]:
        """A signal has been sent."""
        self.process.send_signal(number)
        yield


@dataclass(frozen=True)
class Cause:
    """What stops a run.

    Attributes:
        codes: exit codes that it should end with, of stage 1 and of stage 2; None: it does not apply to that one.
        happens: a context in which it is so; afterwards it is mended.
        changes: of the run's code; `{at}` stands for the step.
        on_small_disk: the run is on a disk that can be filled.
        resumes_inside: the run is resumed before it is mended, and the exit code is of that.
        most_repeated: steps that `--resume` may do again; None: those since the last of the checkpoints.
    """

    name: str
    codes: tuple[int | None, int | None]
    happens: Callable[[Trial], AbstractContextManager[None]]
    changes: str = ""
    on_small_disk: bool = False
    resumes_inside: bool = False
    most_repeated: int | None = 0


CAUSES = (
    Cause("ctrl_c", (130, 130), lambda trial: trial.signalled(signal.SIGINT)),
    Cause("sigterm", (143, 143), lambda trial: trial.signalled(signal.SIGTERM)),
    Cause("full_disk", (1, 1), lambda trial: trial.disk_with(0), on_small_disk=True),
    Cause("no_room_for_checkpoint", (0, 0), lambda trial: trial.disk_too_small_once(), on_small_disk=True),
    Cause("nan", (1, 1), lambda trial: nullcontext(), BROKEN_WEIGHTS, most_repeated=None),
    Cause("removed_data_set", (0, 0), lambda trial: trial.without(trial.pictures)),
    Cause("removed_data_set_on_resume", (1, 0), lambda trial: trial.without_pictures_after(signal.SIGTERM),
          resumes_inside=True),
    Cause("removed_data_set_not_in_cache", (1, None), lambda trial: trial.without(trial.pictures), NO_PIXEL_CACHE),
    Cause("removed_output_folder", (1, 1), lambda trial: trial.without_output()),
)  # fmt: skip
