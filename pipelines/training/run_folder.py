"""A run's folder: checkpoints, resume, metrics log, provenance.

<output_dir>/
    checkpoints/checkpoint-{step}/state.safetensors, state.json
    checkpoints/best/   the model with the averaged weights of the best validation, and best.json about it;
                        of a model with adapters, only what is trained
    samples/            pictures as training goes
    metrics.jsonl       one line per logged step
    first_part/         of a run of two parts (pipelines/training/two_parts.py): the same of the first
    run.json            command, settings, versions, commit, parameters, what was seen, whether it is finished
"""

from __future__ import annotations

import errno
import json
import os
import platform
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tqdm.auto import tqdm

from lm.files import published
from pipelines.machine.processes import from_main, tensors_from_main
from pipelines.machine.provenance import commit, versions
from pipelines.model_folder import named_folder
from pipelines.options.training import DEFAULT_MINUTES, TrainingOptions

# Options that may differ between a run and its continuation.
# Learning rates are among them, since a lower one is the way out of a loss that became NaN.
FREE_OPTIONS = {
    "resume", "overwrite", "allow_changes", "output_dir", "cpu_threads", "num_workers", "tracker", "max_steps",
    "max_minutes", "timeout_minutes", "learning_rate", "muon_learning_rate", "log_every", "validate_every",
    "sample_every", "checkpoint_every", "keep_best", "patience", "compile", "gradient_checkpointing",
    "text_check", "dry_run",
}  # fmt: skip
# Options that a run chooses for itself where they are not given; its continuation keeps what it has chosen.
CHOSEN_OPTIONS = {"batch_size"}
# What earlier versions noted of options that were not given, and that are noted as None now.
EARLIER_DEFAULTS = {"code_dim": 32, "weight_decay": 0.05}

FULL = (errno.ENOSPC, errno.EDQUOT)
FIRST_PART = "first_part"  # of a run whose second part is in the folder around it
DELETED = ("checkpoints", "samples", FIRST_PART)  # folders that --overwrite deletes
RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # as safetensors and tokenizers report it, in errors of their own


class NotWrittenError(OSError):
    """A file of a run could not be written.

    Attributes:
        what: which one, and why.
        is_full: whether there is no room for it.
    """

    def __init__(self, path: Path, error: Exception, remedy: str) -> None:
        reason = " ".join(str(error).split())
        self.what = f"{path} could not be written ({reason})"
        code = RUST_ERROR.search(reason)
        self.is_full = (int(code[1]) if code else getattr(error, "errno", None)) in FULL
        super().__init__(f"{self.what}: {remedy}")


class Run:
    """One training run's folder.

    Args:
        folder: the output directory.
        options: the script's options (a dataclass), kept in run.json; its `script`, if it has one, says which
            command the run is of.
        resume: go on from the last whole checkpoint, or start if there is none.
        overwrite: delete an earlier run in this folder first.
        is_main: only the main process reads and writes the folder. It tells the others what is there, so that they may
            be on nodes that do not see it.

    Raises:
        ValueError: the folder holds a run and neither `resume` nor `overwrite` is set, or a run of another command
            or with other settings.

    Attributes:
        part: which part of a run of several it is, for trackers; else empty.
    """

    def __init__(
        self,
        folder: str | Path,
        options: TrainingOptions,
        *,
        resume: bool = False,
        overwrite: bool = False,
        is_main: bool = True,
    ) -> None:
        self.folder = Path(folder)
        self.part = ""
        self.is_main = is_main
        self.options: dict[str, Any] = asdict(options)
        self.script: str | None = options.script
        self.checkpoints = self.folder / "checkpoints"
        self.samples = self.folder / "samples"
        self.metrics_file = self.folder / "metrics.jsonl"
        self.info_file = self.folder / "run.json"
        nearest = next(path for path in (self.folder, *self.folder.absolute().parents) if path.exists())
        if not nearest.is_dir():
            raise ValueError(f"--output_dir {self.folder}: {nearest} is a file; name a folder")
        exists = from_main(self.info_file.exists())
        if exists and not (resume or overwrite):
            raise ValueError(
                f"--output_dir {self.folder} already holds a run: pass --resume to go on with it, --overwrite to "
                "delete it, or name another folder"
            )
        self.overwrite = overwrite
        self._check_source()
        resuming = resume and exists
        reads = resuming and self.info_file.exists()
        self.info: dict[str, Any] = from_main(json.loads(self.info_file.read_text()) if reads else {})
        self._check_options()
        self._good: int | None = None  # step of the last checkpoint that was written or read whole

    def begin(self) -> None:
        """Make the folders; with `overwrite`, first remove what an earlier run wrote (and nothing else).

        Called once everything that can fail early has been checked, so that a mistyped option costs no run.
        """
        if not self.is_main:
            return
        if self.overwrite:
            for name in DELETED:
                shutil.rmtree(self.folder / name, ignore_errors=True)
            for file in (self.metrics_file, self.info_file):
                file.unlink(missing_ok=True)
            self.overwrite = False
        self.samples.mkdir(parents=True, exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        for leftover in self.checkpoints.glob("*.part*"):
            shutil.rmtree(leftover, ignore_errors=True)

    def _check_source(self) -> None:
        """Raise ValueError where --overwrite would delete what the run starts from."""
        name = self.options.get("init_from")
        if not (self.overwrite and name):
            return
        deleted = [(self.folder / one).resolve() for one in DELETED]
        if set(deleted) & {(source := named_folder(name).resolve()), *source.parents}:
            raise ValueError(
                f"--overwrite would delete --init_from {name}: copy that elsewhere first, or name another --output_dir"
            )

    def _check_options(self) -> None:
        """Raise ValueError where a continued run has other settings than it started with, `FREE_OPTIONS` apart. With
        --allow_changes, run.json lists the changes instead."""
        if self.info and self.info.get("script", self.script) != self.script:
            raise ValueError(
                f"{self.folder} holds a run of another command ({self.info.get('script')}, not {self.script}): name "
                "another --output_dir"
            )
        before = dict(self.info.get("options", {}))
        for name in CHOSEN_OPTIONS & before.keys():
            before[name] = self.info.get(name) if before[name] is None else before[name]
        changed = [
            f"--{name} was {before[name]!r}, now {value!r}"
            for name, value in self.options.items()
            if name in before
            and name not in FREE_OPTIONS
            and before[name] != json.loads(json.dumps(value))
            and not (value is None and (name in CHOSEN_OPTIONS or before[name] == EARLIER_DEFAULTS.get(name)))
        ]
        if changed and not self.options.get("allow_changes"):
            raise ValueError(
                f"{self.folder} was started with other settings: {'; '.join(changed)}. Give the same ones to resume, "
                "pass --allow_changes to go on with the new ones, or name another --output_dir"
            )
        if changed:
            self.info["changes"] = [*self.info.get("changes", []), *changed]

    @property
    def finished(self) -> bool:
        """Whether the run in this folder came to the end of the budget that it is given now."""
        if not self.info.get("finished"):
            return False
        if self.info.get("stopped_early"):
            return self.stays_stopped
        return not self._has_more_than({"max_steps": self.info.get("steps"), "max_minutes": self.info.get("minutes")})

    @property
    def stays_stopped(self) -> bool:
        """Whether the run stopped early, and is given neither another patience nor a larger budget now."""
        stopped = self.info.get("stopped_early")
        if not stopped or self.options.get("patience") != stopped["patience"]:
            return False
        return not self._has_more_than({name: stopped[name] for name in ("max_steps", "max_minutes")})

    def _has_more_than(self, budgets: dict[str, float | None]) -> bool:
        """Whether the options have a larger budget than one of these."""
        return any(most is not None and (self.options.get(name) or 0) > most for name, most in budgets.items())

    def stop_early(self, patience: float) -> None:
        """Note that the run ends before its budget is spent: it is finished, and goes on with a larger budget or
        another patience."""
        budgets = {name: self.options.get(name) for name in ("max_steps", "max_minutes")}
        if not any(budgets.values()):
            budgets["max_minutes"] = DEFAULT_MINUTES
        self.info["stopped_early"] = {"patience": patience, **budgets}

    @property
    def is_removed(self) -> bool:
        """Whether the folder of a run that has begun is no longer there; False in all processes but the main one."""
        return self.is_main and not self.info_file.exists()

    def sample_file(self, name: str) -> Path:
        """Where a picture goes; its folder is there."""
        self.samples.mkdir(parents=True, exist_ok=True)
        return self.samples / name

    def write_info(self, **values: Any) -> None:
        """Merge `values` into run.json, beside command, options, versions and commit."""
        if not self.is_main:
            return
        base = {
            "script": self.script,
            "command": shlex.join(sys.argv),
            "options": self.options,
            "versions": versions(),
            "commit": commit(),
            "machine": {"platform": platform.platform(), "cpu_threads": torch.get_num_threads()},
            "started": self.info.get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z")),
        }
        self.info = {**self.info, **base, **values}
        write_text(self.info_file, json.dumps(self.info, indent=1) + "\n")

    def write_end(self, step: int, seconds: float, batch_size: int, figures: dict[str, float], **values: Any) -> None:
        """Say in run.json that the run came to its end, and how: `seconds` of training, `figures` of validation."""
        end = {"steps": step, "minutes": seconds / 60, "validation": figures, "pictures_seen": step * batch_size}
        self.write_info(finished=True, **end, **values)

    def log(self, step: int, **values: float | int | str) -> None:
        """Append a line to metrics.jsonl.

        Raises:
            NotWrittenError: it could not be written.
        """
        if not self.is_main:
            return
        with self.writing(self.metrics_file):
            self.folder.mkdir(parents=True, exist_ok=True)  # may have been removed; the loop notices after the step
            with self.metrics_file.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")

    def save_checkpoint(
        self, step: int, tensors: dict[str, torch.Tensor], state: dict[str, Any], keep: int = 2
    ) -> None:
        """Write checkpoint-{step} aside, rename it, then delete all but the newest `keep`.

        A run that is killed, or a disk that is full, at any moment leaves the last whole checkpoint. Where the disk has
        no room, the others go first, and it is tried again.

        Raises:
            NotWrittenError: it could not be written.
        """
        if not self.is_main:
            return

        def write(folder: Path) -> None:
            whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
            save_file(whole, folder / "state.safetensors")
            (folder / "state.json").write_text(json.dumps({"step": step, **state}) + "\n")

        try:
            self.save_folder(f"checkpoint-{step}", write)
        except NotWrittenError as error:
            others = [old for old in self._steps() if old != self._good]
            if not error.is_full or self._good is None or not others:
                raise
            for old in others:
                shutil.rmtree(self.checkpoints / f"checkpoint-{old}", ignore_errors=True)
            names = ", ".join(f"checkpoint-{old}" for old in others)
            tqdm.write(f"{error.what}: deleted {names} to make room, kept checkpoint-{self._good}, trying again")
            self.save_folder(f"checkpoint-{step}", write)
        self._good = step
        for old in self._steps()[:-keep]:
            shutil.rmtree(self.checkpoints / f"checkpoint-{old}", ignore_errors=True)

    def save_folder(self, name: str, write: Callable[[Path], None]) -> None:
        """Have `write` fill a folder beside checkpoints/{name}, then put it in that one's place.

        Raises:
            NotWrittenError: it could not be written; what was there before still is.
        """
        if not self.is_main:
            return
        target = self.checkpoints / name
        with self.writing(target), published(target) as aside:
            aside.mkdir()
            write(aside)
            for file in aside.rglob("*"):
                if file.is_file():
                    sync(file)

    @contextmanager
    def writing(self, path: Path) -> Iterator[None]:
        """Inside, what the disk does not take, by whatever library, raises a NotWrittenError about `path`."""
        try:
            yield
        except Exception as error:
            if not isinstance(error, (OSError, SafetensorError)) and not RUST_ERROR.search(str(error)):
                raise
            remedy = f"{self.last_good()}. Make room, or mend what is wrong with the disk, and go on with --resume"
            raise NotWrittenError(path, error, remedy) from error

    def last_good(self) -> str:
        """Words about the newest checkpoint."""
        steps = self._steps()
        return f"checkpoint-{steps[-1]} is the last good one" if steps else "there is no checkpoint yet"

    def _steps(self) -> list[int]:
        """Steps of the whole checkpoints, oldest first."""
        names = [path.name for path in self.checkpoints.glob("checkpoint-*")] if self.checkpoints.is_dir() else []
        return sorted(int(name.split("-")[1]) for name in names if re.fullmatch(r"checkpoint-\d+", name))

    @property
    def has_checkpoint(self) -> bool:
        """Whether there is a whole checkpoint."""
        return bool(self._steps())

    def load_checkpoint(self) -> tuple[dict[str, torch.Tensor], dict[str, Any]] | None:
        """Tensors and state of the newest checkpoint that is whole, or None. Cuts metrics.jsonl back to it. To be
        called in all processes; the main one reads, and the others are told.

        Raises:
            ValueError: there are checkpoints, and none of them can be read.
        """
        loaded, problem = self._read_checkpoint() if self.is_main else (None, "")
        if problem := from_main(problem):
            raise ValueError(problem)
        state = from_main(loaded and loaded[1])
        if state is None:
            return None
        return tensors_from_main(loaded[0] if loaded else {}), state

    def _read_checkpoint(self) -> tuple[tuple[dict[str, torch.Tensor], dict[str, Any]] | None, str]:
        """Tensors and state of the newest checkpoint that is whole, if there is one, and why none of several is."""
        steps, damaged = self._steps(), ""
        for step in reversed(steps):
            folder = self.checkpoints / f"checkpoint-{step}"
            try:
                loaded = load_file(folder / "state.safetensors"), json.loads((folder / "state.json").read_text())
            except (OSError, SafetensorError, ValueError) as error:
                damaged = f"{folder} is damaged ({' '.join(str(error).split())})"
                tqdm.write(f"{damaged}: looking for an older checkpoint")
                continue
            self._cut_metrics(step)
            self._good = step
            return loaded, ""
        if damaged:
            return None, f"{damaged}, and there is no older one: start again with --overwrite"
        self._cut_metrics(0)
        return None, ""

    def _cut_metrics(self, last_step: int) -> None:
        """Drop what was logged after the checkpoint, and a line that was cut off in the middle."""
        if not self.is_main or not self.metrics_file.exists():
            return
        kept = []
        for line in self.metrics_file.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= last_step:
                    kept.append(line + "\n")
            except (ValueError, KeyError):
                continue
        write_text(self.metrics_file, "".join(kept))


def write_text(file: Path, text: str) -> None:
    """Write a file, which is never half written under its name."""
    with published(file) as aside:
        aside.write_text(text)


def sync(file: Path) -> None:
    """Have the operating system put a file on disk before its folder gets its name."""
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def peak_memory() -> float:
    """Most memory that this process has held, in GB (on a GPU: that PyTorch has held there)."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e9
    try:
        import resource
    except ImportError:  # Windows
        return psutil.Process().memory_info().peak_wset / 1e9  # type: ignore[attr-defined]
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
