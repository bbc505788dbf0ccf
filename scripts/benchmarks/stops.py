"""Stop training in its middle, resume it, and compare the final weights with those of a run that is not disturbed.

    python scripts/benchmarks/stops.py --output rows.json

Runs both training commands with small models, in float32, on captioned pictures that it draws. Signals, a full disk,
weights that are not numbers, and data and output folders that are removed come at a random step; docs/scaling.md says
how each should end. The full disk is one in memory (tmpfs), which only root can mount; other users are root in
`unshare --user --map-root-user --mount`.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import Row, row, show, write_rows
from scripts.benchmarks.resume import TIMEOUT, RunOptions, Stage, Training, stages, train_tokenizer, wait_for
from scripts.benchmarks.stop_causes import CAUSES, NO_PIXEL_CACHE, Cause, Trial

PICTURES = 200
DISK_MEGABYTES = 32
LOG_TAIL = 4096  # bytes that hold the last lines of metrics.jsonl
NETWORK = ("--image_size", "16", "--patch_size", "4", "--hidden_sizes", "8", "16", "--codebook_sizes", "64")
LM = (
    "--num_layers", "1", "--hidden_size", "32", "--intermediate_size", "64", "--num_heads", "1", "--text_vocab_size",
    "300",
)  # fmt: skip


@dataclass(kw_only=True)
class Options(RunOptions):
    """Training that is stopped and resumed."""

    max_steps: int = option(1000, "steps of each run", above_zero=True)
    checkpoint_every: int = option(100, "steps between checkpoints", above_zero=True)
    repeats: int = option(1, "how often each stage is stopped by each cause", above_zero=True)
    causes: list[str] = option([], "names of causes (default: all)")

    def __post_init__(self) -> None:
        super().__post_init__()
        unknown = set(self.causes) - {cause.name for cause in CAUSES}
        if unknown:
            known = ", ".join(cause.name for cause in CAUSES)
            raise ValueError(f"--causes {' '.join(sorted(unknown))}: choose among {known}")


@dataclass(frozen=True)
class Outcome:
    """How a run was stopped and went on.

    Attributes:
        code, said: exit code and lines on the screen, from when the cause came until the end.
        repeated: steps that were done before the end and again after `--resume`.
        resumed: whether it then came to its end.
        equal: whether the final weights are those of the run that was not disturbed.
    """

    code: int
    said: list[str]
    repeated: int
    resumed: bool
    equal: bool


def last_step(training: Training) -> int:
    """The last step in metrics.jsonl; 0 without one."""
    try:
        with training.metrics.open("rb") as file:
            file.seek(max(0, training.metrics.stat().st_size - LOG_TAIL))
            found = re.findall(rb'"step": (\d+),.*\n', file.read())
    except FileNotFoundError:
        return 0
    return int(found[-1]) if found else 0


def lines_from(file: Path, start: int) -> list[str]:
    """What was printed from a byte on, without the line that this is in, progress bars and figures."""
    text = file.read_bytes()[start:].decode(errors="replace").replace("\r", "\n")
    lines = [line.strip() for line in text.split("\n")[1:]]
    return [line for line in lines if line and "%|" not in line and not re.match(r"step \d+: validation", line)]


def wait_for_step(trial: Trial, step: int) -> int:
    """Wait until a step has been logged; how long the log on the screen was before it.

    Raises:
        ValueError: the run ended before.
    """
    training, lengths = trial.training, [0, 0]

    def is_logged() -> bool:
        lengths.append(training.log.stat().st_size)
        return last_step(training) >= step

    if not wait_for(is_logged, trial.process, 0.005) and last_step(training) < step:
        raise ValueError(f"training failed: {training.log.read_text()[-500:]}")
    return lengths[-2]


def stop(cause: Cause, trial: Trial, at: int, final_weights: bytes) -> Outcome:
    """Let it happen to a run after a step, wait for the end, and resume once it is mended."""
    training = trial.training
    start = wait_for_step(trial, at)
    with cause.happens(trial):
        code = trial.process.wait(TIMEOUT)
        if cause.resumes_inside:
            start = training.log.stat().st_size - 1
            code = training.start().wait(TIMEOUT)
    said = lines_from(training.log, start)
    told = re.search(r"(?:after|at) step (\d+)", " ".join(said))
    stopped_at = int(told[1]) if told else last_step(training)
    start = training.log.stat().st_size
    resumed = training.finish()
    went_on = re.search(r"resumed from step (\d+)", "\n".join(lines_from(training.log, max(0, start - 1))))
    repeated = 0 if code == 0 else stopped_at - (int(went_on[1]) if went_on else 0)
    return Outcome(code, said, repeated, resumed, resumed and training.weights() == final_weights)


@contextmanager
def place(folder: Path, on_small_disk: bool) -> Iterator[bool]:
    """Inside, `folder` is there, or is a disk of its own of `DISK_MEGABYTES`; whether it could be made that."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MEGABYTES}m", "tmpfs", str(folder)]
    mounted = on_small_disk and shutil.which("mount") and subprocess.run(mount, capture_output=True).returncode == 0
    try:
        yield bool(mounted) or not on_small_disk
    finally:
        if mounted:
            subprocess.run(["umount", str(folder)], check=True)
        shutil.rmtree(folder)


def measure(name: str, stage: Stage, root: Path, options: Options, cause: Cause, final_weights: bytes) -> list[Row]:
    """Stop a stage's runs by one cause."""
    expected = cause.codes[name == "stage_2"]
    if expected is None:
        return []
    chance = random.Random(f"{options.seed} {name} {cause.name}")
    outcomes: list[Outcome] = []
    for number in range(options.repeats):
        at = chance.randrange(3 * options.max_steps // 10, 7 * options.max_steps // 10)
        folder = root / f"{name}-{cause.name}-{number}"
        with place(folder, cause.on_small_disk) as is_ready:
            if not is_ready:
                break
            training = Training(stage, folder / "run", options, root / f"{folder.name}.txt")
            own_cache = cause.changes == NO_PIXEL_CACHE
            cache = {"TESSERA_CACHE": str(root / f"{folder.name}-pictures" if own_cache else root / "cache")}
            process = training.start(cause.changes.replace("{at}", str(at)), cache)
            outcomes.append(stop(cause, Trial(training, process, root / "pictures"), at, final_weights))
        print(f"{name}, {cause.name} at step {at}: {outcomes[-1]}", flush=True)
    count, unit = options.repeats, f"of {options.repeats}"
    if not outcomes:
        return [row(f"stops/{name}/{cause.name}/exit_code_{expected}", None, unit, count, True)]
    most = options.checkpoint_every if cause.most_repeated is None else cause.most_repeated
    figures = {
        f"exit_code_{expected}": sum(outcome.code == expected for outcome in outcomes),
        "one_sentence": sum(len(outcome.said) == 1 for outcome in outcomes) if expected else None,
        "resumed": sum(outcome.resumed for outcome in outcomes),
        "equal_weights": sum(outcome.equal for outcome in outcomes),
    }
    return [
        *(row(f"stops/{name}/{cause.name}/{what}", value, unit, count, True)
          for what, value in figures.items() if value is not None),
        row(f"stops/{name}/{cause.name}/repeated_steps", max(outcome.repeated for outcome in outcomes), "steps", most),
    ]  # fmt: skip


def draw_pictures(folder: Path) -> None:
    """Captioned pictures of the built-in world: 000.jpg, 000.txt, ..."""
    from tokenizer_image.sprites.data_set import SpriteDataset

    folder.mkdir()
    sprites = SpriteDataset(num_examples=PICTURES)
    for number in range(PICTURES):
        sprites.image(number).save(folder / f"{number:03d}.jpg")
        (folder / f"{number:03d}.txt").write_text(sprites.texts(number)[0] + "\n")


def main(options: Options) -> None:
    """Stop and resume; a table on the screen, rows in the file."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["TESSERA_CACHE"] = str(root / "cache")
        draw_pictures(root / "pictures")
        data = ("--dataset", str(root / "pictures"), "--num_workers", "0")
        both = stages(root, data, NETWORK, LM)
        train_tokenizer(both["stage_1"], root, options)
        undisturbed = {name: Training(stage, root / f"{name}-undisturbed", options) for name, stage in both.items()}
        for training in undisturbed.values():
            training.run_undisturbed()
        for cause in CAUSES:
            for name, stage in both.items():
                if not options.causes or cause.name in options.causes:
                    rows += measure(name, stage, root, options, cause, undisturbed[name].weights())
            write_rows(options.output, rows)
    show(rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
