"""Training of the sprites probe, and the cache that keeps the trained one.

The probe is trained on fresh pictures of every thing-colour pair, those included that the models never see, and is
refused unless it reads at least 99% of each attribute of other fresh pictures right. Its training pictures are blurred
and noisy, so that it judges what a soft reconstruction shows and not how sharp it is.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from lm.files import cache_root, published
from pipelines.evaluation.probes.sprites_probe import NOT_ASKED, QUESTIONS, SpritesProbe, labels
from pipelines.machine.devices import computes_bf16
from tokenizer_image.sprites import scenes as sprites

PROBE_VERSION = 1  # part of the cache's name: raise it when the network or its training changes
REQUIRED_ACCURACY = 0.99
DRAWING_SEED = 90_210  # far from the data sets' small seeds: the probe shares no scene with them
PICTURES = 40_000
TEST_PICTURES = 4_000
EPOCHS = 3
BATCH_SIZE = 128
PEAK_LEARNING_RATE = 4e-3
ROUNDS = 3  # training is repeated on more pictures until the probe is good enough, this often at most


def _draw(first: int, count: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 32, 32) uint8 and labels (count, questions) of scenes `first` and following.

    Even scenes have one object, odd ones two. One process draws about 10,000 a second.
    """
    pictures = torch.empty(count, sprites.IMAGE_SIZE, sprites.IMAGE_SIZE, 3, dtype=torch.uint8)
    numbers = torch.empty(count, len(QUESTIONS), dtype=torch.int64)
    indices = range(first, first + count)
    for row, index in enumerate(tqdm(indices, "probe: drawing", disable=not progress, leave=False)):
        scene = sprites.sample_scene(index, seed=DRAWING_SEED, pairs="all", num_objects=1 + index % 2)
        pictures[row] = torch.from_numpy(np.array(sprites.draw_scene(scene)))
        numbers[row] = torch.from_numpy(labels(scene))
    return pictures.permute(0, 3, 1, 2), numbers  # channels-last in memory: convolutions are faster


def _soften(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
    """Degrade pictures (B, C, 32, 32) as tokenizers do: half of them are blurred, by up to about a pixel, and all get
    a smooth noise, stronger where a picture has more detail."""
    device, half = pixel_values.device, len(pixel_values) // 2
    blurred = _blur(pixel_values)
    detail = _blur(_blur((pixel_values - blurred).abs().amax(dim=1, keepdim=True)))
    share = torch.rand(half, 1, 1, 1, generator=generator).to(device) * 1.5
    softened = pixel_values[:half].lerp(blurred[:half], share.clamp(max=1))
    channels = pixel_values.shape[1]
    noise = torch.randn(len(pixel_values), channels + 1, 16, 16, generator=generator).to(device)
    noise = 0.18 * (noise[:, :1] + noise[:, 1:]).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    strength = torch.rand(len(pixel_values), 1, 1, 1, generator=generator).square().to(device)
    return torch.cat([softened, pixel_values[half:]]) + noise * strength * (0.1 + 4 * detail)


def _blur(pixel_values: Tensor) -> Tensor:
    """Mean of the 3 x 3 pixels around each, of those inside the picture: (B, C, H, W) -> the same shape."""
    return F.avg_pool2d(pixel_values, 3, stride=1, padding=1, count_include_pad=False)


def train_probe(
    *,
    num_pictures: int = PICTURES,
    epochs: int = EPOCHS,
    required_accuracy: float = REQUIRED_ACCURACY,
    rounds: int = ROUNDS,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> SpritesProbe:
    """A probe that reads at least `required_accuracy` of each attribute of fresh pictures right.

    Takes about half a minute on 2 cores.

    Raises:
        RuntimeError: the probe, after `rounds` times `num_pictures` pictures, is not that good; it says the accuracies.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = SpritesProbe()
    probe.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    test = _draw(0, TEST_PICTURES, progress)
    pictures, numbers = test[0][:0], test[1][:0]
    for round_number in range(rounds):
        first = TEST_PICTURES + round_number * num_pictures
        more = _draw(first, num_pictures, progress)
        pictures, numbers = torch.cat([pictures, more[0]]), torch.cat([numbers, more[1]])
        fit(probe, pictures, numbers, epochs, progress)
        probe.accuracies = _accuracies(probe, *test)
        if min(probe.accuracies.values()) >= required_accuracy:
            return probe
    accuracies = ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in probe.accuracies.items())
    raise RuntimeError(
        f"The sprites probe must read {required_accuracy:.0%} of each attribute of real pictures right, but "
        f"after {len(pictures)} pictures it reads: {accuracies}. Are some things too alike to tell apart?"
    )


def fit(probe: SpritesProbe, pictures: Tensor, numbers: Tensor, epochs: int, progress: bool) -> None:
    """One cycle of the learning rate over all pictures, `epochs` times."""
    device, in_bf16 = next(probe.parameters()).device, computes_bf16()
    generator = torch.Generator().manual_seed(len(pictures))
    steps = max(1, len(pictures) // BATCH_SIZE) * epochs
    optimizer = torch.optim.AdamW(probe.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.2, div_factor=10
    )
    order = torch.cat([torch.randperm(len(pictures), generator=generator) for _ in range(epochs)])
    probe.train()
    with tqdm(total=steps, desc="probe: training", disable=not progress, leave=False) as bar:
        for chosen in order.split(BATCH_SIZE)[:steps]:
            pixel_values = pictures[chosen].to(device).float() / 127.5 - 1
            pixel_values = _soften(pixel_values, generator).contiguous(memory_format=torch.channels_last)
            with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
                logits = probe(pixel_values)
            loss = _loss(logits, numbers[chosen].to(device))
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
            if bar.n % 50 == 0:
                bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
            bar.update()
    probe.eval()


def _loss(logits: Mapping[str, Tensor], numbers: Tensor) -> Tensor:
    """Cross-entropy of all questions that apply, summed over questions and averaged over pictures."""
    losses = [
        F.cross_entropy(part, numbers[:, question], ignore_index=NOT_ASKED, reduction="sum")
        for question, part in enumerate(logits.values())
    ]
    return torch.stack(losses).sum() / len(numbers)


def _accuracies(probe: SpritesProbe, pictures: Tensor, numbers: Tensor) -> dict[str, float]:
    """Share of right answers to each question, among the pictures that it applies to."""
    readings = probe.read(pictures.float() / 127.5 - 1)
    accuracies = {}
    for question, (name, choices) in enumerate(QUESTIONS.items()):
        rows = [row for row in range(len(readings)) if numbers[row, question] != NOT_ASKED]
        right = [readings[row][name] == choices[int(numbers[row, question])] for row in rows]
        accuracies[name] = sum(right) / len(right)
    return accuracies


def load_probe(
    cache_folder: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> SpritesProbe:
    """The probe of this version of the sprites, trained on first use and kept in `cache_folder`.

    The probe is in `probe-<hash>` of the cache folder (default: `cache_root`).
    """
    folder = cache_root(cache_folder) / f"probe-{probe_hash()}"
    return kept_probe(folder, SpritesProbe(), lambda: train_probe(device=device, progress=progress)).to(device)


def kept_probe(folder: Path, untrained: SpritesProbe, train: Callable[[], SpritesProbe]) -> SpritesProbe:
    """The probe in `folder`, of the same form as `untrained`; what `train` returns, which is kept there, where there is
    none yet."""
    if (folder / "probe.json").is_file() and (folder / "model.safetensors").is_file():
        return _read_probe(folder, untrained)
    started = time.monotonic()
    probe = train()
    _write_probe(probe, folder, seconds=time.monotonic() - started)
    return probe


def probe_hash() -> str:
    """Name of the trained probe in the cache: a hash of the sprites' drawing code and of `PROBE_VERSION`."""
    return hashlib.sha256(f"{sprites.world_hash()} {PROBE_VERSION}".encode()).hexdigest()[:16]


def _write_probe(probe: SpritesProbe, folder: Path, seconds: float) -> None:
    weights = {name: tensor.contiguous().cpu() for name, tensor in probe.state_dict().items()}
    about = {"probe_version": PROBE_VERSION, "accuracies": probe.accuracies, "training_seconds": seconds}
    with published(folder) as aside:
        aside.mkdir()
        save_file(weights, aside / "model.safetensors")
        (aside / "probe.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")


def _read_probe(folder: Path, probe: SpritesProbe) -> SpritesProbe:
    probe.load_state_dict(load_file(folder / "model.safetensors"))
    probe.accuracies = json.loads((folder / "probe.json").read_text(encoding="utf-8"))["accuracies"]
    return probe.eval()
