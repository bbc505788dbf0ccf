"""All kinds of quantizers at (nearly) equal bits a picture, and what their settings contribute.

    python scripts/benchmarks/quantizer_kinds.py --dataset path/to/cifar10 --output_dir runs/kinds

Trains a tokenizer for each with scripts/train_tokenizer.py, measures it on the test split with scripts/evaluate.py, and
prints a table in Markdown. What --output_dir holds already is not trained again.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipelines.options.parser import run_command
from scripts.benchmarks.figures import Row, row, write_rows

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


@dataclass
class BenchOptions:
    """Quantizers side by side."""

    dataset: str = field(metadata={"help": "pictures with splits train and test: a folder, or a name on the Hub"})
    output_dir: str = field(default="runs/kinds", metadata={"help": "folder of the tokenizers, one for each row"})
    table: str = field(
        default="kinds",
        metadata={"help": "'kinds'; 'settings': of the codebook; 'large': 16,384 codes (15 minutes each)"},
    )
    minutes: float | None = field(default=None, metadata={"help": "of training, each (default: 4; of 'large' 15)"})
    only: list[str] | None = field(default=None, metadata={"help": "rows of the table, by name"})
    jobs: int = field(default=1, metadata={"help": "how many to train at a time"})
    cpu_threads: int | None = field(default=None, metadata={"help": "PyTorch's threads of each (default: cores)"})
    output: str | None = field(default=None, metadata={"help": "JSON file for the rows"})

    def __post_init__(self) -> None:
        if self.table not in TABLES:
            raise ValueError(f"--table {self.table}: choose one of {', '.join(TABLES)}")
        for name in self.only or []:
            if name not in TABLES[self.table][0]:
                raise ValueError(f"--only {name!r}: choose from {', '.join(map(repr, TABLES[self.table][0]))}")


def run(script: str, *arguments: str, log: Path) -> None:
    """Run one of our scripts to its end; what it prints goes to `log`."""
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    with log.open("w") as file:
        done = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False)
    if done.returncode:
        raise ValueError(f"{script} ended with exit code {done.returncode}: see {log}")


def measure(name: str, arguments: str, options: BenchOptions) -> dict[str, Any]:
    """Train and measure one row, or read what an earlier call has left."""
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
    """What the table tells of one tokenizer."""
    from tokenizer_image.vqvae import load_tokenizer

    tokenizer, told = load_tokenizer(folder), json.loads((folder / "run.json").read_text())
    layout = tokenizer.layout()
    return {
        "bits": sum(math.log2(high - low) for low, high in zip(layout.low, layout.high, strict=True)),
        **{name: report["reconstruction"][name] for name in ("mse", "psnr", "ssim")},
        **{name: report["codebook"][name] for name in ("usage", "perplexity")},
        "num_codes": tokenizer.num_codes,
        "steps": told["steps"],
        "seconds_per_step": 60 * told["minutes"] / told["steps"],
    }


def line(name: str, found: dict[str, Any]) -> str:
    """A row in Markdown."""
    return (
        f"| {name} | {found['bits']:.0f} | {found['mse']:.5f} | {found['psnr']:.2f} | {found['ssim']:.3f} | "
        f"{100 * found['usage']:.1f}% | {found['perplexity']:,.0f} of {found['num_codes']:,} | {found['steps']:,} | "
        f"{found['seconds_per_step']:.3f} |"
    )


def rows_of(table: str, name: str, found: dict[str, Any]) -> list[Row]:
    """Rows for the file; of 16,384 codes, with what is wanted of them."""
    large = table == "large"
    start = f"{table}/{name.replace(', ', '_').replace(' ', '_')}"
    return [
        row(f"{start}/bits", found["bits"], "bits a picture"),
        row(f"{start}/mse", found["mse"], ""),
        row(f"{start}/psnr", found["psnr"], "dB", None, True),
        row(f"{start}/ssim", found["ssim"], "", None, True),
        row(f"{start}/usage", found["usage"], "", 0.99 if large else None, True),
        row(f"{start}/perplexity_share", found["perplexity"] / found["num_codes"], "", 0.5 if large else None, True),
        row(f"{start}/seconds_per_step", found["seconds_per_step"], "s"),
    ]


def main(options: BenchOptions) -> None:
    """Train and measure all rows; a table on the screen as they come, rows in the file."""
    import transformers
    from tqdm import tqdm

    transformers.logging.disable_progress_bar()  # of loading, which takes no time to speak of
    table = TABLES[options.table][0]
    names = options.only or list(table)
    rows: list[Row] = []
    print("| quantizer | bits | MSE | PSNR | SSIM | usage | perplexity | steps | seconds a step |")
    print("|" + "---|" * 9, flush=True)
    with ThreadPoolExecutor(options.jobs) as pool, tqdm(total=len(names), desc="tokenizers") as bar:
        for name, found in zip(names, pool.map(lambda name: measure(name, table[name], options), names), strict=True):
            bar.update()
            tqdm.write(line(name, found), file=sys.stdout)
            rows += rows_of(options.table, name, found)
    write_rows(options.output, rows)


if __name__ == "__main__":
    run_command(main, BenchOptions, __doc__)
