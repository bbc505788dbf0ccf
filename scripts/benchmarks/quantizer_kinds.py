"""All kinds of quantizers at equal or nearly equal bits a picture, and the effect of their settings.

    python scripts/benchmarks/quantizer_kinds.py --dataset path/to/cifar10 --output_dir runs/kinds

Trains a tokenizer for each with scripts/train_tokenizer.py, measures it on the test split with scripts/evaluate.py, and
prints a table in Markdown. Tokenizers that --output_dir already holds are not trained again.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

from pipelines.machine.destinations import check_folder
from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, write_rows

SCRIPTS = Path(__file__).resolve().parents[1]
NETWORK = "--image_size 32 --patch_size 4 --hidden_sizes 128"  # 8x8 places
# 64 places of 12 bits, or 64 of 9 and 16 of 12 on two levels: 768 bits a picture.
KINDS = {
    "ema": "--quantizer ema --codebook_sizes 4096",
    "ema, rotation trick": "--quantizer ema --codebook_sizes 4096 --rotation_trick",
    "gradient": "--quantizer gradient --codebook_sizes 4096",
    "cosine": "--quantizer cosine --codebook_sizes 4096",
    "grouped": "--quantizer grouped --codebook_sizes 64 64",
    "residual": "--quantizer residual --codebook_sizes 64 64",
    "residual, shared codebook": "--quantizer residual --codebook_sizes 64 64 --shared_codebook",
    "grouped_residual": "--quantizer grouped_residual --codebook_sizes 8 8 8 8",
    "finite_scalar": "--quantizer finite_scalar --codebook_sizes 4096",
    "lookup_free": "--quantizer lookup_free --codebook_sizes 4096",
    "binary_spherical": "--quantizer binary_spherical --codebook_sizes 4096",
    "ema, 2 levels": "--quantizer ema --num_levels 2 --codebook_sizes 4096 512",
}
SETTINGS = {
    "ema": "--quantizer ema --codebook_sizes 4096",
    "decay 0.8": "--quantizer ema --codebook_sizes 4096 --codebook_decay 0.8",
    "decay 0.999": "--quantizer ema --codebook_sizes 4096 --codebook_decay 0.999",
    "no revival": "--quantizer ema --codebook_sizes 4096 --revival_threshold 0",
    "no k-means start": "--quantizer ema --codebook_sizes 4096 --kmeans_start false",
    "neither": "--quantizer ema --codebook_sizes 4096 --kmeans_start false --revival_threshold 0",
    "code_dim 8": "--quantizer ema --codebook_sizes 4096 --code_dim 8",
    "code_dim 128": "--quantizer ema --codebook_sizes 4096 --code_dim 128",
}
LARGE = {
    "ema": "--quantizer ema --codebook_sizes 16384 --batch_size 256",
    "cosine": "--quantizer cosine --codebook_sizes 16384 --batch_size 256",
}
TABLES = {"kinds": (KINDS, 4.0), "settings": (SETTINGS, 4.0), "large": (LARGE, 15.0)}


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Quantizers side by side."""

    dataset: str = option(MISSING, "pictures with splits train and test: a folder, or a name on the Hub")
    output_dir: str = option("runs/kinds", "folder of the tokenizers, one for each row")
    table: str = option("kinds", "'kinds'; 'settings' of the codebook; 'large': 16,384 codes (15 minutes each)")
    minutes: float | None = option(None, "minutes of training, each (default: 4; of 'large' 15)", above_zero=True)
    only: list[str] | None = option(None, "rows of the table, by name")
    jobs: int = option(1, "how many to train at a time", above_zero=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder(self.output_dir, "--output_dir")
        if self.table not in TABLES:
            raise ValueError(f"--table {self.table}: choose one of {', '.join(TABLES)}")
        for name in self.only or []:
            if name not in TABLES[self.table][0]:
                raise ValueError(f"--only {name!r}: choose from {', '.join(map(repr, TABLES[self.table][0]))}")


def run(script: str, *arguments: str, log: Path) -> None:
    """Run one of our scripts to its end; its output goes to `log`."""
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise ValueError(f"{script} ended with exit code {done.returncode}: see {log}")


def measure(name: str, arguments: str, options: Options) -> dict[str, Any]:
    """The figures of one row: train and measure its tokenizer, unless --output_dir holds its report already."""
    folder = Path(options.output_dir) / options.table / name.replace(",", "").replace(" ", "_")
    folder.mkdir(parents=True, exist_ok=True)
    minutes = TABLES[options.table][1] if options.minutes is None else options.minutes
    threads = [] if options.cpu_threads is None else ["--cpu_threads", str(options.cpu_threads)]
    report = folder / "report.json"
    if not report.is_file():
        run(
            "train_tokenizer.py", *NETWORK.split(), *arguments.split(), *threads,
            "--dataset", options.dataset, "--output_dir", str(folder / "tokenizer"), "--max_minutes", str(minutes),
            "--resume", "--validate_every", "0", "--sample_every", "0", "--checkpoint_every", "0",
            log=folder / "training.txt",
        )  # fmt: skip
        run(
            "evaluate.py", *threads, "--image_tokenizer", str(folder / "tokenizer"), "--dataset", options.dataset,
            "--split", "test", "--output", str(report), log=folder / "evaluation.txt",
        )  # fmt: skip
    return figures(folder / "tokenizer", json.loads(report.read_text()))


def figures(folder: Path, report: dict[str, Any]) -> dict[str, Any]:
    """The figures of one tokenizer that the table shows."""
    from tokenizer_image.registry import load_tokenizer

    tokenizer, run = load_tokenizer(folder), json.loads((folder / "run.json").read_text())
    layout = tokenizer.layout()
    return {
        "bits": sum(math.log2(high - low) for low, high in zip(layout.low, layout.high, strict=True)),
        **{name: report["reconstruction"][name] for name in ("mse", "psnr", "ssim")},
        **{name: report["codebook"][name] for name in ("usage", "perplexity")},
        "num_codes": tokenizer.num_codes,
        "steps": run["steps"],
        "seconds_per_step": 60 * run["minutes"] / run["steps"],
    }


def line(name: str, measured: dict[str, Any]) -> str:
    """A row in Markdown."""
    cells = [
        name,
        f"{measured['bits']:.0f}",
        f"{measured['mse']:.5f}",
        f"{measured['psnr']:.2f}",
        f"{measured['ssim']:.3f}",
        f"{100 * measured['usage']:.1f}%",
        f"{measured['perplexity']:,.0f} of {measured['num_codes']:,}",
        f"{measured['steps']:,}",
        f"{measured['seconds_per_step']:.3f}",
    ]
    return f"| {' | '.join(cells)} |"


def rows_of(table: str, name: str, measured: dict[str, Any]) -> list[Row]:
    """Rows for the file; those of the table 'large' have targets."""
    large = table == "large"
    share = measured["perplexity"] / measured["num_codes"]
    start = f"{table}/{name.replace(', ', '_').replace(' ', '_')}"
    return [
        row(f"{start}/bits", measured["bits"], "bits a picture"),
        row(f"{start}/mse", measured["mse"], ""),
        row(f"{start}/psnr", measured["psnr"], "dB", None, True),
        row(f"{start}/ssim", measured["ssim"], "", None, True),
        row(f"{start}/usage", measured["usage"], "", 0.99 if large else None, True),
        row(f"{start}/perplexity_share", share, "", 0.5 if large else None, True),
        row(f"{start}/seconds_per_step", measured["seconds_per_step"], "s"),
    ]


def main(options: Options) -> None:
    """Train and measure all rows; a table on the screen as they come, rows in the file."""
    import transformers
    from tqdm import tqdm

    transformers.logging.disable_progress_bar()  # models load in seconds
    table = TABLES[options.table][0]
    names = options.only or list(table)
    rows: list[Row] = []
    print("| quantizer | bits | MSE | PSNR | SSIM | usage | perplexity | steps | seconds a step |")
    print("|" + "---|" * 9, flush=True)
    with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(names), desc="tokenizers") as bar:
        results = pool.map(lambda name: measure(name, table[name], options), names)
        for name, measured in zip(names, results, strict=True):
            bar.update()
            tqdm.write(line(name, measured), file=sys.stdout)
            rows += rows_of(options.table, name, measured)
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, Options, __doc__)
