"""--extractor captions: a classifier that learns the data set's captions, before stage 1 compares pictures by it."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch.nn import functional as F
from tqdm.auto import tqdm

from lm.files import published
from pipelines.caching.pixel_cache import DecodedPictures
from pipelines.caching.sources import class_numbers, first_captions, load_source
from pipelines.machine.printing import say
from pipelines.options.image_tokenizer import ImageTokenizerOptions
from pipelines.options.image_tokenizer_losses import CAPTIONS
from pipelines.training.schedule import Budget
from tokenizer_image.losses.own_classifier import PREFIX, CaptionClassifier
from tokenizer_image.preprocessing import to_pixel_values

FOLDER = "classifier"  # in the run's
BUDGET_SHARE = 0.1  # of the run's minutes or steps, beside which it learns
LEAST_PICTURES, LEAST_CLASSES, MOST_CLASSES = 8, 2, 1000  # with one caption; captions that have as many
HELD_OUT = 0.1  # share of the pictures that tell how often it is right
BATCH_SIZE, LEARNING_RATE, SHIFT = 64, 2e-3, 8  # pictures are shifted by up to this part of their side


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
    counts = Counter(text for text in texts if text)
    captions = [text for text, count in counts.most_common(MOST_CLASSES) if count >= LEAST_PICTURES]
    if len(captions) < LEAST_CLASSES:
        common = ", ".join(f"{text!r} {count}" for text, count in counts.most_common(3)) or "none"
        raise ValueError(
            f"{asked_by} needs captions that sort pictures into classes, at least {LEAST_CLASSES} with "
            f"{LEAST_PICTURES} pictures each; the most frequent ones are: {common}. {remedy}"
        )
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
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        network = CaptionClassifier(num_classes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    budget, start = Budget.of(options), time.monotonic()
    share = 0.0
    with tqdm(total=100, desc=f"learning {num_classes} captions", unit="%", leave=False) as bar:
        step = 0
        while share < 1:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - share)
            chosen = np.sort(rng.choice(learned, min(BATCH_SIZE, len(learned)), replace=False))
            pixels = _shifted(_pixels(pictures, chosen, device), rng)
            wanted = torch.from_numpy(labels[chosen]).to(device)
            loss = F.cross_entropy(network(pixels)[1], wanted, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            share = budget.progress(step, time.monotonic() - start) / BUDGET_SHARE
            bar.n = round(100 * min(1.0, share))
            bar.set_postfix_str(f"loss {float(loss.detach()):.3f}", refresh=True)
    network.eval()
    right = 0
    with torch.inference_mode():
        for part in np.array_split(np.sort(held_out), -(-len(held_out) // BATCH_SIZE)):
            found = network(_pixels(pictures, part, device))[1].argmax(1).cpu().numpy()
            right += int((found == labels[part]).sum())
    return network, right / len(held_out), time.monotonic() - start


def _pixels(pictures: DecodedPictures, rows: np.ndarray, device: torch.device) -> torch.Tensor:
    pixels = to_pixel_values(pictures.batch(rows)).to(device)
    return pixels.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def _shifted(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The batch, shifted at random; what comes in is mirrored at the edge."""
    most = [side // SHIFT for side in pixels.shape[2:]]
    padded = F.pad(pixels, (most[1], most[1], most[0], most[0]), mode="reflect")
    top, left = (int(rng.integers(2 * one + 1)) for one in most)
    return padded[:, :, top : top + pixels.shape[2], left : left + pixels.shape[3]]
