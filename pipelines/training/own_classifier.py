"""--extractor captions: a classifier that learns the data set's captions, before stage 1 compares pictures by it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator

from lm.files import published
from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.caching.sources import class_numbers, first_captions, load_source
from pipelines.machine.printing import say
from pipelines.machine.processes import all_see
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.image_tokenizer_losses import CAPTIONS
from pipelines.training.schedule import Budget
from tokenizer_image.losses.classifier_training import (
    class_logits,
    fit_classifier,
    frequent_captions,
    new_classifier,
)
from tokenizer_image.losses.own_classifier import PREFIX, CaptionClassifier
from tokenizer_image.preprocessing import to_pixel_values

FOLDER = "classifier"  # in the run's
BUDGET_SHARE = 0.1  # of the run's minutes or steps, beside which it learns
HELD_OUT = 0.1  # share of the pictures that tell how often it is right


def own_extractor(
    options: ImageTokenizerOptions, pictures: DecodedPictures, image_size: int, accelerator: Accelerator
) -> str:
    """The name of the classifier that --extractor captions trains.

    It is kept in OUTPUT_DIR/classifier, where a run that is resumed finds it.

    Raises:
        ValueError: captions that do not sort the pictures into classes.
    """
    folder = Path(options.output_dir) / FOLDER
    captions, labels = classes_of_captions(options, pictures, image_size)  # in all processes, which then raise alike
    if accelerator.is_main_process and not (options.resume and folder.is_dir()):
        network, accuracy, seconds = train_classifier(options, pictures, labels, len(captions), accelerator.device)
        with published(folder) as aside:
            network.save(aside, captions)
        say(
            accelerator,
            f"classifier of {len(captions)} captions: {accuracy:.0%} of held-out pictures right, chance "
            f"{1 / len(captions):.1%}, after {seconds:.0f} s; its features compare pictures ({folder})",
        )
    accelerator.wait_for_everyone()
    if not all_see(folder, accelerator):
        raise ValueError(
            f"--extractor {CAPTIONS} on several nodes: {folder}, which the first one has trained, must be on a disk "
            "that all of them see: give such an --output_dir, or take another --extractor"
        )
    return f"{PREFIX}{folder}"


def classes_of_captions(
    options: ImageTokenizerOptions,
    pictures: DecodedPictures,
    image_size: int,
    asked_by: str = f"--extractor {CAPTIONS}",
    remedy: str = "Take another --extractor",
) -> tuple[list[str], np.ndarray]:
    """The captions that are classes, and each decoded picture's class (n,), -1 for one that has none of them.

    Args:
        asked_by, remedy: the option that asks for classes, and the way out, for the message where there are none.

    Raises:
        ValueError: captions that do not sort the pictures into classes.
    """
    source = load_source(options, "train", image_size=image_size)
    texts = first_captions(source, pictures.rows)
    try:
        captions = frequent_captions(texts)
    except ValueError as error:
        raise ValueError(f"{asked_by} {error}. {remedy}") from error
    return captions, class_numbers(texts, captions)


def train_classifier(
    options: ImageTokenizerOptions,
    pictures: DecodedPictures,
    labels: np.ndarray,
    num_classes: int,
    device: torch.device,
) -> tuple[CaptionClassifier, float, float]:
    """A classifier that has learned for a tenth of the budget; its accuracy on held-out pictures, and seconds."""
    rng = np.random.default_rng([options.seed, num_classes])
    rows = rng.permutation(np.flatnonzero(labels >= 0))
    held_out, learned = np.split(rows, [max(1, int(HELD_OUT * len(rows)))])
    network = new_classifier(num_classes, options.seed, device)
    budget, start = Budget.of(options), time.monotonic()

    def pixels_of(chosen: np.ndarray) -> torch.Tensor:
        return to_pixel_values(pictures.batch(chosen))

    def share_done(step: int) -> float:
        return budget.progress(step, time.monotonic() - start) / BUDGET_SHARE

    fit_classifier(network, pixels_of, labels, learned, share_done, rng)
    held_out = np.sort(held_out)
    found = class_logits(network, pixels_of, held_out).argmax(1).numpy()
    return network, float((found == labels[held_out]).mean()), time.monotonic() - start
