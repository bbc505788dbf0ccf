"""Kill training at random instants, resume it, and compare the final weights with those of an uninterrupted run.

    python scripts/benchmarks/resume.py --output rows.json
    python scripts/benchmarks/resume.py --losses --stage stage_1 --kills 10 --output rows.json

Runs both training commands with small models, in float32, in which the weights can be equal to the last bit. Each kill
comes at random within a random step, the time before the first and after the last one included; every other one then
waits until a checkpoint is being written.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pipelines.options.option import option
from pipelines.options.parser import run_command
from pipelines.training.run_folder import FIRST_PART
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, show, write_rows

SCRIPTS = Path(__file__).resolve().parents[1]
LOSSES = ("--photographs", "--adversarial_weight", "0.5", "--adversarial_start", "0.1")
TIMEOUT = 3600.0  # seconds that a run may take, on a busy machine too
CHANGED = "import runpy, sys\nsys.argv = sys.argv[1:]\n{}\nrunpy.run_path(sys.argv[0], run_name='__main__')"


@dataclass(kw_only=True)
class RunOptions(BenchmarkOptions):
    """Training that does not come to its end at once."""

    max_steps: int = option(60, "steps of each run", above_zero=True)
    checkpoint_every: int = option(4, "steps between checkpoints", above_zero=True)
    seed: int = option(0, "seed of the instants", not_negative=True)
    cpu_threads: int | None = option(1, "PyTorch's threads", above_zero=True)


@dataclass(kw_only=True)
class Options(RunOptions):
    """Training that is killed and resumed."""

    kills: int = option(20, "how many runs to kill, each once; with both stages half of them in each", above_zero=True)
    stage: str = option("both", "which command to kill", choices=("both", "stage_1", "stage_2"))
    lm_size: str = option("2M", "size of the language model; checkpoints of larger ones take longer to write")
    losses: bool = option(False, "stage 1 as for photographs, with a perceptual loss and a discriminator")


@dataclass(frozen=True)
class Stage:
    """One of the two training commands.

    Attributes:
        script: its file.
        arguments: those that only this stage takes.
        weights: the file of the final weights, in the output folder.
    """

    script: str
    arguments: tuple[str, ...]
    weights: str


def stages(root: Path, data: Sequence[str], network: Sequence[str], lm: Sequence[str]) -> dict[str, Stage]:
    """Stage 1, and stage 2 on the tokenizer in `root`, by name.

    Args:
        data: arguments of both that choose the data set.
        network, lm: arguments that choose the sizes of stage 1 and of stage 2.
    """
    sources = ("--image_tokenizer", str(root / "tokenizer"))
    return {
        "stage_1": Stage("train_tokenizer.py", (*data, *network), "model.safetensors"),
        "stage_2": Stage("train_lm.py", (*data, *sources, *lm), "lm/model.safetensors"),
    }


def train_tokenizer(stage: Stage, root: Path, options: RunOptions) -> None:
    """The tokenizer of stage 2, by a few steps of stage 1.

    Raises:
        ValueError: training failed.
    """
    Training(stage, root / "tokenizer", replace(options, max_steps=3)).run_undisturbed()


class Training:
    """One run in a folder of its own.

    Attributes:
        log: the file of what it prints.
        metrics: the file of its figures; of a run of two parts, those of the second.
        folders: its folder, behind that of its first part, where it has two.
    """

    def __init__(self, stage: Stage, folder: Path, options: RunOptions, log: Path | None = None) -> None:
        self.stage, self.folder, self.options = stage, folder, options
        self.log = log or folder.with_name(f"{folder.name}.txt")
        self.metrics = folder / "metrics.jsonl"
        self.folders = (folder / FIRST_PART, folder)

    def start(self, changes: str = "", environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        """Start or resume.

        Args:
            changes: Python code that is run before the command, in its process.
            environment: beside this process's.
        """
        self.folder.mkdir(exist_ok=True)
        command = [
            sys.executable, *(["-c", CHANGED.format(changes)] if changes else []),
            str(SCRIPTS / self.stage.script), *self.stage.arguments,
            "--output_dir", str(self.folder), "--max_steps", str(self.options.max_steps), "--checkpoint_every",
            str(self.options.checkpoint_every), "--mixed_precision", "no", "--batch_size", "8", "--validate_every",
            "10", "--sample_every", "0", "--log_every", "1", "--resume",
            *([] if self.options.cpu_threads is None else ["--cpu_threads", str(self.options.cpu_threads)]),
        ]  # fmt: skip
        with self.log.open("a") as log:
            return subprocess.Popen(
                command, stdout=log, stderr=subprocess.STDOUT, env={**os.environ, **(environment or {})}
            )

    def finish(self) -> bool:
        """Resume and wait; whether it ended well."""
        return self.start().wait(TIMEOUT) == 0

    def run_undisturbed(self) -> None:
        """Start and wait. Raises ValueError where it does not end well."""
        if not self.finish():
            raise ValueError(f"training failed: {self.log.read_text()[-500:]}")

    def writes(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(any((folder / "checkpoints").glob("*.part*")) for folder in self.folders)

    def began(self) -> bool:
        """Whether the run has begun: from then on a kill can do harm."""
        return (self.folder / "run.json").exists()

    def logged(self) -> int:
        """How many steps are in the log."""
        return sum('"loss"' in line for line in self._metrics())

    def weights(self) -> bytes:
        """The file of the final weights."""
        return (self.folder / self.stage.weights).read_bytes()

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every logged step."""
        lines = [json.loads(line) for line in self._metrics()]
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]

    def seconds(self) -> float:
        """Training time of a run that has ended."""
        return 60 * json.loads((self.folder / "run.json").read_text())["minutes"]

    def _metrics(self) -> list[str]:
        """The lines of its figures."""
        files = [folder / "metrics.jsonl" for folder in self.folders]
        return [line for file in files if file.exists() for line in file.read_text().splitlines()]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes], every: float = 0.0005) -> bool:
    """Wait until `condition()`, which is looked at `every` so many seconds; False if the process has ended first."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(every)
    return False


@dataclass
class Kill:
    """How a run was killed: before it ended by itself, and while a checkpoint was being written."""

    before_the_end: bool
    while_writing: bool


def kill(training: Training, while_writing: bool, step: int, after: float) -> Kill:
    """Start, and SIGKILL `after` seconds after step `step` was logged (0: after the run began), or with `while_writing`
    at the first moment from then on at which a checkpoint is being written."""
    process = training.start()
    wait_for(training.began, process)
    wait_for(lambda: training.logged() >= step, process)
    until = time.monotonic() + after
    wait_for(lambda: time.monotonic() > until, process)
    if while_writing:
        wait_for(training.writes, process)
    process.send_signal(signal.SIGKILL)
    return Kill(process.wait() == -signal.SIGKILL, training.writes())


def measure(name: str, stage: Stage, root: Path, options: Options, kills: int) -> list[Row]:
    """Kill `kills` runs of a stage once each, resume them, and compare them with a run that is not disturbed."""
    from tqdm import tqdm

    chance = random.Random(f"{options.seed} {name}")
    undisturbed = Training(stage, root / f"{name}-undisturbed", options)
    undisturbed.run_undisturbed()
    seconds = undisturbed.seconds() / options.max_steps
    equal = resumed = writing = same_losses = in_time = 0
    bar = tqdm(range(kills), desc=f"kills of {name}")
    for number in bar:
        training = Training(stage, root / f"{name}-{number}", options)
        step = chance.randint(0, options.max_steps - (number % 2) * options.checkpoint_every)
        found = kill(training, number % 2 == 1, step, chance.uniform(0, seconds))
        writing, in_time = writing + found.while_writing, in_time + found.before_the_end
        resumed += (ended := training.finish())
        equal += ended and training.weights() == undisturbed.weights()
        same_losses += ended and training.losses() == undisturbed.losses()
        shutil.rmtree(training.folder)
        bar.set_postfix(resumed=resumed, equal=equal, losses=same_losses, in_time=in_time, writing=writing)
    return [
        row(f"resume/{name}/resumed", resumed, f"of {kills}", kills, True),
        row(f"resume/{name}/equal_weights", equal, f"of {kills}", kills, True),
        row(f"resume/{name}/equal_losses", same_losses, f"of {kills}", kills, True),
        row(f"resume/{name}/killed_before_the_end", in_time, f"of {kills}", None, True),
        row(f"resume/{name}/killed_while_writing", writing, f"of {kills}", None, True),
    ]


def main(options: Options) -> None:
    """Kill and resume; a table on the screen, rows in the file."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        lm = ("--token_cache", str(root / "cache"), "--lm_size", options.lm_size)
        network = ("--hidden_sizes", "16", "32", "--patch_size", "4", *(LOSSES if options.losses else ()))
        both = stages(root, ("--max_examples", "2000"), network, lm)
        train_tokenizer(both["stage_1"], root, options)
        chosen = {name: stage for name, stage in both.items() if options.stage in ("both", name)}
        for number, (name, stage) in enumerate(chosen.items()):
            rows += measure(name, stage, root, options, (options.kills + len(chosen) - 1 - number) // len(chosen))
    show(rows)
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
