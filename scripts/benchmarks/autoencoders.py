"""The autoencoder family on one data set: what each bottleneck reconstructs, what a probe reads in its latents, and
what its samples look like, beside the quantizer.

    python scripts/benchmarks/autoencoders.py --dataset path/to/mnist --image_size 28 --num_channels 1

Trains each member with scripts/train_tokenizer.py for the same number of steps, unless --folder holds it already,
measures it as scripts/evaluate.py does, prints a table in Markdown, and puts reconstructions and samples onto a sheet.
"""

from __future__ import annotations

import sys
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.machine.destinations import check_file, check_folder
from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.few_pictures import SCRIPTS, run_script
from scripts.benchmarks.figures import BenchmarkOptions, Row, row, write_rows

if TYPE_CHECKING:
    import torch

    from pipelines.options.evaluation import EvaluationOptions

# Options of train_tokenizer.py. Latents of a whole picture, so that a member's latents can be compared with another's;
# the last two have a latent at each place, and differ in nothing but the quantizer.
PICTURE = "--latents picture --code_dim 32"
FAMILY = {
    "none": f"--bottleneck none {PICTURE}",
    "sparse": f"--bottleneck sparse {PICTURE} --sparse_weight 0.1",
    "k_sparse": f"--bottleneck k_sparse {PICTURE}",
    "contractive": f"--bottleneck contractive {PICTURE}",
    "denoising": f"--bottleneck denoising {PICTURE} --input_noise masking",
    "gaussian": f"--bottleneck gaussian {PICTURE}",
    "conditional": f"--bottleneck conditional --condition caption {PICTURE}",
    "hierarchical": f"--bottleneck hierarchical {PICTURE}",
    "none_of_places": "--bottleneck none --latents positions --code_dim 8",
    "quantizer": "--quantizer ema --codebook_sizes 512 --code_dim 8",
}
SHOWN = 12  # pictures of a row of the sheet


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Autoencoders beside the quantizer."""

    dataset: str = option(MISSING, "pictures with classes as captions, and splits train and test: a folder or Hub name")
    split: str = option("test", "split that is measured")
    image_size: int = option(32, "side of the pictures in pixels", above_zero=True)
    num_channels: int = option(3, "3: colour, 1: grey", choices=(1, 3))
    folder: str = option("runs/autoencoders", "folder of the models, and of the sheet")
    members: list[str] = option(list(FAMILY), "which members", choices=tuple(FAMILY))
    max_steps: int = option(2000, "steps of each", above_zero=True)
    train_options: list[str] = option(
        ["patch_size=4", "hidden_sizes=64"], "further options of train_tokenizer.py, each without its dashes"
    )
    max_examples: int | None = option(None, "pictures of the split that are measured (default: all)", above_zero=True)
    labels_per_class: list[int] = option([10, 100, 1000], "labels of each class that probes learn from")
    classifier_steps: int = option(
        2000, "steps of the classifier over whose features samples are compared", above_zero=True
    )
    samples: int = option(2000, "samples of each variational member, in all or for each class", above_zero=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder(self.folder, "--folder")
        check_file(self.sheet, "--folder", "runs/autoencoders")

    @property
    def sheet(self) -> Path:
        """Where reconstructions and samples are put."""
        return Path(self.folder) / "autoencoders.png"


def train(name: str, options: Options) -> Path:
    """Train a member of the family, or go on; a finished one stays as it is. Its folder."""
    folder = Path(options.folder) / name
    threads = [] if options.cpu_threads is None else ["--cpu_threads", str(options.cpu_threads)]
    further = [part for word in options.train_options for part in f"--{word}".split("=")]
    run_script(
        [
            sys.executable, str(SCRIPTS / "train_tokenizer.py"), "--dataset", options.dataset, "--output_dir",
            str(folder), "--image_size", str(options.image_size), "--num_channels", str(options.num_channels),
            "--max_steps", str(options.max_steps), "--patience", "0", "--no_photographs", "--resume",
            *FAMILY[name].split(), *further, *threads,
        ]
    )  # fmt: skip
    return folder


def evaluation_options(name: str, folder: Path, options: Options) -> EvaluationOptions:
    """How a member is measured; samples are drawn of those that have a prior."""
    from pipelines.options.evaluation import EvaluationOptions
    from tokenizer_image.registry import load_image_model

    of_codes = name == "quantizer"
    has_prior = not of_codes and load_image_model(folder).bottleneck.has_prior
    return EvaluationOptions(
        image_tokenizer=str(folder) if of_codes else None, autoencoder=None if of_codes else str(folder),
        dataset=options.dataset, split=options.split, max_examples=options.max_examples,
        labels_per_class=options.labels_per_class, extractor="captions", classifier_steps=options.classifier_steps,
        drawn_per_caption=options.samples if has_prior else 0, output=str(folder / "report.json"),
        cpu_threads=options.cpu_threads,
    )  # fmt: skip


def measure(name: str, folder: Path, options: Options) -> Any:
    """What `evaluate.py` measures of a member."""
    from pipelines.evaluation.autoencoders import evaluate_autoencoder
    from pipelines.evaluation.evaluation import evaluate
    from pipelines.evaluation.subject import load_model

    given = evaluation_options(name, folder, options)
    return evaluate(given, load_model(given)) if given.autoencoder is None else evaluate_autoencoder(given)


def rows_of(name: str, report: dict[str, Any]) -> list[Row]:
    """A member's figures, each named by it."""
    quality, compared = report["reconstruction"], report["compared"]
    found = [
        row(f"{name}/mse", quality["mse"], ""),
        row(f"{name}/psnr", quality["psnr"], "dB"),
        row(f"{name}/frechet_reconstructed", compared["reconstructed"]["frechet"], ""),
    ]
    if "drawn" in compared:
        found.append(row(f"{name}/frechet_samples", compared["drawn"]["frechet"], ""))
    for probe in report.get("label_efficiency", {}).get("rows", []):
        if probe["features"] != "pixels":
            kind = probe["features"].replace(" ", "_")
            for reader in ("linear", "knn"):
                found.append(row(f"{name}/{kind}/{reader}/{probe['labels_per_class']}", probe[reader], ""))
    return found


def table(reports: dict[str, dict[str, Any]]) -> list[str]:
    """A line for each member in Markdown, and one for the pixels."""
    counts = sorted({one["labels_per_class"] for one in _probes(reports)})
    head = ["bottleneck", "latents", "MSE", "PSNR, dB", "Frechet, reconstructed", "samples"]
    head += [f"probe, {count:,} labels" for count in counts]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for name, report in reports.items():
        quality, compared = report["reconstruction"], report["compared"]
        size = (
            f"{report['codebook']['tokens_per_image']} codes" if "codebook" in report else report["latents"]["values"]
        )
        drawn = f"{compared['drawn']['frechet']:.1f}" if "drawn" in compared else ""
        cells = [name, size, f"{quality['mse']:.5f}", f"{quality['psnr']:.2f}"]
        cells += [f"{compared['reconstructed']['frechet']:.1f}", drawn]
        lines.append("| " + " | ".join([*map(str, cells), *_probe_cells(report, "latents", counts)]) + " |")
    pixels = _probe_cells(next(iter(reports.values())), "pixels", counts)
    return [*lines, "| pixels | | | | | | " + " | ".join(pixels) + " |"]


def _probes(reports: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for report in reports.values() for one in report.get("label_efficiency", {}).get("rows", [])]


def _probe_cells(report: dict[str, Any], features: str, counts: list[int]) -> list[str]:
    """Linear probe and nearest neighbours, for each number of labels."""
    found = {one["labels_per_class"]: one for one in _probes({"": report}) if one["features"] == features}
    return [f"{found[count]['linear']:.1%} / {found[count]['knn']:.1%}" if count in found else "" for count in counts]


def draw_sheet(evaluations: dict[str, Any], path: Path) -> None:
    """The same pictures reconstructed by each member, and samples of those that have a prior."""
    from pipelines.drawing.grids import labelled_grid
    from pipelines.evaluation.report.sheets import to_images

    first = next(iter(evaluations.values()))
    rows = [("pictures", to_images(_figures(first).pictures[:SHOWN]))]
    rows += [(name, to_images(_figures(one).reconstructions[:SHOWN])) for name, one in evaluations.items()]
    rows += [
        (f"samples, {name}", to_images(_spread(one.drawn.pictures)))
        for name, one in evaluations.items()
        if one.drawn is not None
    ]
    labelled_grid(rows, min_side=56, smooth=False, font_size=13, margin=4).save(path)


def _figures(evaluation: Any) -> Any:
    return evaluation.tokenizer_figures if hasattr(evaluation, "tokenizer_figures") else evaluation.figures


def _spread(pictures: torch.Tensor) -> torch.Tensor:
    """`SHOWN` pictures, evenly spaced, so that all classes occur."""
    from pipelines.machine.batches import evenly_spaced

    return pictures[evenly_spaced(len(pictures), SHOWN)]


def main(options: Options) -> list[Row]:
    """Train and measure all members; print the table, write the sheet and the rows."""
    options.set_threads()
    evaluations = {}
    for name in options.members:
        Path(options.folder).mkdir(parents=True, exist_ok=True)
        evaluations[name] = measure(name, train(name, options), options)
    reports = {name: one.report for name, one in evaluations.items()}
    rows = [figure for name, report in reports.items() for figure in rows_of(name, report)]
    write_rows(options.output, rows)
    draw_sheet(evaluations, options.sheet)
    print("\n".join(["", *table(reports), "", f"sheet: {options.sheet}"]))
    return rows


if __name__ == "__main__":
    run_command(main, Options, __doc__)
