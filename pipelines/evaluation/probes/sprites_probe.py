"""The sprites probe: a small network that reads what a sprites picture shows, so that samples can be scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer_image.sprites import scenes as sprites

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
NOT_ASKED = -100  # label of a question that does not apply to a scene


def answers(scene: sprites.Scene) -> dict[str, str]:
    """The right answer to each question that applies to `scene`."""
    right = {"num_objects": str(len(scene.objects)), "background": scene.background}
    if scene.relation is None:
        (thing,) = scene.objects
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
    """Index of the right answer to each of `QUESTIONS`, int64 (len(QUESTIONS),); `NOT_ASKED` where none applies."""
    right = answers(scene)
    numbers = [choices.index(right[name]) if name in right else NOT_ASKED for name, choices in QUESTIONS.items()]
    return np.array(numbers, np.int64)


class SpritesProbe(nn.Module):
    """Reads sprites: pixel_values (B, 3, 32, 32) in [-1, 1] -> logits for each question.

    A convolutional network of about 5 million multiply-adds a picture. It answers every question about every picture;
    answers to questions about one object mean nothing for a picture of two, and the other way round.

    Args:
        questions: with their possible answers (default: `QUESTIONS`).
        num_channels: 3, or of videos 3 for each frame, one frame after the other.
    """

    def __init__(self, questions: Mapping[str, Sequence[str]] = QUESTIONS, num_channels: int = 3) -> None:
        super().__init__()
        self.questions, self.num_channels = questions, num_channels
        self.features = nn.Sequential(
            *_convolution(num_channels, 32, kernel_size=5, stride=2),  # 16 x 16
            *_convolution(32, 64, kernel_size=3, stride=2),  # 8 x 8
            *_convolution(64, 64, kernel_size=3),
            *_convolution(64, 128, kernel_size=3),
            *_convolution(128, 128, kernel_size=3, stride=2),  # 4 x 4
            nn.Flatten(),  # places matter, so nothing is pooled
            nn.Linear(128 * 4 * 4, 256),
            nn.ReLU(),
        )
        self.head = nn.Linear(256, sum(map(len, questions.values())))
        self.accuracies: dict[str, float] = {}  # on fresh real pictures, of the trained probe

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """(B, num_channels, 32, 32) float in [-1, 1] -> question -> float32 logits (B, number of answers)."""
        logits = self.head(self.features(pixel_values)).float()
        parts = logits.split([len(choices) for choices in self.questions.values()], dim=1)
        return dict(zip(self.questions, parts, strict=True))

    @torch.no_grad()
    def read(self, pixel_values: Tensor, batch_size: int = 500) -> list[dict[str, str]]:
        """The answer to each question for each picture.

        Args:
            pixel_values: (B, C, H, W) float in [-1, 1]; other sizes than 32 x 32 are resized, and one grey channel
                serves as all three.
        """
        self.eval()
        device = next(self.parameters()).device
        readings: list[dict[str, str]] = []
        for pictures in pixel_values.split(batch_size):
            pictures = pictures.to(device, torch.float32).expand(-1, self.num_channels, -1, -1)
            side = sprites.IMAGE_SIZE
            if pictures.shape[-2:] != (side, side):
                pictures = F.interpolate(pictures, (side, side), mode="bilinear", antialias=True)
            best = {name: logits.argmax(dim=1).tolist() for name, logits in self(pictures).items()}
            for row in range(len(pictures)):
                readings.append({name: self.questions[name][numbers[row]] for name, numbers in best.items()})
        return readings


def _convolution(in_channels: int, out_channels: int, *, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    padding = kernel_size // 2
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels), nn.ReLU(inplace=True)]
