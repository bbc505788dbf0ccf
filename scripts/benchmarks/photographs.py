"""What perceptual and adversarial losses buy on photographs, beside squared error alone, in the same time.

    python scripts/benchmarks/photographs.py --dataset path/to/photos64 --split test --image_size 64 --output rows.json

Trains stage 1 twice, with the same network: with squared error alone, and as `train_tokenizer.py` does by default.
With --lm_minutes, stage 2 follows on each tokenizer, and pictures are drawn for every caption of the split.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.machine.processors import usable_cores
from pipelines.options.option import option
from pipelines.options.parser import run_command
from pipelines.training.run_folder import FIRST_PART
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, show, write_rows

SCRIPTS = Path(__file__).resolve().parents[1]
PLAIN, LOSSES = "squared_error", "losses"
ARGUMENTS = {PLAIN: ("--perceptual_weight", "0", "--adversarial_weight", "0"), LOSSES: ()}


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Stage 1 with and without perceptual and adversarial losses."""

    dataset: str = option("photos64", "data set of photographs")
    split: str = option("test", "split that is measured")
    image_size: int = option(64, "side of the pictures in pixels", above_zero=True)
    minutes: float = option(30.0, "training time of each image tokenizer", above_zero=True)
    lm_minutes: float = option(0.0, "training time of each language model; 0: stage 1 alone", not_negative=True)
    batch_size: int = option(32, "pictures a step of stage 1", above_zero=True)
    hidden_sizes: list[int] = option([], "widths of both networks (default: those of the preset)", above_zero=True)
    drawn_per_caption: int = option(50, "pictures drawn for each caption", above_zero=True)
    max_examples: int | None = option(None, "pictures of the split that are measured (default: all)", above_zero=True)
    extractor_size: int | None = option(
        None, "side that pictures are resized to for both networks (default: their own, 240 and 260)", above_zero=True
    )
    together: bool = option(False, "train both at once, each on half of the cores")
    folder: str | None = option(None, "keep the runs in this folder (default: a temporary one)")


def run_all(commands: list[list[str]], logs: list[Path], *, together: bool) -> None:
    """Run commands, one after the other or at once.

    Raises:
        ValueError: one of them failed; the message has the end of its log.
    """
    for part in (
        [list(zip(commands, logs, strict=True))] if together else [[one] for one in zip(commands, logs, strict=True)]
    ):
        running = []
        for command, log in part:
            with log.open("w") as file:
                running.append(subprocess.Popen([sys.executable, *command], stdout=file, stderr=subprocess.STDOUT))
        for process, (command, log) in zip(running, part, strict=True):
            if process.wait():
                raise ValueError(f"{' '.join(command)} failed: {log.read_text()[-500:]}")


def train(options: Options, root: Path, threads: int) -> None:
    """Both stages of both kinds, into {root}/{kind}_tokenizer and {root}/{kind}_model."""
    data = ("--dataset", options.dataset)
    tokenizers = [
        [
            str(SCRIPTS / "train_tokenizer.py"), *data, "--image_size", str(options.image_size), "--max_minutes",
            str(options.minutes), "--batch_size", str(options.batch_size), "--cpu_threads", str(threads),
            "--photographs", "--overwrite", "--output_dir", str(root / f"{kind}_tokenizer"), *arguments,
            *(("--hidden_sizes", *map(str, options.hidden_sizes)) if options.hidden_sizes else ()),
        ]
        for kind, arguments in ARGUMENTS.items()
    ]  # fmt: skip
    run_all(tokenizers, [root / f"{kind}_tokenizer.log" for kind in ARGUMENTS], together=options.together)
    if not options.lm_minutes:
        return
    models = [
        [
            str(SCRIPTS / "train_lm.py"), *data, "--image_tokenizer", str(root / f"{kind}_tokenizer"), "--max_minutes",
            str(options.lm_minutes), "--cpu_threads", str(threads), "--overwrite", "--output_dir",
            str(root / f"{kind}_model"),
        ]
        for kind in ARGUMENTS
    ]  # fmt: skip
    run_all(models, [root / f"{kind}_model.log" for kind in ARGUMENTS], together=options.together)


def measured(options: Options, root: Path, kind: str) -> dict[str, Any]:
    """The report of `evaluate.py` on a kind's model, or on its tokenizer alone."""
    subject = (
        ("--model", str(root / f"{kind}_model"), "--drawn_per_caption", str(options.drawn_per_caption))
        if options.lm_minutes
        else ("--image_tokenizer", str(root / f"{kind}_tokenizer"))
    )
    report = root / f"{kind}.json"
    command = [
        str(SCRIPTS / "evaluate.py"), *subject, "--dataset", options.dataset, "--split", options.split, "--extractor",
        "efficientnet_lite1", "--classifier", "efficientnet_lite2", "--output", str(report),
        *(() if options.max_examples is None else ("--max_examples", str(options.max_examples))),
        *(() if options.extractor_size is None else ("--extractor_size", str(options.extractor_size))),
    ]  # fmt: skip
    run_all([command], [root / f"{kind}_evaluation.log"], together=False)
    return json.loads(report.read_text())


def steps_a_second(folder: Path) -> float:
    """Of a finished run; of one of two parts, in the second, whose loss has all terms."""
    info = json.loads((folder / "run.json").read_text())
    before = info.get(FIRST_PART, {"steps": 0, "minutes": 0.0})
    return (info["steps"] - before["steps"]) / (60 * (info["minutes"] - before["minutes"]))


def rows_of(options: Options, root: Path) -> list[Row]:
    """Both kinds' figures, and their ratios."""
    reports = {kind: measured(options, root, kind) for kind in ARGUMENTS}
    speed = {kind: steps_a_second(root / f"{kind}_tokenizer") for kind in ARGUMENTS}
    quality = {kind: report["reconstruction"] for kind, report in reports.items()}
    compared = {kind: report["compared"] for kind, report in reports.items()}
    rows = [row("photographs/real/class_among_five", compared[PLAIN]["real"]["class_among_five"], "", None, True)]
    for kind in ARGUMENTS:
        rows += [
            row(f"photographs/{kind}/steps_a_second", speed[kind], "1/s", None, True),
            row(f"photographs/{kind}/psnr", quality[kind]["psnr"], "dB", None, True),
            row(f"photographs/{kind}/grid_ratio", quality[kind]["grid_ratio"], "", None, False),
        ]
        for name in ("reconstructed", "drawn"):
            found = compared[kind].get(name, {})
            rows += [
                row(f"photographs/{kind}/{name}/{figure}", found[figure], "", None, figure != "frechet")
                for figure in ("frechet", "class_first", "class_among_five")
                if figure in found
            ]
    ratio = {name: compared[LOSSES][name]["frechet"] / compared[PLAIN][name]["frechet"] for name in _sets(compared)}
    rows += [
        row("photographs/reconstructed/frechet_ratio", ratio["reconstructed"], "x", 0.5, False),
        row("photographs/psnr_lost", quality[PLAIN]["psnr"] - quality[LOSSES]["psnr"], "dB", 1.5, False),
        row("photographs/grid_ratio", quality[LOSSES]["grid_ratio"], "x", 1.2, False),
        row("photographs/speed_ratio", speed[LOSSES] / speed[PLAIN], "x", 0.6, True),
    ]
    if "drawn" in ratio:
        named = compared[LOSSES]["drawn"]["class_among_five"] / compared[LOSSES]["real"]["class_among_five"]
        rows += [
            row("photographs/drawn/frechet_ratio", ratio["drawn"], "x", 0.6, False),
            row("photographs/drawn/class_among_five_over_real", named, "x", 0.6, True),
        ]
    return rows


def _sets(compared: dict[str, dict[str, Any]]) -> list[str]:
    return [name for name in ("reconstructed", "drawn") if all(name in report for report in compared.values())]


def main(options: Options) -> None:
    """Train both kinds, measure them; a table on the screen, rows in the file."""
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(options.folder or temporary)
        root.mkdir(parents=True, exist_ok=True)
        cores = usable_cores()
        train(options, root, options.cpu_threads or (max(1, cores // 2) if options.together else cores))
        rows = rows_of(options, root)
    show(rows)
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
