"""A whole evaluation of an autoencoder without codes: what `scripts/evaluate.py --autoencoder` measures, in order."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pipelines.caching.sources import classes_of_rows
from pipelines.drawing.latents import seeded_latents
from pipelines.evaluation.class_figures import required_classes
from pipelines.evaluation.evaluation import add_probes, compared_figures, load_extractors, watching
from pipelines.evaluation.metrics.reconstruction import ReconstructionFigures, as_8_bit, measure_reconstructions
from pipelines.evaluation.perceptual_figures import PerceptualReader
from pipelines.evaluation.pictures_compared import FeatureReader
from pipelines.evaluation.samples import DrawnPictures
from pipelines.evaluation.subject import Split, load_data, load_training, provenance
from pipelines.machine.batches import evenly_spaced, index_batches
from pipelines.machine.devices import choose_device
from pipelines.options.evaluation import EvaluationOptions
from tokenizer_image.autoencoder import Autoencoder
from tokenizer_image.preprocessing import to_pixel_values
from tokenizer_image.registry import load_autoencoder


@dataclass
class AutoencoderEvaluation:
    """Everything measured of an autoencoder, and what a report page shows of it.

    Attributes:
        training: the training pictures; None where there are none to compare with.
        figures, training_figures: of the split, and of as many training pictures.
        report: the figures, ready for JSON.
        drawn: with `--drawn_per_caption`, samples of the prior.
    """

    model: Autoencoder
    split: Split
    training: Split | None
    report: dict[str, Any]
    figures: ReconstructionFigures
    training_figures: ReconstructionFigures | None = None
    drawn: DrawnPictures | None = None


def evaluate_autoencoder(options: EvaluationOptions) -> AutoencoderEvaluation:
    """Measure reconstructions, the bottleneck's own figures, what probes read in the latents, and samples.

    Raises:
        ValueError: options that do not fit the model, before anything is measured.
    """
    started = time.monotonic()
    model = load_autoencoder(str(options.autoencoder)).to(choose_device(options.device))
    if options.drawn_per_caption and not model.bottleneck.has_prior:
        raise ValueError(
            f"--drawn_per_caption {options.drawn_per_caption}: bottleneck {model.config.bottleneck!r} has no prior to "
            "draw from, as 'gaussian', 'conditional' and 'hierarchical' have: leave the option out"
        )
    split, training = load_data(options, model), load_training(options, model)
    classes = required_classes(options, split, training)
    extractors = load_extractors(options, training, classes, model.device)
    seen = PerceptualReader.load(options.perceptual, model.device)
    reader = FeatureReader(extractors)
    figures = _measure(options, model, split, watch=watching(reader, seen))
    report = {
        **provenance(options, model, split.source),
        **figures.figures,
        "latents": _latent_figures(options, model, split),
    }
    found = AutoencoderEvaluation(model, split, None if isinstance(training, str) else training, report, figures)
    if isinstance(training, str):
        report["notes"].append(training)
    else:
        found.training_figures = _measure(options, model, training, rows=evenly_spaced(len(training), len(split)))
        fingerprint = training.source.fingerprint
        report["training"] = {
            "split": training.name, "dataset_fingerprint": fingerprint, **found.training_figures.figures,
        }  # fmt: skip
    if seen is not None:
        report["perceptual"] = {"split": split.name, **seen.figures()}
    if classes and found.training is not None:
        add_probes(options, model, split, found.training, classes, report)
    if options.drawn_per_caption:
        found.drawn = draw_samples(model, options.drawn_per_caption, options.seed)
    if extractors.features is not None or extractors.classifier is not None:
        report["compared"] = compared_figures(split, found.drawn, extractors, reader.result())
    report["seconds"] = round(time.monotonic() - started, 1)
    return found


def reconstructor(model: Autoencoder, split: Split) -> Callable[[Tensor, np.ndarray], Tensor]:
    """What `measure_reconstructions` asks for: pictures uint8 (B, C, H, W) and their positions in the split to
    reconstructions, with the pictures' classes where the model is conditional."""

    @torch.inference_mode()
    def reconstruct_rows(originals: Tensor, rows: np.ndarray) -> Tensor:
        pixels = to_pixel_values(originals).to(model.device)
        return as_8_bit(model.reconstruct(pixels, known_classes(model, split, rows))).cpu()

    return reconstruct_rows


def known_classes(model: Autoencoder, split: Split, rows: np.ndarray) -> Tensor | None:
    """Of a conditional model the classes int64 (B,) of the pictures at these positions of the split, -1 where not
    known; None of others."""
    config = model.config
    if not config.class_names:
        return None
    classes = classes_of_rows(split.source, split.pictures.rows[rows].tolist(), config.condition, config.class_names)
    return torch.from_numpy(classes).to(model.device)


def draw_samples(model: Autoencoder, each: int, seed: int) -> DrawnPictures:
    """`each` samples of the prior, for each class of a conditional model: picture j of a class has the stream of random
    numbers (seed, j)."""
    names: list[str | None] = [*model.config.class_names] or [None]
    parts = []
    latents = seeded_latents(model, each, seed)
    for number, _ in enumerate(tqdm(names, desc="drawing", unit=" classes", leave=False)):
        for rows in index_batches(each, 100):
            levels = [level[rows.start : rows.stop] for level in latents]
            classes = torch.full((len(rows),), number, device=model.device) if model.config.class_names else None
            parts.append(as_8_bit(model.decode(levels, classes)).cpu())
    return DrawnPictures(torch.cat(parts).contiguous(), [name for name in names for _ in range(each)])


def _measure(options: EvaluationOptions, model: Autoencoder, split: Split, **settings: Any) -> ReconstructionFigures:
    """`measure_reconstructions` of a split."""
    height = int(split.pictures.batch([0]).shape[-2])
    tile = height // model.config.grids()[-1][0]  # that of one latent for the whole picture leaves no grid
    return measure_reconstructions(
        reconstructor(model, split), split.pictures, tile=tile, batch_size=options.batch_size, **settings
    )


def _latent_figures(options: EvaluationOptions, model: Autoencoder, split: Split) -> dict[str, Any]:
    """Numbers of a picture's latents (`values`, of each level `level_values`), and the bottleneck's own figures, means
    over the split, such as `kl` in nats a picture."""
    sums: dict[str, float] = {}
    for batch in index_batches(len(split), options.batch_size):
        rows = np.arange(batch.start, batch.stop)
        pixels = to_pixel_values(split.pictures.batch(rows)).to(model.device)
        for name, value in model.measure(pixels, known_classes(model, split, rows)).items():
            sums[name] = sums.get(name, 0.0) + value * len(rows)
    levels = [math.prod(grid) * model.config.code_dim for grid in model.config.grids()]
    return {
        "bottleneck": model.config.bottleneck, "n": len(split), "values": sum(levels), "level_values": levels,
        **{name: total / len(split) for name, total in sums.items()},
    }  # fmt: skip
