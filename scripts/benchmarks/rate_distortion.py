"""What a picture costs in bits and what is lost: our image tokenizers beside autoencoders, PCA and codecs.

    python scripts/benchmarks/rate_distortion.py --dataset path/to/cifar10 --image_size 32 --folder runs/rates

Trains the tokenizers of `rate_tokenizers.py` with scripts/train_tokenizer.py, unless --folder holds them already, and
measures every method on the same pictures: a table in Markdown, one plot, and where the curves cross.
docs/rate_distortion.md says what each row is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.machine.destinations import check_file, check_folder
from pipelines.options.option import option
from pipelines.options.parser import run_command
from scripts.benchmarks.figures import BenchmarkOptions, Row, check_plots, row, write_rows
from scripts.benchmarks.rate_tokenizers import AUTOENCODERS, PLANS, check_plans, train_model

if TYPE_CHECKING:
    import torch

    from pipelines.evaluation.rates.rate_distortion import DistortionMeter, RatePoint

CODECS = ("JPEG", "WebP", "AVIF")
LEVELS = (2, 4, 8, 16, 32)  # of each number of an autoencoder's latents
NONE = "none"
PATCH_OPTIONS = ("patch_size", "resampling", "encoder_kernel_size")
PCA_RATES = (128, 2048)  # between which VQ is to have less error than PCA
CODEC_RATE = 512  # up to which two levels are to have less error than JPEG and WebP


@dataclass(kw_only=True)
class Options(BenchmarkOptions):
    """Rate and distortion of tokenizers, PCA and codecs."""

    dataset: str = option(MISSING, "pictures with splits train and test: a folder, or a name on the Hub")
    split: str = option("test", "split that is measured")
    image_size: int = option(32, "side of the pictures in pixels", above_zero=True)
    num_channels: int = option(3, "3: colour, 1: grey", choices=(1, 3))
    folder: str = option("runs/rate_distortion", "folder of the tokenizers, and of the plot")
    minutes: float = option(10.0, "of training, each tokenizer", above_zero=True)
    max_steps: int | None = option(None, "in place of --minutes: steps of each tokenizer", above_zero=True)
    tokenizers: list[str] = option(list(PLANS), "which tokenizers, or none", choices=(*PLANS, NONE))
    autoencoders: list[str] = option(
        list(AUTOENCODERS), "which autoencoders, whose latents are quantized, or none", choices=(*AUTOENCODERS, NONE)
    )
    train_options: list[str] = option(
        [], "further options of train_tokenizer.py, each without its dashes: batch_size=32 weight_decay=0"
    )
    codecs: list[str] = option(list(CODECS), "which codecs, or none", choices=(*CODECS, NONE))
    rates: list[int] = option(
        [128, 256, 512, 1024, 2048], "bits a picture of PCA and codecs, beside those of the tokenizers", above_zero=True
    )
    components: int = option(1024, "principal components, at most", above_zero=True)
    training_pictures: int = option(
        4000, "pictures that histograms, and quantizers of PCA, are fitted to", within="[2, inf)"
    )
    max_examples: int = option(1000, "pictures of the split that are measured, at most", within="[2, inf)")
    extractor: str | None = option(
        None, "network of the Frechet distance, or 'none' (default: efficientnet_lite0 where it is installed)"
    )
    extractor_size: int = option(64, "side of the pictures that --extractor reads, in pixels", above_zero=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_folder(self.folder, "--folder")
        check_file(self.plot_file, "--folder", "runs/rates")
        check_plots("--folder")
        for name in ("tokenizers", "autoencoders", "codecs"):
            chosen = getattr(self, name)
            if NONE in chosen and len(chosen) > 1:
                raise ValueError(f"--{name} {' '.join(chosen)}: give names, or none alone")
            setattr(self, name, [one for one in chosen if one != NONE])
        of_patches = [word for word in self.train_options if word.split("=")[0] in PATCH_OPTIONS]
        of_components = [name for name in self.tokenizers if PLANS[name].network == "components"]
        if of_patches and of_components:
            raise ValueError(
                f"--train_options {' '.join(of_patches)}: the tokenizer {of_components[0]} has no patches; leave it "
                "out, or choose --tokenizers without components"
            )
        check_plans(self.tokenizers, self.image_size, self.num_channels)
        if self.extractor not in (None, "none"):
            # Imports torch, which --help need not wait for.
            from tokenizer_image.losses.extractors import check_extractor

            check_extractor(self.extractor, "--extractor")

    @property
    def plot_file(self) -> Path:
        """The plot."""
        return Path(self.folder) / "rate_distortion.png"

    def extractor_name(self) -> str | None:
        """The network of the Frechet distance; None, and a message, without one."""
        from tokenizer_image.losses.extractors import INSTALL, missing_package

        default = "efficientnet_lite0"
        if self.extractor is None and missing_package(default) is not None:
            print(f"no Frechet distance: {default} is not installed ({INSTALL}); --extractor takes another network")
            return None
        return None if self.extractor == "none" else self.extractor or default


def read_pictures(options: Options, split: str, most: int) -> torch.Tensor:
    """At most so many pictures of a split, evenly spaced: uint8 (n, C, H, W)."""
    import torch

    from pipelines.caching.pixel_cache import decode_pictures
    from pipelines.machine.batches import evenly_spaced
    from tokenizer_image.pictures.loading import Preprocessing, load_pictures

    settings = Preprocessing(image_size=options.image_size, num_channels=options.num_channels)
    pictures = decode_pictures(load_pictures(options.dataset, split), settings)
    return torch.from_numpy(pictures.batch(evenly_spaced(len(pictures), most)))


def model_points(options: Options, meter: DistortionMeter, training: torch.Tensor) -> list[RatePoint]:
    """Train the tokenizers and the autoencoders, and measure them."""
    from pipelines.evaluation.rates.quantized_latents import LatentCoding
    from pipelines.evaluation.rates.rate_distortion import latent_points, tokenizer_point
    from tokenizer_image.registry import load_autoencoder, load_tokenizer

    budget = ["--max_minutes", f"{options.minutes:g}"]
    if options.max_steps is not None:
        budget = ["--max_steps", str(options.max_steps)]
    further = [*budget, "--num_channels", str(options.num_channels), *(f"--{word}" for word in options.train_options)]
    if options.cpu_threads is not None:
        further += ["--cpu_threads", str(options.cpu_threads)]
    points = []
    for name in (*options.tokenizers, *options.autoencoders):
        folder = Path(options.folder) / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        train_model(name, folder, options.dataset, options.image_size, further)
        if name in PLANS:
            points.append(tokenizer_point(load_tokenizer(folder), meter, training, PLANS[name].series, name))
        else:
            model = load_autoencoder(folder)
            coding = LatentCoding(model.latents, model.decode)
            points += latent_points(coding, meter, training, LEVELS, AUTOENCODERS[name].series, name)
    return points


def other_points(
    options: Options, meter: DistortionMeter, training: torch.Tensor, rates: Sequence[int]
) -> list[RatePoint]:
    """PCA and the codecs, at each rate."""
    from pipelines.evaluation.rates.picture_codecs import EncodedPictures, available_codecs
    from pipelines.evaluation.rates.rate_distortion import codec_points, in_batches, pca_points
    from tokenizer_image.principal_components import fit_components

    whole = read_pictures(options, "train", 10**9)
    components = fit_components(in_batches(whole), min(options.components, len(whole) - 1))
    points = pca_points(components, meter, training, rates)
    for codec in options.codecs:
        if codec not in available_codecs():
            print(f"no {codec}: this Pillow was built without it")
            continue
        encoded = EncodedPictures(codec, meter.pictures)
        print(f"{codec}: every picture can be had from {encoded.least_bits} bits on")
        points += codec_points(encoded, meter, rates)
    return points


def table(points: Sequence[RatePoint]) -> list[str]:
    """All points in Markdown, by series and rate."""
    lines = ["| what | bits, fixed rate | bits, code histogram | MSE | PSNR | SSIM | Frechet |", "|" + "---|" * 7]
    for one in points:
        found = one.distortion
        cells = [
            one.name,
            *("" if bits is None else f"{bits:.0f}" for bits in (one.fixed_bits, one.histogram_bits)),
            f"{found.mse:.5f}",
            f"{found.psnr:.2f}",
            f"{found.ssim:.3f}",
            "" if found.frechet is None else f"{found.frechet:.3f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def rows_of(points: Sequence[RatePoint]) -> list[Row]:
    """Every point's figures, then the tokenizers' errors over those of PCA, JPEG and WebP at their rates."""
    from pipelines.evaluation.rates.rate_curves import best_at

    rows = []
    for one in points:
        start = f"rate_distortion/{one.name.replace(', ', '_').replace(' ', '_')}"
        rows += [
            row(f"{start}/fixed_bits", one.fixed_bits, "bits a picture"),
            row(f"{start}/histogram_bits", one.histogram_bits, "bits a picture"),
            row(f"{start}/mse", one.distortion.mse, ""),
            row(f"{start}/psnr", one.distortion.psnr, "dB", None, True),
            row(f"{start}/ssim", one.distortion.ssim, "", None, True),
            row(f"{start}/frechet", one.distortion.frechet, ""),
        ]
    ours = [one for one in points if one.series.startswith("VQ")]
    pairs = [("vq", ours, "PCA", PCA_RATES)]
    two = [one for one in ours if one.series == "VQ, 2 levels"]
    pairs += [("vq_2_levels", two, codec, (0, CODEC_RATE)) for codec in CODECS if codec != "AVIF"]
    for name, members, series, (low, high) in pairs:
        theirs = [one for one in points if one.series == series and one.fixed_bits is not None]
        for bits in (one.fixed_bits for one in theirs if low <= one.fixed_bits <= high):
            one, other = best_at(members, bits), best_at(theirs, bits)
            if one is not None and other is not None:
                what = f"rate_distortion/{name}_over_{series.lower()}/{bits:.0f}_bits"
                rows.append(row(what, one / other, "x the MSE", 1.0))
    return rows


def comparisons(points: Sequence[RatePoint]) -> list[str]:
    """Which series has the lower error at which rates, and where curves cross."""
    from pipelines.evaluation.rates.rate_curves import RATES, compare

    series = list(dict.fromkeys(one.series for one in points))
    ours = [name for name in series if name.startswith("VQ")]
    groups = {"VQ, all levels": [one for one in points if one.series in ours]}
    groups |= {name: [one for one in points if one.series == name] for name in series}
    return [
        compare(groups[one], groups[other], rate, (one, other)).sentence()
        for rate in RATES
        for one in ("VQ, all levels", *(name for name in ours if name != "VQ"))
        for other in series
        if other not in ours
    ]


def main(options: Options) -> None:
    """Train, measure and compare: table, crossings and plot, rows in the file."""
    import torch
    import transformers

    from pipelines.evaluation.metrics.frechet import too_few_pictures
    from pipelines.evaluation.pictures_compared import ExtractorPair
    from pipelines.evaluation.rates.rate_curves import plot
    from pipelines.evaluation.rates.rate_distortion import DistortionMeter

    transformers.logging.disable_progress_bar()  # models load in seconds
    options.set_threads()
    extractor = options.extractor_name()
    pictures = read_pictures(options, options.split, options.max_examples)
    training = read_pictures(options, "train", options.training_pictures)
    pair = extractor and ExtractorPair.load(extractor, None, options.extractor_size, torch.device("cpu"))
    meter = DistortionMeter(pictures, pair or None)
    warning = too_few_pictures(len(pictures), meter.feature_size or 0, "--max_examples")
    if warning is not None:
        print(f"WARNING: {warning}; until then compare these distances with each other alone")
    points = model_points(options, meter, training)
    fixed = {math.ceil(one.fixed_bits - 1e-6) for one in points if one.fixed_bits is not None}
    points += other_points(options, meter, training, sorted(fixed | set(options.rates)))
    print(f"{len(pictures)} pictures of {options.dataset}, split {options.split}")
    print("\n".join([*table(points), "", *comparisons(points)]))
    plot(points).save(options.plot_file)
    print(f"plot: {options.plot_file}")
    write_rows(options.output, rows_of(points))


if __name__ == "__main__":
    run_command(main, Options, __doc__)
