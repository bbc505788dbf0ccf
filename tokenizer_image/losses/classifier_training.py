"""How a classifier learns the captions that sort pictures into classes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F
from tqdm.auto import tqdm

from tokenizer_image.losses.own_classifier import CaptionClassifier

LEAST_PICTURES, LEAST_CLASSES, MOST_CLASSES = 8, 2, 1000  # with one caption; captions that have as many
BATCH_SIZE, LEARNING_RATE, SHIFT = 64, 2e-3, 8  # pictures are shifted by up to this part of their side


def frequent_captions(texts: Sequence[str | None]) -> list[str]:
    """The captions that are classes, the most frequent first: those that at least `LEAST_PICTURES` pictures have.

    Args:
        texts: the first caption of each picture, None without.

    Raises:
        ValueError: fewer than `LEAST_CLASSES` captions are; the message goes on behind the name of an option.
    """
    counts = Counter(text for text in texts if text)
    captions = [text for text, count in counts.most_common(MOST_CLASSES) if count >= LEAST_PICTURES]
    if len(captions) < LEAST_CLASSES:
        common = ", ".join(f"{text!r} {count}" for text, count in counts.most_common(3)) or "none"
        raise ValueError(
            f"needs captions that sort pictures into classes, at least {LEAST_CLASSES} with {LEAST_PICTURES} pictures "
            f"each; the most frequent ones are: {common}"
        )
    return captions


def new_classifier(num_classes: int, seed: int, device: torch.device) -> CaptionClassifier:
    """A classifier whose weights the seed decides."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CaptionClassifier(num_classes).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def fit_classifier(
    network: CaptionClassifier,
    pixels_of: Callable[[np.ndarray], torch.Tensor],
    labels: np.ndarray,
    rows: np.ndarray,
    share_done: Callable[[int], float],
    rng: np.random.Generator,
) -> None:
    """Train until `share_done(steps)` is 1; the learning rate falls to 0 with it. Leaves the network in eval mode.

    Args:
        pixels_of: rows, increasing, to their pictures (b, 1 or 3, H, W) in [-1, 1].
        labels: (n,) classes.
        rows: of `labels`, to learn from.
        share_done: of the training, after so many steps, in [0, 1].
        rng: draws batches and shifts.
    """
    device = next(network.parameters()).device
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.05)
    share, step = 0.0, 0
    network.train()
    with tqdm(total=100, desc=f"learning {network.num_classes} captions", unit="%", leave=False) as bar:
        while share < 1:
            for group in optimizer.param_groups:
                group["lr"] = LEARNING_RATE * (1 - share)
            chosen = np.sort(rng.choice(rows, min(BATCH_SIZE, len(rows)), replace=False))
            pixels = _shifted(_prepared(pixels_of(chosen), device), rng)
            wanted = torch.from_numpy(labels[chosen]).to(device)
            loss = F.cross_entropy(network(pixels)[1], wanted, label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            share = share_done(step)
            bar.n = round(100 * min(1.0, share))
            bar.set_postfix_str(f"loss {float(loss.detach()):.3f}", refresh=True)
    network.eval()


@torch.inference_mode()
def class_logits(
    network: CaptionClassifier, pixels_of: Callable[[np.ndarray], torch.Tensor], rows: np.ndarray
) -> torch.Tensor:
    """Logits (n, classes) float32 of the pictures at `rows`."""
    device = next(network.parameters()).device
    parts = np.array_split(rows, -(-len(rows) // BATCH_SIZE))
    return torch.cat([network(_prepared(pixels_of(part), device))[1].float().cpu() for part in parts])


def _prepared(pixels: torch.Tensor, device: torch.device) -> torch.Tensor:
    return pixels.to(device).expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)


def _shifted(pixels: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """The batch, shifted at random; what comes in is mirrored at the edge."""
    most = [side // SHIFT for side in pixels.shape[2:]]
    padded = F.pad(pixels, (most[1], most[1], most[0], most[0]), mode="reflect")
    top, left = (int(rng.integers(2 * one + 1)) for one in most)
    return padded[:, :, top : top + pixels.shape[2], left : left + pixels.shape[3]]
