"""The sprites probe: a small network that reads what a sprites picture shows, so that samples can be scored.

It is trained on fresh pictures of every thing-colour pair, those included that the models never see, and is
refused unless it reads at least 99% of each attribute of other fresh pictures right. Blur and noise are mixed
into its training, so that it judges what a soft reconstruction shows rather than how sharp it is.
"""

import hashlib
import json
import os
import shutil
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from tokenizer_image.sprites import world as sprites

PROBE_VERSION = 1  # part of the cache's name: raise it when the network or its training changes
REQUIRED_ACCURACY = 0.99

# Question -> possible answers. In two-object scenes "first" is the left or the upper object.
QUESTIONS: dict[str, tuple[str, ...]] = {
    "num_objects": ("1", "2"),
    "background": tuple(sprites.BACKGROUNDS),
    "thing": tuple(sprites.THINGS),
    "colour": tuple(sprites.COLOURS),
    "size": tuple(sprites.SIZES),
    "position": tuple(sprites.POSITIONS),
    "axis": ("horizontal", "vertical"),
    "first_thing": tuple(sprites.THINGS),
    "first_colour": tuple(sprites.COLOURS),
    "second_thing": tuple(sprites.THINGS),
    "second_colour": tuple(sprites.COLOURS),
}
_NOT_ASKED = -100

_DRAWING_SEED = 90_210  # far from the data sets' small seeds: the probe shares no scene with them
_PICTURES = 40_000
_TEST_PICTURES = 4_000
_EPOCHS = 3
_BATCH_SIZE = 128
_PEAK_LEARNING_RATE = 4e-3
_ROUNDS = 3  # training is repeated on more pictures until the probe is good enough, this often at most


def answers(scene: sprites.Scene) -> dict[str, str]:
    """The right answer to each question that applies to `scene`."""
    right = {"num_objects": str(len(scene.objects)), "background": scene.background}
    if scene.relation is None:
        thing = scene.objects[0]
        return right | {
            "thing": thing.thing,
            "colour": thing.colour,
            "size": thing.size,
            "position": str(thing.position),
        }
    in_order = scene.relation in ("left of", "above")
    first, second = scene.objects if in_order else scene.objects[::-1]
    return right | {
        "axis": "horizontal" if scene.relation in ("left of", "right of") else "vertical",
        "first_thing": first.thing,
        "first_colour": first.colour,
        "second_thing": second.thing,
        "second_colour": second.colour,
    }


def labels(scene: sprites.Scene) -> np.ndarray:
    """Number of the right answer to each of `QUESTIONS`, int64 (len(QUESTIONS),); -100 where none applies."""
    right = answers(scene)
    numbers = [known.index(right[name]) if name in right else _NOT_ASKED for name, known in QUESTIONS.items()]
    return np.array(numbers, np.int64)


class SpritesProbe(nn.Module):
    """Reads sprites: pixel_values (B, 3, 32, 32) in [-1, 1] -> logits for each of `QUESTIONS`.

    A convolutional network of about 5 million multiply-adds a picture. It answers every question about every
    picture: those about one object mean nothing for two, and the other way round.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(3, 32, kernel_size=5, stride=2),  # 16 x 16
            *_convolution(32, 64, kernel_size=3, stride=2),  # 8 x 8
            *_convolution(64, 64, kernel_size=3),
            *_convolution(64, 128, kernel_size=3),
            *_convolution(128, 128, kernel_size=3, stride=2),  # 4 x 4
            nn.Flatten(),  # places matter, so nothing is pooled
            nn.Linear(128 * 4 * 4, 256),
            nn.ReLU(),
        )
        self.head = nn.Linear(256, sum(map(len, QUESTIONS.values())))
        self.accuracies: dict[str, float] = {}  # on fresh real pictures, of the trained probe

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """(B, 3, 32, 32) float in [-1, 1] -> question -> float32 logits (B, number of answers)."""
        logits = self.head(self.features(pixel_values)).float()
        parts = logits.split([len(known) for known in QUESTIONS.values()], dim=1)
        return dict(zip(QUESTIONS, parts, strict=True))

    @torch.no_grad()
    def read(self, pixel_values: Tensor, batch_size: int = 500) -> list[dict[str, str]]:
        """Answers for each picture: (B, C, H, W) float in [-1, 1]; resized if need be, grey is copied."""
        self.eval()
        device = next(self.parameters()).device
        found: list[dict[str, str]] = []
        for pictures in pixel_values.split(batch_size):
            pictures = pictures.to(device, torch.float32).expand(-1, 3, -1, -1)
            side = sprites.IMAGE_SIZE
            if pictures.shape[-2:] != (side, side):
                pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
            best = {name: logits.argmax(dim=1).tolist() for name, logits in self(pictures).items()}
            for row in range(len(pictures)):
                found.append({name: QUESTIONS[name][numbers[row]] for name, numbers in best.items()})
        return found


def _convolution(in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    padding = kernel_size // 2
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]


# --- pictures


def _draw(first: int, count: int, progress: bool) -> tuple[Tensor, Tensor]:
    """Pictures (count, 3, 32, 32) uint8 and labels (count, questions) of scenes `first` and following.

    Even scenes have one object, odd ones two. One process draws some 10,000 a second, which is enough.
    """
    pictures = torch.empty(count, sprites.IMAGE_SIZE, sprites.IMAGE_SIZE, 3, dtype=torch.uint8)
    numbers = torch.empty(count, len(QUESTIONS), dtype=torch.int64)
    indices = range(first, first + count)
    for row, index in enumerate(tqdm(indices, "probe: drawing", disable=not progress, leave=False)):
        scene = sprites.sample_scene(index, seed=_DRAWING_SEED, pairs="all", num_objects=1 + index % 2)
        pictures[row] = torch.from_numpy(np.array(sprites.draw_scene(scene)))
        numbers[row] = torch.from_numpy(labels(scene))
    return pictures.permute(0, 3, 1, 2), numbers  # channels-last in memory, as the network likes it


def _soften(pixel_values: Tensor, generator: torch.Generator) -> Tensor:
    """Spoil pictures (B, 3, 32, 32) as tokenizers do: half are blurred, by up to about a pixel, and all have a
    smooth noise that is the stronger, the more detail there is to get wrong."""
    device, half = pixel_values.device, len(pixel_values) // 2
    blurred = _blur(pixel_values)
    detail = _blur(_blur((pixel_values - blurred).abs().amax(dim=1, keepdim=True)))
    share = torch.rand(half, 1, 1, 1, generator=generator).to(device) * 1.5
    softened = pixel_values[:half].lerp(blurred[:half], share.clamp(max=1))
    noise = torch.randn(len(pixel_values), 4, 16, 16, generator=generator).to(device)
    noise = 0.18 * (noise[:, :1] + noise[:, 1:]).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    strength = torch.rand(len(pixel_values), 1, 1, 1, generator=generator).square().to(device)
    return torch.cat([softened, pixel_values[half:]]) + noise * strength * (0.1 + 4 * detail)


def _blur(pixel_values: Tensor) -> Tensor:
    """Mean of 3 x 3 pixels, of those inside the picture: (B, C, H, W) -> the same."""
    return F.avg_pool2d(pixel_values, 3, stride=1, padding=1, count_include_pad=False)


# --- training


def train_probe(
    *,
    num_pictures: int = _PICTURES,
    epochs: int = _EPOCHS,
    required_accuracy: float = REQUIRED_ACCURACY,
    rounds: int = _ROUNDS,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> SpritesProbe:
    """A probe that reads at least `required_accuracy` of each attribute of fresh pictures right.

    Takes about half a minute on 2 cores. RuntimeError, with the accuracies, if it is not that good after `rounds`
    times `num_pictures` pictures.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        probe = SpritesProbe()
    probe.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    test = _draw(0, _TEST_PICTURES, progress)
    pictures, numbers = test[0][:0], test[1][:0]
    for round_number in range(rounds):
        first = _TEST_PICTURES + round_number * num_pictures
        more = _draw(first, num_pictures, progress)
        pictures, numbers = torch.cat([pictures, more[0]]), torch.cat([numbers, more[1]])
        _fit(probe, pictures, numbers, epochs, progress)
        probe.accuracies = _accuracies(probe, *test)
        if min(probe.accuracies.values()) >= required_accuracy:
            return probe
    found = ", ".join(f"{name} {accuracy:.3f}" for name, accuracy in probe.accuracies.items())
    raise RuntimeError(
        f"The sprites probe must read {required_accuracy:.0%} of each attribute of real pictures right, but "
        f"after {len(pictures)} pictures it reads: {found}. Are some things too alike to tell apart?"
    )


def _fit(probe: SpritesProbe, pictures: Tensor, numbers: Tensor, epochs: int, progress: bool) -> None:
    """One cycle of the learning rate over all pictures, `epochs` times."""
    from pipelines.machine.devices import computes_bf16

    device, in_bf16 = next(probe.parameters()).device, computes_bf16()
    generator = torch.Generator().manual_seed(len(pictures))
    steps = max(1, len(pictures) // _BATCH_SIZE) * epochs
    optimizer = torch.optim.AdamW(probe.parameters(), lr=_PEAK_LEARNING_RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=_PEAK_LEARNING_RATE, total_steps=steps, pct_start=0.2, div_factor=10
    )
    order = torch.cat([torch.randperm(len(pictures), generator=generator) for _ in range(epochs)])
    probe.train()
    with tqdm(total=steps, desc="probe: training", disable=not progress, leave=False) as bar:
        for chosen in order.split(_BATCH_SIZE)[:steps]:
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
    losses = [
        F.cross_entropy(part, numbers[:, question], ignore_index=_NOT_ASKED, reduction="sum")
        for question, part in enumerate(logits.values())
    ]
    return torch.stack(losses).sum() / len(numbers)


def _accuracies(probe: SpritesProbe, pictures: Tensor, numbers: Tensor) -> dict[str, float]:
    """Share of right answers to each question, among the pictures that it applies to."""
    found = probe.read(pictures.float() / 127.5 - 1)
    result = {}
    for question, (name, known) in enumerate(QUESTIONS.items()):
        asked = [row for row in range(len(found)) if numbers[row, question] != _NOT_ASKED]
        right = [found[row][name] == known[int(numbers[row, question])] for row in asked]
        result[name] = sum(right) / len(right)
    return result


# --- cache


def load_probe(
    cache_folder: str | Path | None = None,
    *,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> SpritesProbe:
    """The probe of this version of the sprites, trained on first use and kept in `cache_folder`.

    `cache_folder` is by default $TESSERA_CACHE, else ~/.cache/tessera; the probe is in `probe-<hash>` there.
    """
    root = cache_folder or os.environ.get("TESSERA_CACHE") or Path.home() / ".cache" / "tessera"
    folder = Path(root).expanduser() / f"probe-{probe_hash()}"
    if (folder / "probe.json").is_file() and (folder / "model.safetensors").is_file():
        return _read_probe(folder).to(device)
    started = time.monotonic()
    probe = train_probe(device=device, progress=progress)
    _write_probe(probe, folder, seconds=time.monotonic() - started)
    return probe


def probe_hash() -> str:
    """Changes with the sprites and with `PROBE_VERSION`."""
    return hashlib.sha256(f"{sprites.world_hash()} {PROBE_VERSION}".encode()).hexdigest()[:16]


def _write_probe(probe: SpritesProbe, folder: Path, seconds: float) -> None:
    from safetensors.torch import save_file

    folder.parent.mkdir(parents=True, exist_ok=True)
    whole = folder.with_name(f"{folder.name}.tmp-{uuid.uuid4().hex[:8]}")
    whole.mkdir()
    try:
        weights = {name: tensor.contiguous().cpu() for name, tensor in probe.state_dict().items()}
        save_file(weights, whole / "model.safetensors")
        about = {"probe_version": PROBE_VERSION, "accuracies": probe.accuracies, "training_seconds": seconds}
        (whole / "probe.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)  # a broken one, or nothing
        whole.rename(folder)
    except OSError:
        if not (folder / "probe.json").is_file():  # otherwise another process was first: use that one
            raise
    finally:
        shutil.rmtree(whole, ignore_errors=True)


def _read_probe(folder: Path) -> SpritesProbe:
    from safetensors.torch import load_file

    probe = SpritesProbe()
    probe.load_state_dict(load_file(folder / "model.safetensors"))
    probe.accuracies = json.loads((folder / "probe.json").read_text(encoding="utf-8"))["accuracies"]
    return probe.eval()
