"""Kill training at random instants, resume it, and compare the final weights with those of an uninterrupted run.

    python scripts/benchmarks/resume.py --output rows.json

Runs scripts/train_lm.py on a small model, in float32, in which the weights can be equal to the last bit. Every other
kill waits until a checkpoint is being written; the others come at any time after the first checkpoint has begun.
"""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, show, write_rows

SCRIPTS = Path(__file__).resolve().parents[1]
TIMEOUT = 600.0  # seconds that a run may take


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Training that is killed and resumed."""

    kills: int = option(20, "how many runs to kill, each once", above_zero=True)
    max_steps: int = option(60, "steps of each run", above_zero=True)
    checkpoint_every: int = option(4, "steps between checkpoints", above_zero=True)
    lm_size: str = option("2M", "size of the language model; checkpoints of larger ones take longer to write")
    seed: int = option(0, "seed of the instants")
    cpu_threads: int | None = option(1, "PyTorch's threads")


class Training:
    """One run of scripts/train_lm.py in a folder of its own."""

    def __init__(self, root: Path, name: str, options: Options) -> None:
        self.root, self.folder, self.options = root, root / name, options

    def start(self) -> subprocess.Popen[bytes]:
        """Start or resume."""
        self.folder.mkdir(exist_ok=True)
        command = [
            sys.executable, str(SCRIPTS / "train_lm.py"), "--image_tokenizer", str(self.root / "tokenizer"),
            "--token_cache", str(self.root / "cache"), "--max_examples", "2000", "--output_dir", str(self.folder),
            "--max_steps", str(self.options.max_steps), "--checkpoint_every", str(self.options.checkpoint_every),
            "--lm_size", self.options.lm_size, "--mixed_precision", "no", "--batch_size", "8",
            "--validate_every", "10", "--sample_every", "0", "--log_every", "1", "--resume",
            *([] if self.options.cpu_threads is None else ["--cpu_threads", str(self.options.cpu_threads)]),
        ]  # fmt: skip
        with (self.folder / "log.txt").open("a") as log:
            return subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def finish(self) -> bool:
        """Resume and wait; whether it ended well."""
        return self.start().wait(TIMEOUT) == 0

    def writes(self) -> bool:
        """Whether a checkpoint is being written."""
        return any((self.folder / "checkpoints").glob("*.part*"))

    def began_checkpoints(self) -> bool:
        """Whether the first checkpoint has at least begun."""
        return any((self.folder / "checkpoints").glob("checkpoint-*"))

    def weights(self) -> bytes:
        """The file of the final weights."""
        return (self.folder / "lm" / "model.safetensors").read_bytes()

    def losses(self) -> list[tuple[int, float]]:
        """(step, loss) of every logged step."""
        lines = [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]
        return [(line["step"], line["loss"]) for line in lines if "loss" in line]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> bool:
    """Wait until `condition()`; False if the process has ended first."""
    while process.poll() is None:
        if condition():
            return True
        time.sleep(0.0005)
    return False


def kill(training: Training, while_writing: bool, after: float) -> bool:
    """Start, and SIGKILL `after` seconds after the first checkpoint began, or with `while_writing` at the first moment
    from then on at which a checkpoint is being written; whether one was."""
    process = training.start()
    wait_for(training.began_checkpoints, process)
    until = time.monotonic() + after
    wait_for(lambda: time.monotonic() > until, process)
    if while_writing:
        wait_for(training.writes, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    return training.writes()


def main(options: Options) -> None:
    """Kill and resume; a table on the screen, rows in the file."""
    from tqdm import tqdm

    chance = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        subprocess.run(
            [
                sys.executable, str(SCRIPTS / "train_tokenizer.py"), "--max_examples", "2000", "--max_steps", "3",
                "--output_dir", str(root / "tokenizer"), "--hidden_sizes", "16", "32", "--patch_size", "4",
            ],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        undisturbed = Training(root, "undisturbed", options)
        if not undisturbed.finish():
            raise ValueError(f"training failed: {(undisturbed.folder / 'log.txt').read_text()[-500:]}")
        lines = (undisturbed.folder / "metrics.jsonl").read_text().splitlines()
        seconds = max(json.loads(line).get("seconds", 0.0) for line in lines)
        equal = resumed = writing = same_losses = 0
        for number in tqdm(range(options.kills), desc="kills"):
            training = Training(root, f"killed-{number}", options)
            writing += kill(training, number % 2 == 1, chance.uniform(0, 0.8 * seconds))
            resumed += (ended := training.finish())
            equal += ended and training.weights() == undisturbed.weights()
            same_losses += ended and training.losses() == undisturbed.losses()
    rows: list[Row] = [
        row("resume/resumed", resumed, f"of {options.kills}", options.kills, True),
        row("resume/equal_weights", equal, f"of {options.kills}", options.kills, True),
        row("resume/equal_losses", same_losses, f"of {options.kills}", options.kills, True),
        row("resume/killed_while_writing", writing, f"of {options.kills}", None, True),
    ]
    show(rows)
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
